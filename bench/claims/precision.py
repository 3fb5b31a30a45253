"""docs/precision.md: drift, lost updates, what they do to training, and what it costs to have neither."""

from .. import drift, modes, offload, runs, step, table
from .claim import on, rows

claim = on("docs/precision.md")
SMOLLM2 = "SmolLM2-135M"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PLACES = {modes.OURS: "in place", modes.STREAMED: "streamed", modes.COPIED: "copied", modes.OWN: "copied own"}


@claim(
    "which share of an update reaches them (standard error):\n\n"
    "| | in place | streamed | copied, float32 | copied, their own dtype |\n|---|---|---|---|---|\n{drift}",
    "drift-smollm2.jsonl",
)
def drifts(records):
    cases = [(dtype, model) for model in (SMOLLM2, None) for dtype in ("bf16", "fp16")]
    lines = [[f"{weights(dtype, model, records)}", *moved(records.of(op=drift.DRIFT, dtype=dtype, model=model))] for dtype, model in cases]
    lines.append([weights("fp32", None, records), *moved(records.of(op=drift.DRIFT, dtype="fp32", model=None))])
    for dtype, model in cases:
        found = records.of(dtype=dtype, model=model)
        lines.append([f"updates: {weights(dtype, model, records)}", *delivered(r for r in found if "delivered" in r)])
    return {"drift": rows(lines)}


def weights(dtype, model, records) -> str:
    return f"{DTYPES[dtype]}, {model or 'weights of size {:g}'.format(records.of(model=None)[0]['sigma'])}"


def moved(records) -> list[str]:
    """How far the weights are, by mode."""
    found = {r["candidate"]: "equal bits" if r["bit_equal"] else f"{distance(r)} eps" for r in records}
    return [found.get(mode, "") for mode in PLACES]


def distance(record) -> str:
    """In units of eps: two digits, three from 10 on."""
    value = record["drift_over_eps"]
    return f"{value:.5f}" if value < 0.001 else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def delivered(records) -> list[str]:
    """Which share of an update reaches the weights, by mode; with its standard error where that is not 0."""
    found = {r["candidate"]: r for r in records}
    shown = []
    for mode in PLACES:
        share, error = (f"{found[mode][name]:.3f}" for name in ("delivered", "delivered_se"))
        shown.append(share if error == "0.000" else f"{share} ({error})")
    return shown


@claim(
    "MeZO's published step, on weights of size {sigma:g}, drifts as far as ours in place: {bf16} eps in bfloat16, {fp16} eps in float16.",
    "drift-smollm2.jsonl",
)
def drift_as_published(records):
    published = records.of(candidate=step.PUBLISHED, op=drift.DRIFT)
    return {"sigma": published[0]["sigma"]} | {dtype: distance(published.one(dtype=dtype)) for dtype in ("bf16", "fp16")}


@claim("Loss of held-out rows ({before:.2f} at the start) and accuracy", "sixteen-bits.jsonl")
def loss_before(records):
    (before,) = {f"{r['curve'][0][1]:.2f}" for r in records if r["dtype"] == "bf16"}
    return {"before": float(before)}


@claim("| | loss | accuracy |\n|---|---|---|\n{modes}", "sixteen-bits.jsonl")
def trained(records):
    named = {
        "float32": "float32, in place",
        "bfloat16, copied": "bfloat16, copied in float32",
        "bfloat16, streamed, stochastic": "bfloat16, streamed, stochastic",
        "bfloat16, streamed": "bfloat16, streamed, nearest",
        "bfloat16, in place": "bfloat16, in place",
        "bfloat16, in place, lr 0": "bfloat16, in place, lr = 0",
    }
    found = {method: seeds for (_, method), seeds in runs.by_method(records).items()}
    spreads = [[runs.spread([r[what] for r in found[m]], "{:.3f}") for what in ("final_loss", "test_accuracy")] for m in named]
    return {"modes": rows([words, *shown] for words, shown in zip(named.values(), spreads))}


@claim("takes it from {before:.2f} to {best:.2f} with one seed and to {worst:.2f} with another.", "sixteen-bits.jsonl")
def drift_alone(records):
    seeds = records.of(candidate="bfloat16, in place, lr 0")
    ends = [r["final_loss"] for r in seeds]
    return {"before": seeds[0]["curve"][0][1], "best": min(ends), "worst": max(ends)}


@claim(
    """
of which the largest part of the model is {fp32:.0f} MB in float32 and {bf16:.0f} MB in bfloat16):

| | in place | streamed | copied, float32 | copied, their own dtype |
|---|---|---|---|---|
{costs}
    """,
    "modes-epyc-2cpu.jsonl",
)
def costs(records):
    steps, peaks = (by_dtype(records, suite) for suite in ("step", "memory"))
    lines = []
    for dtype, case in steps.items():
        times = [f"{case[m]['median_s'] / case[modes.OURS]['median_s']:.2f}" if m in case else "" for m in PLACES]
        lines.append([f"time of a step, {DTYPES[dtype]}", "1", *times[1:]])
    for dtype, case in peaks.items():
        more = [f"{case[m]['peak_over_forwards_bytes'] / 1e6:.0f} MB" if m in case else "" for m in PLACES]
        lines.append([f"memory, {DTYPES[dtype]}", *more])
    parts = {dtype: case[modes.OURS]["largest_part_bytes"] / 1e6 for dtype, case in peaks.items()}
    return parts | {"costs": rows(lines)}


def by_dtype(records, suite) -> dict:
    """dtype -> mode -> record, of SmolLM2."""
    cases = table.by_case(records.of(suite=suite, model=SMOLLM2))
    return dict(sorted(((case[modes.OURS]["dtype"], case) for case in cases), reverse=True))


@claim(
    "on a Llama of {model:.2f} GB in float32, whose largest part is {part:.2f} GB, 16 tokens. From a file the process held at most "
    "{file:.2f} GB of memory of its own, {libraries:.2f} of them libraries, and made {file_steps:.2f} steps a second; in memory "
    "{memory:.2f} GB and {memory_steps:.2f} steps. All losses and the digest of the weights are the same.",
    "offload-epyc-2cpu.jsonl",
)
def offloaded(records):
    file, memory = (records.one(candidate=place) for place in (offload.DISK, offload.MEMORY))
    if len({(r["digest"], tuple(r["losses"])) for r in records}) != 1:
        raise ValueError("losses or digests differ")
    return {
        "model": file["weights_bytes"] / 1e9,
        "part": file["largest_part_bytes"] / 1e9,
        "file": file["peak_anonymous_bytes"] / 1e9,
        "libraries": file["libraries_bytes"] / 1e9,
        "memory": memory["peak_anonymous_bytes"] / 1e9,
        "file_steps": file["steps_per_s"],
        "memory_steps": memory["steps_per_s"],
    }
