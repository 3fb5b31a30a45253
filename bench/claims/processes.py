"""docs/benchmarking.md: what two processes that share out the points of a step bring."""

from .. import plot
from ..processes import DIRECTIONS, HALVES, ONE, SIDES, TWO, WAYS
from .claim import on, rows

claim = on("docs/benchmarking.md")
FILE = "processes-smollm2.jsonl"


@claim(
    "SmolLM2-135M in float32, {batch} rows of {tokens} tokens, one thread a process: q = 2 on two processes takes {directions:.2f} times "
    "as long as q = 1 on one, q = 2 on one {two:.2f} times. q = 1 takes {sides:.2f} times as long where each of two processes measures one "
    "of the two sides, and {halves:.2f} times where each has half of the batch.",
    FILE,
)
def times(records):
    over = {name: records.one(candidate=name)["over_one"] for name in WAYS}
    one = records.one(candidate=ONE)
    figures = {"batch": one["batch"], "tokens": one["tokens"]}
    return figures | {"directions": over[DIRECTIONS], "two": over[TWO], "sides": over[SIDES], "halves": over[HALVES]}


@claim(
    "A process sends {directions} bytes a step with a direction each, {sides} with a side each and {halves} with half of the batch each, "
    "and receives as many: its losses and their weight, to which gloo and TCP add their own. After {steps} steps both have the same "
    "weights, and with the whole batch each those of one process, bit for bit.",
    FILE,
)
def exchanged(records):
    found = {name: records.one(candidate=name) for name in WAYS}
    assert all(r["equal_weights"] and r["sent_bytes"] == r["received_bytes"] for r in found.values())
    assert all(r["equal_to_one"] for name, r in found.items() if name != HALVES)
    sent = {name: r["sent_bytes"] for name, r in found.items()}
    steps = found[ONE]["warm"] + found[ONE]["rounds"]
    return {"directions": sent[DIRECTIONS], "sides": sent[SIDES], "halves": sent[HALVES], "steps": steps}


@claim(
    "With a direction each, {forward:.0%} of a step is forward passes and {passes:.1%} passes over the weights; the collective takes "
    "{collective:.2f} ms, and one process waits {waiting:.1%} of a step for the other.",
    FILE,
)
def parts(records):
    r = records.one(candidate=DIRECTIONS)
    shares = {name: r[f"{name}_s"] / r["median_s"] for name in ("forward", "passes", "waiting")}
    return shares | {"collective": r["collective_s"] * 1e3}


@claim(
    "| | a step, s | over q = 1 on one | forward passes, s | passes over the weights, s | the collective, ms | waiting for the other, s |\n"
    "|---|---|---|---|---|---|---|\n{table}\n\n{machine}",
    FILE,
)
def table(records):
    return {"table": rows(map(row, (records.one(candidate=name) for name in WAYS))), "machine": plot.measured(records)}


def row(r) -> list[str]:
    told = [r["candidate"], f"{r['median_s']:.2f}", f"{r['over_one']:.2f}", f"{r['forward_s']:.2f}", f"{r['passes_s']:.2f}"]
    return told + ([f"{r['collective_s'] * 1e3:.2f}", f"{r['waiting_s']:.2f}"] if r["processes"] > 1 else ["", ""])
