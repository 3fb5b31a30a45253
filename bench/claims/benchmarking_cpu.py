"""docs/benchmarking.md: what was measured on a CPU, and counted of memory."""

from .. import cases, forms, kernels, memory, modes, offload, plot, replay, step, trainer
from .claim import on

claim = on("docs/benchmarking.md")
DTYPES = ("fp32", "bf16")


@claim("<!-- from records: begin -->\n{table}\n\n{machine}\n<!-- from records: end -->", "epyc-2cpu.jsonl")
def first_table(records):
    table, _, machine = plot.markdown(records).rpartition("\n\n")
    return {"table": table, "machine": machine}


def one_pass(records, dtype, **case):
    """zokern's record of one term on 2^26 elements."""
    return records.one(op="add_noise_", candidate=kernels.OURS, dtype=dtype, terms=1, n=2**26, **case)


def form(records, op, dtype, terms, n):
    return records.one(op=op, candidate=forms.OURS, dtype=dtype, terms=terms, n=n)


@claim("on a model of {size:.1f} GB whose weights lie in a file", "offload-epyc-2cpu.jsonl")
def size_of_the_model_in_a_file(records):
    return {"size": records.one(candidate=offload.DISK)["weights_bytes"] / 1e9}


@claim(
    """
| one term | fp32 | bf16 |
|---|---|---|
| 2^26 elements, 2 threads: times faster than `torch.normal` + `add_` | {fp32_faster:.1f} | {bf16_faster:.1f} |
| share of the `mul_` floor | {fp32_share:.2f} | {bf16_share:.2f} |
| the same with signs: share of the floor | {fp32_signs:.2f} | {bf16_signs:.2f} |
| float32 read, bf16 written elsewhere: share of `copy_`'s speed (in place in that run, of `mul_`'s: {in_place:.2f}) | {out:.2f} | |
| 512, 1024, 2048 columns of a 4096 x 4096 weight: time over a contiguous tensor's of as many elements | {fp32_columns} | {bf16_columns} |
| 16 terms, 2^22 elements: signs over normals | {fp32_many:.1f} times faster | {bf16_many:.1f} times faster |
| in L2, one thread: cycles an element, AVX-512 (AVX2) | {avx512:.2f} ({avx2:.2f}) | |
    """,
    "epyc-2cpu.jsonl",
    "epyc-2cpu-avx2.jsonl",
)
def one_term(records, held_to_avx2):
    out = form(records, "out", "fp32", 1, 2**26)
    figures = {"out": out["share_of_floor"], "in_place": out["plain_share_of_floor"]}
    for dtype in DTYPES:
        ours = one_pass(records, dtype, threads=2)
        columns = [form(records, f"columns {n} of 4096", dtype, 1, 4096 * n)["over_plain"] for n in (512, 1024, 2048)]
        figures |= {
            f"{dtype}_faster": ours["speedup"],
            f"{dtype}_share": ours["share_of_floor"],
            f"{dtype}_signs": form(records, "signs", dtype, 1, 2**26)["share_of_floor"],
            f"{dtype}_columns": ", ".join(f"{over:.2f}" for over in columns),
            f"{dtype}_many": 1 / form(records, "signs", dtype, 16, 2**22)["over_plain"],
        }
    for isa, found in (("avx512", records), ("avx2", held_to_avx2)):
        figures[isa] = found.one(op="add_noise_ in L2", candidate=kernels.OURS, isa=isa)["cycles_per_element"]
    return figures


@claim(
    "2^26 elements, 2 threads): {fp32:.2f} times faster in fp32, {bf16:.2f} in bf16.",
    "epyc-2cpu-before-after.jsonl",
)
def seven_rounds_after_ten(records):
    return {dtype: 1 / one_pass(records, dtype, threads=2)["after_over_before"] for dtype in DTYPES}


@claim(
    "of the day before, quieter, [`xeon-2cpu-earlier.jsonl`](../bench/results/xeon-2cpu-earlier.jsonl): {faster} times faster than "
    "torch's way, {shares} of the floor.",
    "xeon-2cpu.jsonl",
    "xeon-2cpu-avx2.jsonl",
    "xeon-2cpu-earlier.jsonl",
)
def earlier_noise(*files):
    found = [one_pass(records, "fp32", threads=2) for records in files]
    return {"faster": listed(f"{r['speedup']:.1f}" for r in found), "shares": listed(f"{r['share_of_floor']:.2f}" for r in found)}


def listed(texts) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}"


@claim(
    "the optimizer's part of the step takes {deferred_1:.1f} ms instead of {ours_1:.1f} on one thread, {deferred_2:.1f} instead of "
    "{ours_2:.1f} on two.",
    "epyc-2cpu.jsonl",
)
def deferred(records):
    own = {
        (name, threads): records.one(suite="step", candidate=candidate, threads=threads)["optimizer_s"] * 1e3
        for name, candidate in (("ours", modes.OURS), ("deferred", step.DEFERRED))
        for threads in (1, 2)
    }
    return {f"{name}_{threads}": ms for (name, threads), ms in own.items()}


@claim(
    """
| optimizer | times cheaper | state |
|---|---|---|
| `MeZO` | {mezo:.1f} | none |
| `MeZO(q=4)` | {four:.1f} | none |
| `MeZO(sparsity=0.5)` | {masked:.1f} | none |
| `MeZO(blocks=...)`, three blocks | {blocks:.1f} | none |
| `ZOSign` | {sign:.1f} | none |
| `ZOConservative` | {conservative:.1f} | none |
| `ZOMomentum` | {momentum:.1f} | 1 |
| `ZOAdam` | {adam:.1f} | 2 |
| `ZOAdam`, against `torch.normal` + `torch.optim.Adam(fused=True)` | {fused:.1f} | 2 |
| `MeZOSVRG(anchor="copy")` | {copy:.1f} | 1 |
| `MeZOSVRG(anchor="replay")` | {replay:.1f} | none |
    """,
    "epyc-2cpu.jsonl",
)
def optimizers(records):
    records = records.of(suite="optimizers")
    adam = records.one(op="ZOAdam", candidate="zokern.ZOAdam")
    fused = records.one(op="ZOAdam", candidate="torch.normal + Adam(fused=True)")
    ours = {"mezo": "MeZO", "four": "MeZO, q=4", "masked": "MeZO, half masked", "blocks": "MeZO, 3 blocks"}
    figures = {name: records.one(op=op, candidate="zokern.MeZO")["speedup"] for name, op in ours.items()}
    for name in ("Sign", "Conservative", "Momentum", "Adam"):
        figures[name.lower()] = records.one(op=f"ZO{name}", candidate=f"zokern.ZO{name}")["speedup"]
    for anchor in ("copy", "replay"):
        figures[anchor] = records.one(candidate=f"zokern.MeZOSVRG, {anchor}")["speedup"]
    return figures | {"fused": fused["step_s"] / adam["step_s"]}


@claim(
    "a step's own part takes {one:.1f} ms with 1 step of history, {ten:.1f} with 10, {twenty:.1f} with 20 and {fifty:.0f} with 50, where "
    "MeZO's takes {mezo:.1f} and `ZOAdam`'s, with its state of two numbers a parameter, {adam:.1f}. Each remembered step costs {each:.1f} "
    "ms, about as much as one of MeZO's three passes; with z in memory 20 steps take {times:.1f} times as long.",
    "adamezo-epyc-2cpu.jsonl",
)
def cost_by_history(records):
    ms = {r["candidate"]: r["step_s"] * 1e3 for r in records}
    one, ten, twenty, fifty = (ms[f"zokern.AdaMeZO, history={steps}"] for steps in (1, 10, 20, 50))
    figures = {"one": one, "ten": ten, "twenty": twenty, "fifty": fifty, "mezo": ms["zokern.MeZO"], "adam": ms["zokern.ZOAdam"]}
    return figures | {"each": (fifty - one) / 49, "times": ms["z in memory"] / twenty}


@claim(
    """
as in training: the {parameters:.1f}M weights of a MiniLM's shape, two threads, from the same record.

| | float32 | bfloat16 |
|---|---|---|
| a log of 1,000 steps by `Trajectory.replay`, digests of the base weights included | {fp32_log:.0f} | {bf16_log:.0f} |
| `replay_`, 64 steps in each call | {fp32_64:.0f} | {bf16_64:.0f} |
| `replay_`, one step in each call | {fp32_1:.0f} | {bf16_1:.0f} |
| `torch.normal` + `add_`, one pass a step | {fp32_torch:.1f} | {bf16_torch:.1f} |
    """,
    "epyc-2cpu.jsonl",
)
def replayed(records):
    records = records.of(suite="replay", threads=2)
    figures = {"parameters": records[0]["n"] / 1e6}
    for dtype in DTYPES:
        candidates = {"64": f"{replay.REPLAY}, 64 steps a call", "1": f"{replay.REPLAY}, 1 steps a call"}
        for name, candidate in {"log": replay.LOGGED, "torch": replay.TORCH, **candidates}.items():
            figures[f"{dtype}_{name}"] = records.one(candidate=candidate, dtype=dtype)["steps_per_second"]
    return figures


@claim(
    """
| peak memory, GB | two forward passes | SGD | Adam |
|---|---|---|---|
| RoBERTa-large, 64 times 128 tokens | {ours:.2f} | {sgd:.1f} | {adam:.1f} |
| the same, by the table in MeZO-SVRG's paper | {ours_paper} (a step of MeZO) | {sgd_paper:.1f} | {adam_paper:.1f} |
| OPT-13B, 4 times 400 tokens | {large:.1f} | {large_sgd:.0f} | {large_adam:.0f} |
    """,
    "xeon-2cpu.jsonl",
)
def peak_memory(records):
    def peak(model, batch, candidate):
        found = records.one(suite="memory", op="counted", dtype="bf16", model=model, batch=batch, candidate=candidate, **tokens[model])
        return found["peak_bytes"] / 1e9, found["reported_gb"]

    tokens = {"RoBERTa-large": {"tokens": 128}, "OPT-13B": {"tokens": 400}}
    figures = {"ours": peak("RoBERTa-large", 64, step.FORWARDS)[0], "ours_paper": peak("RoBERTa-large", 64, step.PUBLISHED)[1]}
    figures["large"] = peak("OPT-13B", 4, step.FORWARDS)[0]
    for name, candidate in (("sgd", step.SGD), ("adam", step.ADAM)):
        figures[name], figures[f"{name}_paper"] = peak("RoBERTa-large", 64, candidate)
        figures[f"large_{name}"] = peak("OPT-13B", 4, candidate)[0]
    return figures


@claim(
    "the largest that fits in {rooms} GB is {forwards} in two forwards, {sgd} with SGD, {adam} with Adam.",
    "xeon-2cpu.jsonl",
)
def largest_models(records):
    found = memory.largest(records)
    methods = {"forwards": step.FORWARDS, "sgd": step.SGD, "adam": step.ADAM}
    models = {name: [found[room][method]["model"].removeprefix("OPT-") for room in found] for name, method in methods.items()}
    return {"rooms": listed(map(str, found))} | {name: listed(of) for name, of in models.items()}


@claim(
    "beyond the weights {fp32_full:,.0f} MB with transformers' loss, {fp32_lean:,.0f} MB with `tasks.lean_loss`, in float32; "
    "{bf16_full:,.0f} and {bf16_lean:,.0f} MB in bfloat16.",
    "xeon-2cpu.jsonl",
)
def lean_loss(records):
    return {
        f"{dtype}_{name}": beyond_weights(records.one(candidate=candidate, dtype=dtype, model="OPT-125M", batch=8, tokens=256))
        for dtype in DTYPES
        for name, candidate in (("full", cases.FULL), ("lean", cases.LEAN))
    }


def beyond_weights(record) -> float:
    """MB."""
    return (record["peak_bytes"] - record["weights_bytes"]) / 1e6


@claim(
    "(../bench/results/trainer-xeon-2cpu.jsonl)): {ours:.1f} against {plain:.1f} ms a step, {more:.1f} % more, MiniLM, 16 rows",
    "trainer-xeon-2cpu.jsonl",
)
def trainers(records):
    ours, plain = (records.one(candidate=name) for name in (trainer.TRAINER, trainer.PLAIN))
    return {"ours": ours["median_s"] * 1e3, "plain": plain["median_s"] * 1e3, "more": 100 * ours["over_plain"]}
