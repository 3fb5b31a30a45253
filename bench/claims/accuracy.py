"""docs/benchmarking.md: fine-tuning SmolLM2-135M by prompt, at equal queries and at equal seconds."""

from math import log
from statistics import mean

from .. import accuracy, parts, runs
from .claim import on, rows

FILE, RTE = "accuracy-smollm2.jsonl", "accuracy-smollm2-rte.jsonl"
HYBRID = "hybrid of MeZO and AdamW"
COLUMNS = "method", "lr", "rows", "queries", "runs", "loss", "accuracy", "equal seconds", "a query, ms", "GB"

claim = on("docs/benchmarking.md")


@claim(
    "| method | lr | rows a step | queries | seeds | validation loss | test accuracy | in MeZO's seconds | a query, ms | peak, GB |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n{table}",
    FILE,
)
def of_sst2(records):
    return {"table": table(records, COLUMNS)}


@claim(
    "| method | lr | rows a step | queries | seeds | validation loss | test accuracy |\n|---|---|---|---|---|---|---|\n{table}",
    RTE,
)
def of_rte(records):
    return {"table": table(records, COLUMNS[:7])}


def table(records, columns) -> str:
    order = {method: i for i, method in enumerate(accuracy.METHODS)}
    shown = sorted(runs.of_accuracy(records), key=lambda r: (order[r["method"]], int(r["queries"].replace(",", "")), float(r["lr"])))
    return rows([r[column] for column in columns] for r in shown)


@claim("Zero-shot it classifies {zero_shot:.3f} of the test rows correctly, with a validation loss of {before} over the seeds", RTE)
def untold(records):
    """The model before training, on the rows of each seed."""
    points = {r["seed"]: r["curve"][0] for r in records}
    (accuracy_before,) = {each["test_accuracy"] for each in points.values()}
    return {"zero_shot": accuracy_before, "before": runs.spread([each["validation_loss"] for each in points.values()], "{:.3f}")}


@claim("where guessing has {coin:.3f}; the lowest one of any run is {least:.3f}.", RTE)
def chance(records):
    return {"coin": log(2), "least": min(r["validation_loss"] for r in records)}


@claim("Zero-shot, the model classifies {zero_shot:.3f} of the test rows correctly.", FILE)
def zero_shot(records):
    (found,) = {r["curve"][0]["test_accuracy"] for r in records if r.get("searched") is False}
    return {"zero_shot": found}


def reached(records, method, queries, lr=None) -> list[float]:
    """Test accuracies of the seeds."""
    found = records.of(candidate=method, queries=queries, searched=False)
    return [r["test_accuracy"] for r in found if lr in (None, r["settings"]["lr"])]


@claim("| SmolLM2-135M, here, 16,000 queries | {mezo:.0f} | {svrg:.0f} | {sgd:.0f} |", FILE)
def beside_the_paper(records):
    def percent(method, queries):
        return 100 * mean(reached(records, method, queries))

    return {"mezo": percent("MeZO", 16_000), "svrg": percent("MeZO-SVRG", 16_000), "sgd": percent("SGD", 1_536)}


@claim(
    "to second order, {every:.3f} off the loss in a thousand queries where it moves every parameter, {middle:.3f} where",
    "parts-smollm2.jsonl",
)
def taken_off_the_loss(records):
    """By the best steps of MeZO after those of SGD."""
    found = records.of(steps=12)
    every, middle = parts.together(found), found.one(candidate="middle MLPs")
    return {"every": 1_000 * parts.lowered(every, 64), "middle": 1_000 * parts.lowered(middle, 64)}


@claim(
    "So forward passes alone end {short:.2f} below backpropagation in ten times its queries, and MeZO on those MLPs {long:.2f} below it in "
    "forty times as many,",
    FILE,
)
def behind(records):
    """The best of the methods that move every parameter, and MeZO on the middle MLPs."""
    backpropagation = mean(reached(records, "SGD", 1_536))
    every = (method for method in accuracy.METHODS if method != HYBRID and reached(records, method, 16_000))
    middle = mean(reached(records, "MeZO, middle MLPs", 64_000, 1e-3))
    return {"short": backpropagation - max(mean(reached(records, m, 16_000)) for m in every), "long": backpropagation - middle}


@claim("memory: SGD {sgd:.1f} times that of forward passes, the hybrid {hybrid:.1f} times, AdamW {adamw:.1f} times.", FILE)
def memory(records):
    peaks = {r["candidate"]: r["peak_bytes"] for r in records if r.get("peak_bytes")}
    return {name: peaks[method] / peaks["MeZO"] for name, method in (("sgd", "SGD"), ("hybrid", HYBRID), ("adamw", "AdamW"))}


@claim("gets as far as backpropagation, with its validation loss lowest after {queries:,} queries.", FILE)
def hybrids(records):
    (queries,) = {r["best_at"] for r in records.of(candidate=HYBRID, searched=False)}
    return {"queries": queries}
