"""docs/benchmarking.md: runs of several seeds, and the rounding of projected gradients."""

from statistics import mean

from .. import anchors, parts, rounding, runs, table, variance
from .claim import on, power, rows

claim = on("docs/benchmarking.md")
FINETUNED = "finetune-text.jsonl"


def methods(records) -> str:
    shown = runs.of_methods(records)
    return rows([r["method"], r["lr"], f"{int(r['steps']):,}", r["loss"], r["accuracy"]] for r in shown)


@claim("MiniLM's pooler and a new head, {parameters:,} parameters", "methods-minilm.jsonl")
def trained_of_minilm(records):
    return {"parameters": records[0]["n"]}


@claim("| method | lr | steps | training loss | test accuracy |\n|---|---|---|---|---|\n{methods}", "methods-minilm.jsonl")
def methods_on_minilm(records):
    return {"methods": methods(records)}


@claim("the loss is of 128 held-out rows, {before:.3f} before, the accuracy of 256 test rows.", "methods-smollm2.jsonl")
def loss_before(records):
    (before,) = {r["curve"][0][1] for r in records}
    return {"before": before}


@claim("| method | lr | steps | held-out loss | test accuracy |\n|---|---|---|---|---|\n{methods}", "methods-smollm2.jsonl")
def methods_on_smollm2(records):
    return {"methods": methods(records)}


@claim("and one of its seeds ended at {worst:.3f}.", "methods-smollm2.jsonl")
def worst_seed(records):
    return {"worst": max(r["final_loss"] for r in records.of(candidate="ES, 16 mirrored", searched=False))}


@claim(
    "| problem | parameters | after | \\|g\\|^2 | V | V / \\|g\\|^2 | an anchor needs | left of V after a step |\n"
    "|---|---|---|---|---|---|---|---|\n{moments}",
    "variance.jsonl",
)
def variances(records):
    return {"moments": rows(r.values() for r in runs.of_variance(records))}


@claim("along AdamW, from a loss of {first:.2f} down to {last:.3f}, V is worth {most:.0f} rows at most.", "variance.jsonl")
def along_adamw(records):
    found = records.of(candidate=variance.ADAMW)
    most, needed = max(r["noise_rows"] for r in found), found[0]["examples"] + found[0]["batch"]
    assert most < needed
    return {"first": found[0]["loss"], "last": found[-1]["loss"], "most": most}


@claim(
    "| | lr | steps | off the loss | over MeZO's | expected | test accuracy |\n|---|---|---|---|---|---|---|\n{table}",
    "anchors-minilm.jsonl",
    "variance.jsonl",
)
def anchors_of_minilm(records, moments):
    """Expected: to second order, from the moments before training."""
    before = moments.one(op=anchors.PROBLEM, candidate=variance.MEZO, steps=0)
    n, noise = before["examples"], before["noise_rows"]
    mezo = anchors.expected(anchors.Variant(), n, noise)
    hoped = {str(each): anchors.expected(each, n, noise) / mezo for each in anchors.VARIANTS}
    made = {r["variant"]: r for r in runs.of_anchors(records)}
    shown = ((name, made[name]) for name in hoped)
    return {
        "table": rows([name, r["lr"], r["steps"], r["taken off"], r["over MeZO"], f"{hoped[name]:.2f}", r["accuracy"]] for name, r in shown)
    }


@claim("Each variant with anchors is behind MeZO, {least:.2f} to {most:.2f} of it in float32.", "anchors-minilm.jsonl")
def behind_mezo(records):
    over = [float(r["over MeZO"]) for r in runs.of_anchors(records.of(dtype="fp32")) if "SVRG" in r["variant"]]
    assert max(over) < 1
    return {"least": min(over), "most": max(over)}


@claim("parameter of MiniLM on the same rows, {queries:,} queries each;", "anchors-minilm.jsonl")
def queries_of_minilm(records):
    (queries,) = {r["queries"] for r in records}
    return {"queries": queries}


@claim("up to 1e-3 ([settings](settings.md)); here MeZO is best at {lr}.", "anchors-minilm.jsonl")
def rate_of_mezo(records):
    (lr,) = {r["settings"]["lr"] for r in records.of(candidate="MeZO, 64 rows", best=True)}
    return {"lr": power(lr)}


@claim(
    "| after | part | parameters | \\|g\\|^2 | V | T (standard error) | lr | a query |\n|---|---|---|---|---|---|---|---|\n{parts}",
    "parts-smollm2.jsonl",
)
def parts_of_smollm2(records):
    return {"parts": rows(r.values() for r in runs.of_parts(records))}


@claim(
    "where an anchor on all rows needs {needed}, V is worth {before:.0f} rows before training and {after:.0f} after",
    "parts-smollm2.jsonl",
)
def rows_of_smollm2(records):
    def noise(steps):
        every = parts.together(records.of(steps=steps))
        return every["row_variance"] / every["gradient_square"]

    return {"needed": records[0]["examples"] + 64, "before": noise(0), "after": noise(12)}


def finetuned(records, **settings) -> list[dict]:
    """The results of zokern finetune with these settings, one a seed."""
    return [r["result"] for r in records if all(r["settings"][name] == value for name, value in settings.items())]


def accuracy(results, when) -> str:
    return runs.spread([r[when]["accuracy"] for r in results], "{:.3f}")


@claim(
    """
| the head alone | not yet trained | {untrained} | |
| | MeZO, 4,000 steps of 64 rows | {mezo} | {mezo_test} |
| | MeZO-SVRG, 2,000 steps, every second one at an anchor on all rows: about {times:.1f} times as many rows | {svrg} | {svrg_test} |
    """,
    FINETUNED,
)
def heads(records):
    mezo, svrg = (finetuned(records, task="sst2", adapter=["head"], optimizer=name) for name in ("mezo", "mezo-svrg"))
    forwards, steps = mezo[0]["forwards"], svrg[0]["steps"]
    anchors = steps / 2  # all training rows twice there, a batch four times in the other steps
    times = (anchors * 2 * svrg[0]["train_rows"] + (steps - anchors) * 4 * 64) / (forwards * 64)
    figures = {"untrained": accuracy(mezo, "before"), "times": times}
    for name, results in (("mezo", mezo), ("svrg", svrg)):
        figures |= {name: accuracy(results, "after"), f"{name}_test": accuracy(results, "test")}
    return figures


@claim(
    """
| LoRA, from a linear probe | the probe | {probe} | |
| | 150 steps of MeZO | {mezo} | |
| | 60 steps of MeZO-SVRG | {svrg} | |
    """,
    FINETUNED,
)
def probes(records):
    mezo, svrg = (finetuned(records, task="sst2", adapter=["lora"], optimizer=name) for name in ("mezo", "mezo-svrg"))
    return {"probe": accuracy(mezo, "probed"), "mezo": accuracy(mezo, "after"), "svrg": accuracy(svrg, "after")}


@claim("(the upper half of the blocks, and the head), 100 steps of 32 rows | {after} | {test} |", FINETUNED)
def hybrids(records):
    results = finetuned(records, task="sst2", optimizer="hybrid")
    return {"after": accuracy(results, "after"), "test": accuracy(results, "test")}


@claim("This model does not learn RTE at all: {least:.2f} to {most:.2f} with everything that was tried.", FINETUNED)
def untold(records):
    means = []
    for adapter in ("head", "lora"):
        for optimizer in ("mezo", "mezo-svrg"):
            results = finetuned(records, task="rte", adapter=[adapter], optimizer=optimizer)
            means += [mean(r[when]["accuracy"] for r in results) for when in ("before", "probed", "after", "test") if results[0][when]]
    return {"least": min(means), "most": max(means)}


@claim("held-out accuracy {before} before, {after} after 400 steps.", "finetune-minilm.jsonl")
def demonstration(records):
    results = results_of(records, "docstrings of networkx and sympy")
    return {"before": span(results, "accuracy_before", ".2f"), "after": span(results, "accuracy_after", ".3f")}


@claim(
    "seeds 0 to 2: {untrained} with the untrained head, {probed} after the linear probe, {after} after 60 MeZO steps (loss "
    "{loss_untrained}, {loss_probed}, {loss_after})",
    "finetune-minilm.jsonl",
)
def sst2_by_an_earlier_zokern(records):
    results = results_of(records, "sst2/train.tsv")
    stages = {"untrained": "before", "probed": "probe", "after": "after"}
    figures = {name: span(results, f"accuracy_{stage}", ".3f") for name, stage in stages.items()}
    return figures | {f"loss_{name}": span(results, f"loss_{stage}", ".3f") for name, stage in stages.items()}


def results_of(records, data) -> list[dict]:
    return [r["result"] for r in records if r.get("result", {}).get("data") == data]


def span(results, field, shown) -> str:
    least, most = (f(r[field] for r in results) for f in (min, max))
    return f"{least:{shown}} to {most:{shown}}"


@claim("the last, the demonstration by itself, took {seconds:.0f} s.", "finetune-minilm.jsonl")
def demonstration_by_itself(records):
    return {"seconds": records[-1]["result"]["seconds"]}


@claim(
    """
| eps | points | directions | direction: along z, cosine | in float32: slope, cosine | in bfloat16: slope, cosine |
|---|---|---|---|---|---|
{directions}
    """,
    "rounding-smollm2.jsonl",
)
def rounded_points(records):
    found = {(r["eps"], r["points"]): r for r in table.of_rounding(records.of(dtype="bf16"))}
    named = {rounding.NEAREST: "to nearest", rounding.DITHERED: "dithered"}
    shown = [(0.01, rounding.NEAREST)] + [(eps, points) for eps in (0.001, 0.0003) for points in named]
    return {
        "directions": rows(
            [
                power(eps),
                named[points],
                r["n"],
                f"{r['along z']}, {r['cosine']}",
                f"{r['slope']}, {r['cosine ']}",
                f"{r['slope in 16 bits']}, {r[' cosine']}",
            ]
            for eps, points in shown
            for r in (found[f"{eps:g}", points],)
        )
    }


@claim(
    "In float16 with eps = 1e-3, computed in float16 (16 directions): {along}, {cosine}; slope {slope}, cosine {half:.3f}. In bfloat16 "
    "there is no bias to be seen then, and a cosine of {brain:.2f}:",
    "rounding-smollm2.jsonl",
)
def rounded_in_float16(records):
    half, brain = (records.one(dtype=d, eps=0.001, candidate=f"{rounding.NEAREST}, computed in {d}") for d in ("fp16", "bf16"))
    (r,) = (r for r in table.of_rounding(records.of(dtype="fp16")) if (r["eps"], r["points"]) == ("0.001", rounding.NEAREST))
    shown = {"along": r["along z"], "cosine": r["cosine"], "slope": r["slope in 16 bits"]}
    return shown | {"half": half["cosine"], "brain": brain["cosine"]}
