"""Suite ``convergence``: the loss that MeZO, MeZO-SVRG and SGD by backpropagation reach with the same number of queries.

A query is the loss of one example, computed once. Backpropagation counts as one query an example, as in the paper's tables: what
it takes beyond the forward pass is not counted. That favours SGD, which is there as the bound.

Reference: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", section 4 and B.2.
"""

import itertools
import math
import time
import warnings

import torch

import zokern

from . import record
from .cases import MEZO, SGD, SVRG, Convergence
from .problems import maker

EPS = 1e-3
POINTS = 48  # of a curve, besides its two ends
SEARCH_SEED = 100  # settings are chosen on it, and it is none of those that are reported
DIVERGED = 100  # times the first loss


def mezo(problem, seed, lr):
    """One step on some rows; -> the queries that it took."""
    optimizer = zokern.MeZO(problem.params, lr=lr, eps=EPS, seed=seed)

    def step(rows):
        optimizer.step(lambda: problem.loss(rows))
        return 2 * len(rows)

    return step


def svrg(problem, seed, lr_full, lr, q):
    optimizer = zokern.MeZOSVRG(problem.params, lr=lr, lr_full=lr_full, q=q, eps=EPS, seed=seed)

    def step(rows):
        queries = 2 * problem.n if optimizer.full_batch_due else 4 * len(rows)
        optimizer.step(lambda: problem.loss(rows), problem.loss)
        return queries

    return step


def sgd(problem, seed, lr):
    optimizer = torch.optim.SGD(problem.params, lr=lr)

    def step(rows):
        optimizer.zero_grad()
        problem.loss(rows).backward()
        optimizer.step()
        return len(rows)

    return step


METHODS = {MEZO: mezo, SVRG: svrg, SGD: sgd}


def measure(case: Convergence, device) -> list[dict]:
    """Choose each method's settings where there is a choice, then run it with every seed. -> records, one a run."""
    make, records = maker(case.problem, device, case.data), []
    for method, grid in case.grid.items():
        settings = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
        searched = [run(case, make, method, s, SEARCH_SEED, device) for s in settings] if len(settings) > 1 else []
        if searched:
            settings = [min(searched, key=lambda r: math.inf if r["final_loss"] is None else r["final_loss"])["settings"]]
        records += [r | {"searched": True} for r in searched]
        records += [run(case, make, method, settings[0], seed, device) for seed in case.seeds]
    return records


def run(case, make, method, settings, seed, device) -> dict:
    """One run, its curve told at numbers of queries that grow by a constant factor. A run that has diverged ends early."""
    problem, allowed = make(seed), case.queries[method]
    step = METHODS[method](problem, seed, **settings)
    first = float(problem.loss().detach())
    curve, queries, steps, begin = [(0, first)], 0, 0, time.perf_counter()
    marks = iter([round(allowed ** (k / POINTS)) for k in range(POINTS + 1)])
    mark = next(marks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a loss that is not finite: the run ends at the next mark
        for rows in batches(problem.n, case.batch, seed):
            queries += step(rows)
            steps += 1
            if queries >= mark:
                curve.append((queries, float(problem.loss().detach())))
                mark = next((m for m in marks if m > queries), math.inf)
            if queries >= allowed or not curve[-1][1] < DIVERGED * first:
                break
    diverged = not curve[-1][1] < DIVERGED * first
    return {
        **dict.fromkeys(record.FIELDS),
        "suite": "convergence",
        "op": case.problem,
        "candidate": method,
        **record.backend(device, method != SGD),
        "dtype": "fp32",
        "n": sum(p.numel() for p in problem.params),
        "threads": torch.get_num_threads(),
        "examples": problem.n,
        "batch": case.batch,
        "settings": settings,
        "eps": None if method == SGD else EPS,
        "seed": seed,
        "searched": False,
        "queries": queries,
        "steps": steps,
        "seconds": time.perf_counter() - begin,
        "curve": [(q, loss if math.isfinite(loss) else None) for q, loss in curve],
        "final_loss": None if diverged else curve[-1][1],
        "optimum": problem.optimum,
        **problem.figures(),
        **record.where(device),
    }


def batches(n, size, seed):
    """Endless minibatches of row numbers: each epoch in an order of its own, its incomplete last batch left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from (order[i : i + size] for i in range(0, n - size + 1, size))
