"""Suite ``methods``: MeZO, ZO-Adam, MEAZO, FZOO, AdaMeZO and evolution strategies beside each other, at equal numbers of forward passes, on
the classification problems of suite ``convergence``: MiniLM's last layers, and every parameter of SmolLM2-135M.

Each method's learning rate is the one with the lowest loss after a share of the forward passes, on a seed of its own: of 1, 3, 10, 30 ...
those around a first guess, and on until both neighbours of the best are worse. A method on a problem is a case, and one that the file of
records holds is not made again. Steps of a method with more forward passes are fewer.
"""

import json
import math
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import zokern

from . import models, problems, record, search, smollm2
from .convergence import EPS, SEARCH_SEED, batches
from .precision import AT_ONCE, EXAMPLES, JUDGED_BY

MINILM, SMOLLM2 = "MiniLM, SST-2", f"{smollm2.NAME}, SST-2"
POINTS = 20  # of a curve, besides its first one
# How each is made, and the learning rates that the search begins at: of MiniLM, of SmolLM2.
METHODS = {
    "MeZO": (zokern.MeZO, 1e-3, 3e-5),
    "ZO-Adam": (zokern.ZOAdam, 3e-3, 1e-3),
    "MEAZO": (zokern.MEAZO, 3e-3, 3e-4),
    "FZOO, q = 8": (zokern.FZOO, 1e-2, 3e-3),
    "AdaMeZO, 20 steps": (zokern.AdaMeZO, 3e-3, 1e-3),
    "ES, 16 mirrored": (partial(zokern.EvolutionStrategies, population=16, mirrored=True), 1e-2, 1e-3),
}


@dataclass(frozen=True)
class Method:
    """``forwards`` of ``batch`` rows, of which a search for lr takes ``searched``."""

    problem: str
    candidate: str
    batch: int
    forwards: int
    searched: int
    seeds: tuple[int, ...]
    data: str | None = None


def cases(quick=False, data=None) -> list[Method]:
    if quick:
        return [Method(problem, name, 4, 36, 36, (0,), data) for problem in (MINILM, SMOLLM2) for name in METHODS]
    minilm = [Method(MINILM, name, 64, 8_000, 8_000, (0, 1, 2), data) for name in METHODS]
    return minilm + [Method(SMOLLM2, name, 8, 400, 120, (0, 1, 2), data) for name in METHODS]


def missing(case: Method, out: Path) -> str:
    """Why the case cannot be measured here, or need not, being in the file of records; "" where it can."""
    records = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    wanted = {"suite": "methods", "op": case.problem, "candidate": case.candidate, "forwards": case.forwards, "batch": case.batch}
    if any(not r.get("error") and wanted.items() <= r.items() for r in records):
        return f"{out} has {case.candidate}"
    return models.missing(smollm2.NAME) if case.problem == SMOLLM2 else problems.missing(MINILM, case.data)


class Pretrained:
    """Every parameter of SmolLM2-135M, by the prompt of MeZO's paper: the rows of suite ``convergence``."""

    def __init__(self, seed, device, data):
        self.model, self.reader = models.build(smollm2.NAME, "fp32", device), smollm2.reader(64)
        self.params = list(self.model.parameters())
        rows = self.reader.task.load(f"{data}/train.tsv")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        chosen = order[:EXAMPLES], order[EXAMPLES:][:JUDGED_BY]
        self.rows, self.held_out = ([self.reader.encode(rows[i]) for i in part] for part in chosen)
        self.held_out.sort(key=lambda row: max(len(ids) for ids, _ in row["candidates"]))  # for less padding
        self.n, self.tested = EXAMPLES, self.reader.task.load(f"{data}/test.tsv")[:256]

    def loss(self, numbers):
        return self.reader.loss(self.model, self.reader.collate([self.rows[i] for i in numbers.tolist()]))

    @torch.no_grad()
    def judged(self) -> float:
        parts = [self.held_out[i : i + AT_ONCE] for i in range(0, len(self.held_out), AT_ONCE)]
        return sum(float(self.reader.loss(self.model, self.reader.collate(part))) * len(part) for part in parts) / len(self.held_out)

    def figures(self) -> dict:
        return {"test_accuracy": self.reader.evaluate(self.model, self.tested, AT_ONCE)["accuracy"]}


def problem_of(case: Method, seed, device):
    if case.problem == SMOLLM2:
        return Pretrained(seed, device, case.data)
    made = problems.maker(MINILM, device, case.data)(seed)
    made.judged = lambda: float(made.loss().detach())
    return made


def measure(case: Method, device) -> list[dict]:
    """-> records: one a learning rate that was tried, then one a seed."""
    tried: dict[float, dict] = {}

    def loss_at(lr):
        tried[lr] = run(case, lr, SEARCH_SEED, case.searched, device)
        return tried[lr]["final_loss"]

    best = search.walk(METHODS[case.candidate][2 if case.problem == SMOLLM2 else 1], loss_at)
    return [tried[lr] | {"searched": True} for lr in sorted(tried)] + [
        run(case, best, seed, case.forwards, device) | {"searched": False} for seed in case.seeds
    ]


def run(case: Method, lr, seed, forwards, device) -> dict:
    """One run. Its curve: (forward passes, loss), of all training rows on MiniLM, of held-out rows on SmolLM2; of a search its two ends."""
    problem, searching = problem_of(case, seed, device), seed == SEARCH_SEED
    radius = METHODS[case.candidate][0]
    name = getattr(radius, "func", radius).radius
    optimizer = radius(problem.params, lr=lr, seed=seed, **{name: EPS})
    curve, made, seconds = [(0, problem.judged())], 0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a loss that is not finite
        for numbers in batches(problem.n, case.batch, seed):
            if made + optimizer.forwards > forwards:
                break
            begin = time.perf_counter()
            optimizer.step(lambda: problem.loss(numbers))  # noqa: B023
            seconds += time.perf_counter() - begin
            made += optimizer.forwards
            if not searching and made // (forwards / POINTS) > curve[-1][0] // (forwards / POINTS):
                curve.append((made, problem.judged()))
    if curve[-1][0] != made:
        curve.append((made, problem.judged()))
    last = curve[-1][1]
    return {
        **dict.fromkeys(record.FIELDS),
        "suite": "methods",
        "op": case.problem,
        "candidate": case.candidate,
        **record.backend(device, True),
        "dtype": "fp32",
        "n": sum(p.numel() for p in problem.params),
        "threads": torch.get_num_threads(),
        "batch": case.batch,
        "forwards": case.forwards,
        "forwards_made": made,
        "steps": optimizer.param_groups[0]["step"],
        "settings": {"lr": lr},
        "eps": EPS,
        "seed": seed,
        "seconds": seconds,
        "curve": [(n, loss if math.isfinite(loss) else None) for n, loss in curve],
        "final_loss": last if math.isfinite(last) else None,
        **({} if searching else problem.figures()),
        **record.where(device),
    }
