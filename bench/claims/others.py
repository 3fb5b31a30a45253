"""The pages that say one or two things that were measured."""

import math

from ..cases import FULL, LEAN
from .benchmarking_cpu import beyond_weights
from .claim import on


@on("docs/noise_spec.md")(
    "(../bench/results/randomness-spec2.jsonl): {tests} p-values, the smallest {least:.3f}). Twice {normals} normals pass "
    "Kolmogorov-Smirnov and chi-square of {bins:,} bins against N(0, 1), tail counts at 3, 4 and 5 sigma are within {tails} % of exact, "
    "as chance has them; twice {signs} signs,",
    "randomness-spec2.jsonl",
)
def statistics(records):
    (bins,) = {int(r["test"].split()[-2]) for r in records if "chi-square" in r["test"]}
    figures = {"tests": len(records), "least": min(r["p"] for r in records), "bins": bins}
    for name, test in (("normals", "normals of one key: Kolmogorov-Smirnov"), ("signs", "signs of one key: words of 16")):
        figures[name] = f"{records.one(test=test)['n']:.0e}".replace("e+", "e")
    within = []  # rounded up
    for sigma, parts in ((3, 100), (4, 10), (5, 10)):
        off = max(abs(r["found"] / r["expected"] - 1) for r in records if r["test"].endswith(f"beyond {sigma} sigma"))
        within.append(math.ceil(100 * off * parts) / parts)
    return figures | {"tails": "{:g}, {:g} and {:g}".format(*within)}


@on("docs/noise_spec.md")("the first four elements of {keys:.1f} million keys in a row", "randomness-spec2.jsonl")
def many_keys(records):
    (elements,) = {r["n"] for r in records if r["test"].startswith("four of each key") and "Kolmogorov" in r["test"]}
    return {"keys": elements / 4 / 1e6}


@on("docs/trajectories.md")(
    "Two-point MeZO takes about {bytes:.0f} bytes a step, 20,000 steps {megabytes:.1f} MB, whatever the size of the model",
    "finetune-text.jsonl",
)
def size_of_a_log(records):
    sizes = [r["trajectory_bytes"] / 4000 for r in records if r["settings"]["optimizer"] == "mezo" and r["settings"]["steps"] == 4000]
    return {"bytes": max(sizes), "megabytes": 20_000 * max(sizes) / 1e6}


@on("docs/tasks.md")(
    "OPT-125M's shape, 8 times 256 tokens, float32: {lean:.0f} MB beyond the weights instead of {full:.0f}, counted",
    "xeon-2cpu.jsonl",
)
def lean_loss(records):
    records = records.of(dtype="fp32", model="OPT-125M", batch=8, tokens=256)
    return {name: beyond_weights(records.one(candidate=candidate)) for name, candidate in (("lean", LEAN), ("full", FULL))}
