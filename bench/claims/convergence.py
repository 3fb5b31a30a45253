"""docs/convergence.md."""

from statistics import mean, stdev

from .. import runs
from ..cases import MEZO
from .claim import on

claim = on("docs/convergence.md")
SVRG, SGD = "zokern.MeZOSVRG", "torch.optim.SGD"


def loss(records, problem, method, digits) -> str:
    """Mean and standard deviation over the seeds, above the optimum where that is known."""
    found = runs.by_method(records)[problem, method]
    return runs.spread([r["final_loss"] - (r["optimum"] or 0) for r in found], f"{{:.{digits}f}}")


def mean_loss(*given) -> str:
    return loss(*given).partition(" ")[0]


def queries(records, problem, method) -> str:
    return f"{runs.by_method(records)[problem, method][0]['queries'] / 1e6:.2g}M"


@claim(
    """
| final training loss | MeZO | MeZO-SVRG | SGD |
|---|---|---|---|
| least squares (MeZO-SVRG, B.2, its settings), above the optimum | {squares} after {squares_n} queries, flat since {flat:.2f}M | {squares_svrg} after {squares_svrg_n}, still falling | {squares_sgd} after {squares_sgd_n} |
| digits, MLP of {parameters:,} parameters | {digits} after {digits_n} | {digits_svrg} after {digits_svrg_n} | {digits_sgd} after {digits_sgd_n} |
| SST-2, pooler and head of MiniLM on 512 examples | {minilm} after {minilm_n} | {minilm_svrg} after {minilm_svrg_n} | {minilm_sgd} after {minilm_sgd_n} |
    """,  # noqa: E501
    "convergence.jsonl",
)
def final_losses(records):
    figures = {"parameters": records.of(op="digits")[0]["n"]}
    problems = {"squares": ("least squares", 2, 3), "digits": ("digits", 2, 2), "minilm": ("MiniLM, SST-2", 3, 3)}
    for name, (problem, digits, digits_svrg) in problems.items():
        figures[name] = loss(records, problem, MEZO, digits)
        figures[f"{name}_svrg"] = loss(records, problem, SVRG, digits_svrg)
        figures |= {f"{name}{of}_n": queries(records, problem, method) for of, method in (("", MEZO), ("_svrg", SVRG), ("_sgd", SGD))}
    figures["squares_sgd"] = mean_loss(records, "least squares", SGD, 5)
    figures["digits_sgd"] = mean_loss(records, "digits", SGD, 4)
    return figures | {"minilm_sgd": loss(records, "MiniLM, SST-2", SGD, 3), "flat": flat_since(records, "least squares", MEZO) / 1e6}


def flat_since(records, problem, method) -> int:
    """The queries from which on the mean loss stays as near to its end as the seeds are to each other."""
    curves = [r["curve"] for r in runs.by_method(records)[problem, method]]
    ends = [curve[-1][1] for curve in curves]
    points = [(points[0][0], mean(loss for _, loss in points)) for points in zip(*curves)]
    return next(points[k][0] for k in range(len(points)) if all(abs(loss - mean(ends)) < stdev(ends) for _, loss in points[k:]))


@claim("on digits MeZO takes {mezo:,} steps where MeZO-SVRG takes {svrg:,};", "convergence.jsonl")
def steps_on_digits(records):
    return {name: runs.by_method(records)["digits", method][0]["steps"] for name, method in (("mezo", MEZO), ("svrg", SVRG))}


@claim(
    "the best 1/lr of MeZO follows trace(A) / lambda_max, {inverses} at ranks {ranks}, and the slow-down against gradient descent grows "
    "with it, {least:.1f} to {most:.0f}.",
    "convergence.jsonl",
)
def effective_rank(records):
    shown = sorted(runs.of_effective_rank(records), key=lambda r: float(r["effective rank"]))
    slower = [runs.slow_down(case) for case in runs.by_alpha(records).values()]
    inverses, ranks = (", ".join(r[name] for r in shown) for name in ("1/lr", "effective rank"))
    return {"inverses": inverses, "ranks": ranks, "least": min(slower), "most": max(slower)}
