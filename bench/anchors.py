"""Suite ``anchors``: where MeZO-SVRG pays, on MiniLM with every parameter: what it takes off the loss beside MeZO with the same number of
queries, by the rows of an anchor, the steps between anchors, the ratio of its learning rates, annealing, and the dtype; and what suite
``variance`` lets one expect.

Each variant's learning rate is found by ``search.walk`` with the mean over all seeds: where most of a run is a handful of directions, one
seed says too little. A variant is a case, and one that the file of records holds is not made again.

Reference: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", Algorithms 1 and 4.
"""

import json
import math
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import zokern

from . import problems, record, search
from .convergence import EPS, batches

PROBLEM = "MiniLM, every parameter"
QUERIES = 12_800  # ten times those of an anchor on all rows, with the step after it
KAPPA, ALPHA = 1.05, 5.0  # of annealing


@dataclass(frozen=True)
class Variant:
    """``anchors``: rows of a full batch, 0 of MeZO; ``ratio``: lr_full over lr; ``annealing``: Algorithm 4, which divides the learning
    rates by 5 where the mean loss of an epoch is above 1.05 times that of the one before."""

    anchors: int = 0
    q: int = 2
    ratio: float = 10.0
    annealing: bool = False
    dtype: str = "fp32"
    batch: int = 64

    def __str__(self) -> str:
        if not self.anchors:
            return f"MeZO, {self.batch} rows" + f", {self.dtype}" * (self.dtype != "fp32")
        more = ", annealing" * self.annealing + f", {self.dtype}" * (self.dtype != "fp32")
        return f"MeZO-SVRG, {self.anchors} rows, q {self.q}, lr_full {self.ratio:g} lr{more}"


ALL = 512
VARIANTS = (
    Variant(),
    Variant(batch=ALL),
    *(Variant(anchors) for anchors in (64, 128, 256, ALL)),
    *(Variant(ALL, q=q) for q in (5, 10)),
    *(Variant(ALL, ratio=ratio) for ratio in (1, 100)),
    Variant(ALL, annealing=True),
    Variant(dtype="bf16"),
    Variant(ALL, dtype="bf16"),
)


@dataclass(frozen=True)
class Anchored:
    """A variant, and ``queries`` of a run."""

    variant: Variant
    queries: int
    seeds: tuple[int, ...]
    begin: float
    data: str | None = None
    examples: int = ALL


def cases(quick=False, data=None) -> list[Anchored]:
    if quick:
        few = Variant(), Variant(8, annealing=True), Variant(8, q=3, ratio=1, dtype="bf16")
        return [Anchored(Variant(**{**asdict(each), "batch": 4}), 96, (0,), 1e-4, data, 16) for each in few]
    return [Anchored(each, QUERIES, (0, 1, 2), float(f"{1e-2 / each.ratio if each.anchors else 3e-3:g}"), data) for each in VARIANTS]


def missing(case: Anchored, out: Path) -> str:
    """Why the case cannot be measured here, or need not, being in the file of records; "" where it can."""
    records = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    wanted = {"suite": "anchors", "candidate": str(case.variant), "queries": case.queries, "batch": case.variant.batch}
    if any(not r.get("error") and wanted.items() <= r.items() for r in records):
        return f"{out} has {case.variant}"
    return problems.missing("MiniLM, SST-2", case.data)


def measure(case: Anchored, device) -> list[dict]:
    """-> records: of each learning rate that was tried, one a seed; ``best`` are those of the best one."""
    tried: dict[float, list[dict]] = {}

    def loss_at(lr):
        tried[lr] = [run(case, lr, seed, device) for seed in case.seeds]
        losses = [r["final_loss"] for r in tried[lr]]
        return None if None in losses else statistics.mean(losses)

    best = search.walk(case.begin, loss_at)
    return [r | {"best": lr == best} for lr in sorted(tried) for r in tried[lr]]


def run(case: Anchored, lr, seed, device) -> dict:
    """One run."""
    variant = case.variant
    problem = problems.WholeMiniLM(seed, device, case.data, case.examples)
    if variant.dtype == "bf16":
        problem.model.bfloat16()
    optimizer = made(variant, problem, lr, seed)
    anchors = batches(problem.n, variant.anchors, seed) if variant.anchors else None
    before, losses, queries, steps, seconds = float(problem.mean_loss()), [], 0, 0, 0.0
    annealed = Annealing(problem.n // variant.batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a loss that is not finite
        for rows in batches(problem.n, variant.batch, seed):
            begin = time.perf_counter()
            if anchors and optimizer.full_batch_due:
                every = next(anchors)
                losses.append(float(optimizer.step(lambda: problem.loss(rows), lambda: problem.mean_loss(every))))  # noqa: B023
                queries += 2 * len(every)
            else:
                losses.append(float(optimizer.step(lambda: problem.loss(rows))))  # noqa: B023
                queries += optimizer.forwards * len(rows)
            if variant.annealing and annealed(losses):
                for group in optimizer.param_groups:
                    group.update({name: group[name] / ALPHA for name in ("lr", "lr_full")})
            seconds, steps = seconds + time.perf_counter() - begin, steps + 1
            if queries >= case.queries:
                break
    last = float(problem.mean_loss())
    return {
        **dict.fromkeys(record.FIELDS),
        "suite": "anchors",
        "op": PROBLEM,
        "candidate": str(variant),
        **record.backend(device, True),
        **asdict(variant),
        "n": sum(p.numel() for p in problem.params),
        "threads": torch.get_num_threads(),
        "examples": problem.n,
        "settings": {"lr": lr},
        "eps": EPS,
        "seed": seed,
        "queries": case.queries,
        "queries_made": queries,
        "steps": steps,
        "seconds": seconds,
        "loss_before": before,
        "final_loss": last if math.isfinite(last) else None,
        **problem.figures(),
        **record.where(device),
    }


def made(variant: Variant, problem, lr, seed):
    common = dict(lr=lr, eps=EPS, seed=seed, perturbation=zokern.Copied() if variant.dtype == "bf16" else None)
    if not variant.anchors:
        return zokern.MeZO(problem.params, **common)
    return zokern.MeZOSVRG(problem.params, lr_full=variant.ratio * lr, q=variant.q, **common)


def expected(variant: Variant, n: int, noise: float) -> float:
    """Lowering of the loss a query, to second order at the best learning rate, in units that all variants share (``variance`` has why);
    rows are drawn without putting back, so that a minibatch of all has no noise.

    Args:
        n: training rows.
        noise: V / |g|^2, in rows.
    """
    drawn = variant.anchors or variant.batch
    queries = 2 * drawn + (4 * variant.batch * (variant.q - 1) if variant.anchors else 0)
    return 1 / (queries * (1 + noise * (1 / drawn - 1 / n)))


class Annealing:
    """Algorithm 4, over the losses of all steps so far: is the mean of the last epoch's above KAPPA times that of the one before?"""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def __call__(self, losses) -> bool:
        if len(losses) < 2 * self.epoch or len(losses) % self.epoch:
            return False
        now, before = losses[-self.epoch :], losses[-2 * self.epoch : -self.epoch]
        return statistics.mean(now) > KAPPA * statistics.mean(before)
