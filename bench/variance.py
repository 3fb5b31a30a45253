"""Suite ``variance``: how much of a minibatch's gradient is noise along a run of MeZO, or of backpropagation to where forward passes do not
get, and whether an anchor of MeZO-SVRG can pay for it.

g is the gradient of all n rows, V the variance of a row's gradient, summed over the parameters, T the trace of the Hessian. To second
order:

- a step of MeZO on B rows lowers the loss at best by |g|^4 / (2 T (|g|^2 + V / B)), for 2 B queries;
- from one anchor to the next, MeZO-SVRG moves along one direction measured on all rows, at best by |g|^2 / (2 T), and along q - 1 others by
  what minibatch gradients have changed by since the anchor, which is next to nothing; for 2 n + 4 B (q - 1) queries.

So an anchor can pay only where V / |g|^2 > n + (2 q - 3) B. With anchors of N < n rows the loss falls by |g|^4 / (2 T (|g|^2 + V / N)) at
best, which never pays for N >= B. g and V are measured here, by backpropagation, and so is what is left of V in the differences from the
anchor.

Reference: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", Algorithm 1.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import zokern

from . import methods, models, problems, record, smollm2
from .convergence import EPS, batches

MEZO, ADAMW = "MeZO", "AdamW"
SMOLLM2 = f"{smollm2.NAME}, SST-2"
PROBLEMS = {
    "digits": problems.Digits,
    "MiniLM, SST-2": problems.MiniLM,
    "MiniLM, every parameter": problems.WholeMiniLM,
    SMOLLM2: methods.Pretrained,
}


@dataclass(frozen=True)
class Variance:
    """``steps``: on ``batch`` rows before each measurement, ``by`` MeZO or AdamW; ``part``: rows whose gradients are taken together."""

    problem: str
    batch: int
    lr: float
    steps: tuple[int, ...]
    part: int = 16
    data: str | None = None
    by: str = MEZO


def cases(quick=False, data=None) -> list[Variance]:
    if quick:
        return [Variance("digits", 64, 1e-3, (0, 2), 128), Variance("digits", 64, 1e-2, (8,), 128, by=ADAMW)]
    return [
        Variance("digits", 64, 2e-3, (0, 1_000, 10_000, 30_000)),
        Variance("MiniLM, SST-2", 64, 1e-3, (0, 1_000, 4_000, 16_000), data=data),
        Variance("MiniLM, every parameter", 16, 1e-4, (0, 200, 800), data=data),
        Variance("MiniLM, every parameter", 16, 3e-5, (32, 64, 96, 128, 192, 256), data=data, by=ADAMW),
        Variance(SMOLLM2, 16, 3e-5, (0, 100, 400), data=data),
    ]


def missing(case: Variance) -> str:
    """Why the case cannot be measured here; "" where it can."""
    if case.problem == SMOLLM2:
        return models.missing(smollm2.NAME) or problems.no_data(case.data)
    return problems.missing("MiniLM, SST-2" if "MiniLM" in case.problem else case.problem, case.data)


def measure(case: Variance, device) -> list[dict]:
    """-> a record each time, the differences being from the weights one step before."""
    data = {} if case.problem == "digits" else {"data": Path(case.data)}
    problem = PROBLEMS[case.problem](0, device=device, **data)
    step, rows = stepper(case, problem), batches(problem.n, case.batch, 0)
    records, before, made = [], None, 0
    for steps in case.steps:
        while made < steps:
            made += 1
            before = [p.detach().clone() for p in problem.params] if made == steps else None
            step(next(rows))
        square, variance = moments(problem, case.part)
        changed = moments(problem, case.part, before) if before else (None, None)
        records.append(
            dict.fromkeys(record.FIELDS)
            | {"suite": "variance", "op": case.problem, "candidate": case.by, **record.backend(device, case.by == MEZO), "dtype": "fp32"}
            | {"n": sum(p.numel() for p in problem.params), "threads": torch.get_num_threads(), "examples": problem.n}
            | {"batch": case.batch, "settings": {"lr": case.lr}, "eps": EPS if case.by == MEZO else None, "steps": steps}
            | {"loss": all_rows(problem, case.part)}
            | {"gradient_square": square, "row_variance": variance, "noise_rows": variance / square}
            | {"changed_square": changed[0], "changed_variance": changed[1]}
            | record.where(device)
        )
    return records


def stepper(case: Variance, problem):
    """rows -> a step on them."""
    if case.by == MEZO:
        optimizer = zokern.MeZO(problem.params, lr=case.lr, eps=EPS)
        return lambda rows: optimizer.step(partial(problem.loss, rows))
    optimizer = torch.optim.AdamW(problem.params, lr=case.lr)

    def step(rows):
        for p, gradient in zip(problem.params, gradients(problem, rows)):
            p.grad = gradient
        optimizer.step()

    return step


@torch.no_grad()
def all_rows(problem, size) -> float:
    """The loss of all rows."""
    return sum(float(problem.loss(rows)) * len(rows) for rows in torch.arange(problem.n).split(size)) / problem.n


def moments(problem, size, before=None) -> tuple[float, float]:
    """|g|^2 and V, from the gradients of all rows, ``size`` at a time; with weights ``before``, those of what each has changed by since."""
    squares, variances = zip(*moments_by_parameter(problem, size, before))
    return sum(squares), sum(variances)


def moments_by_parameter(problem, size, before=None) -> list[tuple[float, float]]:
    params, parts = problem.params, torch.randperm(problem.n, generator=torch.Generator().manual_seed(0)).split(size)
    parts = [part for part in parts if len(part) == size]
    now, mean, squares = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params], [0.0] * len(params)
    for part in parts:
        gradient = gradients(problem, part)
        if before is not None:
            put(params, before)
            gradient = [here - there for here, there in zip(gradient, gradients(problem, part))]
            put(params, now)
        squares = [kept + square(g) for kept, g in zip(squares, gradient)]
        for kept, g in zip(mean, gradient):
            kept += g / len(parts)
    of_mean = map(square, mean)
    return [(m, size * (s - len(parts) * m) / (len(parts) - 1)) for m, s in zip(of_mean, squares)]


def gradients(problem, rows) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(problem.loss(rows), problem.params, allow_unused=True, materialize_grads=True)


def square(tensor) -> float:
    return float(tensor.double().square().sum())


@torch.no_grad()
def put(params, values):
    for p, value in zip(params, values):
        p.copy_(value)
