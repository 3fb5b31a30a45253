"""Suite ``parts``: in which part of SmolLM2-135M a forward pass teaches the most about SST-2.

g is the part's gradient of all rows, V the variance of a row's, summed over its parameters, T the trace of its Hessian. To second order a
step of MeZO on B rows that moves this part alone lowers the loss at best by |g|^4 / (2 T (|g|^2 + V / B)), for 2 B queries, with a learning
rate of |g|^2 / (T (|g|^2 + V / B)). g and V are measured by backpropagation, before anything is trained and after some steps of it; T by
forward passes alone: E[L(theta + eps z) + L(theta - eps z) - 2 L(theta)] = eps^2 T. A T that is not positive says nothing of a step.

Reference: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", section 4.
"""

import math
import statistics
from dataclasses import dataclass

import torch

import zokern

from . import methods, models, problems, record, smollm2, variance
from .convergence import batches

NORM = 4.0  # eps times the root of the number of parameters: each part is moved as far


@dataclass(frozen=True)
class Parts:
    """``steps``: of SGD on ``batch`` rows before each measurement, whose ``lr`` falls to 0 before the last; T is the mean over
    ``directions``, of ``rows``."""

    problem: str = variance.SMOLLM2
    batch: int = 16
    lr: float = 3e-3
    steps: tuple[int, ...] = (0, 12)
    directions: int = 4
    rows: int = 64
    data: str | None = None


def cases(quick=False, data=None) -> list[Parts]:
    return [Parts(steps=(0, 1), directions=2, rows=16, data=data) if quick else Parts(data=data)]


def missing(case: Parts) -> str:
    """Why the case cannot be measured here; "" where it can."""
    return models.missing(smollm2.NAME) or problems.no_data(case.data)


def measure(case: Parts, device) -> list[dict]:
    """-> a record each part and time."""
    problem = methods.Pretrained(0, device, case.data)
    optimizer, drawn = torch.optim.SGD(problem.params, lr=case.lr), batches(problem.n, case.batch, 0)
    records, made = [], 0
    for steps in case.steps:
        while made < steps:
            optimizer.param_groups[0]["lr"] = case.lr * (1 - made / case.steps[-1])
            for p, g in zip(problem.params, variance.gradients(problem, next(drawn))):
                p.grad = g
            optimizer.step()
            optimizer.zero_grad()
            made += 1
        held_out, moments = problem.judged(), variance.moments_by_parameter(problem, case.batch)
        of = dict(zip(problem.params, moments))
        for name, params in parts(problem.model).items():
            squares, variances = zip(*(of[p] for p in params))
            traces = curvature(problem, params, case)
            records.append(
                dict.fromkeys(record.FIELDS)
                | {"suite": "parts", "op": case.problem, "candidate": name, **record.backend(device, True), "dtype": "fp32"}
                | {"n": sum(p.numel() for p in params), "threads": torch.get_num_threads(), "examples": problem.n}
                | {"batch": case.batch, "settings": {"lr": case.lr}, "steps": steps, "held_out_loss": held_out}
                | {"gradient_square": sum(squares), "row_variance": sum(variances)}
                | {"trace": statistics.mean(traces), "trace_error": statistics.stdev(traces) / math.sqrt(len(traces))}
                | {"directions": case.directions, "rows": case.rows}
                | record.where(device)
            )
    return records


def parts(model) -> dict[str, list[torch.nn.Parameter]]:
    """All parameters, each in one part: the matrices of attention and of the MLPs in the lower, middle and upper third of the blocks."""
    found, made = zokern.layers(model), {}
    third = len(found.modules) // 3
    for number, block in enumerate(found.modules):
        depth = "lower" if number < third else "middle" if number < len(found.modules) - third else "upper"
        for name, p in block.named_parameters():
            part = "norms" if p.ndim < 2 else f"{depth} attention" if "attn" in name else f"{depth} MLPs"
            made.setdefault(part, []).append(p)
    return {"embeddings": found.embeddings} | {name: made[name] for name in sorted(made)} | {"head": found.head}


def curvature(problem, params, case: Parts) -> list[float]:
    """An estimate of T a direction."""
    eps = NORM / math.sqrt(sum(p.numel() for p in params))
    chunks = torch.arange(case.rows).split(case.batch)

    @torch.no_grad()
    def loss():
        return torch.stack([problem.loss(rows) for rows in chunks]).mean()

    optimizer, between, found = zokern.MeZO(params, lr=0.0, eps=eps), float(loss()), []
    for _ in range(case.directions):
        optimizer.step(loss)
        found.append((sum(map(float, optimizer.last.losses)) - 2 * between) / eps**2)
    return found


def together(records) -> dict:
    """Of all parts at once: n, |g|^2, V and T are sums."""
    return {"candidate": "every parameter"} | {
        name: sum(r[name] for r in records) for name in ("n", "gradient_square", "row_variance", "trace")
    }


def rate(r: dict, batch: int) -> float:
    """The learning rate that does it."""
    return r["gradient_square"] / (r["trace"] * (r["gradient_square"] + r["row_variance"] / batch))


def lowered(r: dict, batch: int) -> float:
    """What a query lowers the loss by, at best, with ``batch`` rows a step."""
    return rate(r, batch) * r["gradient_square"] / (4 * batch)
