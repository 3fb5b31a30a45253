"""Suite ``convergence``: how MeZO's best learning rate, and its slow-down against gradient descent, follow the effective rank.

f(x) = x^T A x / 2, x in R^100, with eigenvalues i^-alpha; the effective rank is trace(A) / lambda_max = trace(A).

Reference: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes": the figure of the toy target function.
"""

import math
import statistics
import warnings

import torch

import zokern

from . import record
from .cases import MEZO, EffectiveRank
from .convergence import EPS, POINTS

GD = "gradient descent"
DIMENSIONS = 100
DIVERGED = 100  # times the first loss


def measure(case: EffectiveRank, device) -> list[dict]:
    """Steps to the tolerance with each learning rate of a grid, from the largest down to one twice as slow as the best. -> records."""
    eigenvalues = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64, device=device) ** -case.alpha
    records = []
    for method in (MEZO, GD):
        tried, best = [], case.limit
        for lr in case.rates:
            runs = [steps(method, eigenvalues, lr, seed, case.tolerance, min(case.limit, 2 * best)) for seed in case.seeds]
            taken, curves = zip(*runs)
            # More than half of the runs must arrive.
            middle = statistics.median(math.inf if s is None else s for s in taken)
            tried.append({"lr": lr, "median_steps": middle if middle < math.inf else None, "steps": taken, "curve": curves[0]})
            if middle >= 2 * best and best < case.limit:
                break
            best = min(best, middle)
        found = [t for t in tried if t["median_steps"]]
        chosen = min(found, key=lambda t: t["median_steps"]) if found else None
        records += [
            {
                **dict.fromkeys(record.FIELDS),
                "suite": "convergence",
                "op": "effective rank",
                "candidate": method,
                **record.backend(device, method == MEZO),
                "dtype": "fp32",
                "n": DIMENSIONS,
                "threads": torch.get_num_threads(),
                "alpha": case.alpha,
                "effective_rank": float(eigenvalues.sum() / eigenvalues.max()),
                "tolerance": case.tolerance,
                "seeds": case.seeds,
                **t,
                "best": t is chosen,
                "curve": t["curve"] if t is chosen else None,
                **record.where(device),
            }
            for t in tried
        ]
    return records


def steps(method, eigenvalues, lr, seed, tolerance, limit):
    """-> (steps until f <= tolerance, None where it was not reached; the curve of (step, f), thinned)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.Parameter(torch.randn(DIMENSIONS, generator=generator).to(eigenvalues.device))

    def f():
        return (eigenvalues * x.double().square()).sum() / 2

    if method == MEZO:
        optimizer = zokern.MeZO([x], lr=lr, eps=EPS, seed=seed)
        step = lambda: optimizer.step(f)  # noqa: E731
    else:
        optimizer = torch.optim.SGD([x], lr=lr)

        def step():
            optimizer.zero_grad()
            f().backward()
            optimizer.step()

    losses = [float(f().detach())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        while tolerance < losses[-1] < DIVERGED * losses[0] and len(losses) <= limit:
            step()
            losses.append(float(f().detach()))
    last = len(losses) - 1
    kept = sorted({round(k * last / POINTS) for k in range(POINTS + 1)})
    return (last if losses[-1] <= tolerance else None), [(k, losses[k]) for k in kept]
