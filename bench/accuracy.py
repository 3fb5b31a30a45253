"""python -m bench.accuracy --data DIR --out FILE: fine-tuning a pretrained language model by prompt, with MeZO and its kin and by
backpropagation, at equal queries; --times N runs N times as long, --seconds takes the time of steps, --table prints what FILE says.

DIR has sst2/ and rte/, each with train.tsv and test.tsv in the hub's columns. Training and validation rows are drawn from train.tsv by the
seed, as ``zokern.tasks.split`` draws them; test rows are the first ones of test.tsv. Learning rates fall linearly to 0 from one that is
chosen on a seed of its own, by the loss of validation rows after a share of the queries: the best of 1, 3, 10, 30 ..., whose neighbours are
worse. A run is judged by the test rows at the point of its curve with the least loss of validation rows. A query is the loss of one row,
computed once; backpropagation counts as one query a row, as in MeZO-SVRG's tables.

Weights and updates are in float32, matrix products in bfloat16 (torch.autocast), or with --dtype fp32 in float32 as well. Every run is a
record, and one that FILE holds is not made again. The model is SmolLM2-135M, or with --model a folder of another causal language model.
"""

import argparse
import json
import math
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

import zokern
from zokern import tasks
from zokern.optim import ClosureOptimizer
from zokern.tasks.causal import CausalReader
from zokern.tasks.lean import token_losses

from . import models, parts, record, runs, search, smollm2
from .convergence import EPS, SEARCH_SEED, batches
from .memory import Count
from .table import aligned
from .timing import Wall, interleave

ROWS = 512, 256, 256  # training, validation, test
SEEDS = 0, 1, 2
POINTS = 6  # of a curve, besides its first one
AT_ONCE = 32  # rows, where no step is made of them
POSITIONS = 1024  # most of rows that are read one after the other


@dataclass(frozen=True)
class Method:
    """``make``: (model, lr, seed) -> an optimizer; ``begin``: the learning rate where the search begins; ``batch``: rows of a step, so
    many that one by forward passes takes 128 to 256 queries; ``anchors``: those of a full batch."""

    make: object
    begin: float
    batch: int = 16
    anchors: int = 0


def by_forward_passes(cls, **settings):
    return lambda model, lr, seed: cls(model.parameters(), lr=lr, seed=seed, **{cls.radius: EPS}, **settings)


def by_backpropagation(cls):
    return lambda model, lr, seed: cls(model.parameters(), lr=lr)


def svrg(model, lr, seed):
    return zokern.MeZOSVRG(model.parameters(), lr=lr, lr_full=10 * lr, q=2, eps=EPS, seed=seed)


def hybrid(model, lr, seed):
    """AdamW in the deeper half of the blocks, by the learning rate that is searched for; MeZO below, by the one it is best with alone."""
    zo, fo = partial(zokern.MeZO, lr=MEZO_LR, eps=EPS, seed=seed), partial(torch.optim.AdamW, lr=lr)
    found = zokern.layers(model)
    return zokern.Hybrid(found, zo, fo, zokern.splits.Depth(len(found.modules) // 2))


def middle(model, lr, seed):
    """MeZO on the matrices of the MLPs in the middle third of the blocks: suite ``parts`` says why."""
    return zokern.MeZO(parts.parts(model)["middle MLPs"], lr=lr, eps=EPS, seed=seed)


MEZO, MEZO_LR = "MeZO", 1e-4
METHODS = {
    MEZO: Method(by_forward_passes(zokern.MeZO), MEZO_LR, 64),
    "MeZO, middle MLPs": Method(middle, 1e-3, 64),
    "MeZO-SVRG": Method(svrg, 1e-5, 64, 128),
    "ZO-Adam": Method(by_forward_passes(zokern.ZOAdam), 3e-4, 64),
    "FZOO, q = 8": Method(by_forward_passes(zokern.FZOO), 1e-3),
    "ES, 16 mirrored": Method(by_forward_passes(zokern.EvolutionStrategies, population=16, mirrored=True), 3e-3),
    "hybrid of MeZO and AdamW": Method(hybrid, 1e-5, 64),
    "SGD": Method(by_backpropagation(torch.optim.SGD), 3e-3),
    "AdamW": Method(by_backpropagation(torch.optim.AdamW), 1e-5),
}


@dataclass(frozen=True)
class Task:
    """``queries`` of a run, of which one of a search takes ``searched``; ``most``: queries of backpropagation, three epochs."""

    name: str
    title: str
    max_length: int
    queries: int
    searched: int
    most: int = 3 * ROWS[0]


TASKS = {task.name: task for task in (Task("sst2", "SST-2", 64, 16_000, 4_000), Task("rte", "RTE", 256, 4_800, 1_600))}
QUICK = dict(queries=40, searched=20)


class Unpadded(CausalReader):
    """Reads the rows of a batch one after the other, as one sequence in which none sees another, for models that tell by position_ids where
    a row begins: the sentences of SST-2 differ so much in length that padding doubles the work. A few rows at a time: each position of
    a sequence is compared with all others."""

    @property
    def packed(self) -> int:
        """Rows one after the other."""
        return max(1, POSITIONS // self.max_length)

    def _losses(self, model, batch):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        part = batch["where"][0] // self.packed  # of each target
        found = [self._part(model, batch, i, part == i) for i in range(int(part.max()) + 1)]
        return batch, torch.cat(found)[part.argsort(stable=True).argsort()]

    def _part(self, model, batch, number, here):
        ids, mask = (batch[name][number * self.packed :][: self.packed] for name in ("input_ids", "attention_mask"))
        mask, (row, position) = mask.bool(), batch["where"][:, here]
        begins = mask.sum(1).cumsum(0) - mask.sum(1)
        inputs = dict(input_ids=ids[mask][None], position_ids=(mask.cumsum(1) - 1)[mask][None], use_cache=False)
        where = torch.stack([torch.zeros_like(row), begins[row % self.packed] + position])
        return token_losses(model, inputs, where, batch["targets"][here])


class Problem:
    """A pretrained model, and the rows of a seed as it reads them."""

    def __init__(self, case: "Case", seed):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.case, path = case, case.model or smollm2.converted()
        here = dict(local_files_only=True)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False, **here).eval().to(case.device)
        task, folder = tasks.get(case.task.name), Path(case.data) / case.task.name
        reading = task, AutoTokenizer.from_pretrained(path, trust_remote_code=False, **here), case.task.max_length
        drawn = tasks.split(task.load(str(folder / "train.tsv")), seed, *case.rows[:2], 0)
        tested = task.load(str(folder / "test.tsv"))[: case.rows[2]]
        self.reader, padded = Unpadded(*reading), CausalReader(*reading)
        self.train, self.validation, self.test = ([padded.encode(row) for row in rows] for rows in (*drawn[:2], tested))
        if not self._agree(padded):
            self.reader = padded

    @torch.no_grad()
    def _agree(self, padded) -> bool:
        batch = padded.collate(self.train[: self.reader.packed + 4])
        return torch.allclose(self.reader.scores(self.model, batch), padded.scores(self.model, batch), rtol=1e-4)

    def computing(self):
        return torch.autocast(self.case.device.type, torch.bfloat16) if self.case.dtype == "bf16" else nullcontext()

    def loss(self, rows) -> torch.Tensor:
        with self.computing():
            return self.reader.loss(self.model, self.reader.collate(rows))

    @torch.no_grad()
    def judged(self, rows) -> tuple[float, float]:
        """-> (mean loss, accuracy)."""
        loss, right, rows = 0.0, 0, sorted(rows, key=lambda row: len(row["candidates"][0][0]))
        for part in (rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)):
            batch = self.reader.collate(part)
            with self.computing():
                scores = self.reader.scores(self.model, batch).cpu()
            loss += float(torch.nn.functional.cross_entropy(scores, batch["labels"], reduction="sum"))
            right += int((scores.argmax(1) == batch["labels"]).sum())
        return loss / len(rows), right / len(rows)


class Steps:
    """Steps of a method on a problem, and the ``queries`` that they took."""

    def __init__(self, problem: Problem, lr, seed):
        case = problem.case
        self.problem, self.queries, self.made = problem, 0, 0
        self.optimizer = METHODS[case.method].make(problem.model, lr, seed)
        self.rates = [{name: group[name] for name in ("lr", "lr_full") if name in group} for group in self.optimizer.param_groups]
        self.batches = batches(len(problem.train), case.batch, seed)
        self.anchors = batches(len(problem.train), case.anchors, seed) if case.anchors else iter(())

    def step(self, left: float = 1.0):
        """One, at ``left`` of its learning rates."""
        for group, rates in zip(self.optimizer.param_groups, self.rates):
            group.update({name: rate * left for name, rate in rates.items()})
        optimizer, rows = self.optimizer, self._rows(self.batches)
        if isinstance(optimizer, zokern.MeZOSVRG):
            anchors = self._rows(self.anchors) if optimizer.full_batch_due else []
            self.queries += 2 * len(anchors) or optimizer.forwards * len(rows)
            optimizer.step(partial(self.problem.loss, rows), lambda: self.problem.judged(anchors)[0])
        elif isinstance(optimizer, ClosureOptimizer):
            self.queries += optimizer.forwards * len(rows)
            optimizer.step(partial(self.problem.loss, rows))
        else:
            self.queries += len(rows)
            self.problem.loss(rows).backward()
            optimizer.step()
            optimizer.zero_grad()
        self.made += 1

    @property
    def at_once(self) -> int:
        """Steps from one anchor to the next; 1 without anchors."""
        return self.optimizer.param_groups[0]["q"] if self.problem.case.anchors else 1

    def cycle(self):
        for _ in range(self.at_once):
            self.step()

    def _rows(self, numbers):
        return [self.problem.train[i] for i in next(numbers).tolist()]


@dataclass(frozen=True)
class Case:
    """A method on a task: ``rows`` as ROWS; ``times``: the queries, over the task's own."""

    method: str
    task: Task
    device: torch.device
    data: str
    model: str | None = None
    dtype: str = "bf16"
    times: float = 1.0
    rows: tuple[int, int, int] = ROWS

    @property
    def batch(self) -> int:
        return min(METHODS[self.method].batch, self.rows[0])

    @property
    def anchors(self) -> int:
        return min(METHODS[self.method].anchors, self.rows[0])

    @property
    def by_backpropagation(self) -> bool:
        return self.method in ("SGD", "AdamW")

    def queries(self, searched: bool) -> int:
        """Of a run, or of one of the search."""
        if self.by_backpropagation:
            return min(self.task.most, self.task.queries)
        return self.task.searched if searched else int(self.task.queries * self.times)

    def named(self) -> dict:
        """What the record of a run says of its case."""
        return {
            "suite": "accuracy",
            "op": f"{Path(self.model).name if self.model else smollm2.NAME}, {self.task.title}",
            "candidate": self.method,
            "dtype": self.dtype,
            "batch": self.batch,
            "anchors": self.anchors or None,
            "rows": list(self.rows),
        }


def measure(case: Case, out: Path, lr: float | None = None, seeds=SEEDS) -> None:
    """The search, where no ``lr`` is given, then a run of each seed, as far as ``out`` does not hold them."""

    def loss_at(lr):
        return run(case, lr, SEARCH_SEED, out)["validation_loss"]

    best = lr or search.walk(METHODS[case.method].begin, loss_at)
    for seed in seeds:
        run(case, best, seed, out)


def run(case: Case, lr, seed, out: Path) -> dict:
    """The record of one run, made where there is none."""
    searched = seed == SEARCH_SEED
    wanted = case.named() | {"settings": {"lr": lr}, "seed": seed, "queries": case.queries(searched)}
    for made in records_of(out):
        if wanted.items() <= made.items():
            return made
    print(f"{case.method}, {case.task.title}: lr {lr:g}, seed {seed}", file=sys.stderr, flush=True)
    problem, allowed = Problem(case, seed), case.queries(searched)
    steps, seconds = Steps(problem, lr, seed), 0.0
    curve = [] if searched else [point(problem, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a loss that is not finite
        while steps.queries < allowed:
            begin = time.perf_counter()
            steps.step(1 - steps.queries / allowed)
            seconds += time.perf_counter() - begin
            if steps.queries >= allowed or (not searched and steps.queries >= allowed * len(curve) / POINTS):
                curve.append(point(problem, steps.queries))
    best = min(curve, key=lambda each: math.inf if each["validation_loss"] is None else each["validation_loss"])
    made = (
        dict.fromkeys(record.FIELDS)
        | record.backend(case.device, not case.by_backpropagation)
        | wanted
        | {"n": sum(p.numel() for p in problem.model.parameters()), "threads": torch.get_num_threads(), "eps": EPS}
        | {"searched": searched, "queries_made": steps.queries, "steps": steps.made, "seconds": seconds, "curve": curve}
        | {name: best[name] for name in ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy")}
        | {"best_at": best["queries"]}
        | record.where(case.device)
    )
    record.append(out, [made])
    return made


def point(problem: Problem, queries: int) -> dict:
    """Of a curve; None where a loss is not finite."""
    (loss, accuracy), (test_loss, test_accuracy) = problem.judged(problem.validation), problem.judged(problem.test)
    found = {"validation_loss": loss, "validation_accuracy": accuracy, "test_loss": test_loss, "test_accuracy": test_accuracy}
    return {"queries": queries} | {name: value if math.isfinite(value) else None for name, value in found.items()}


def timed(cases: list[Case], out: Path, budget: float) -> None:
    """Seconds of a method's steps from one anchor to the next, or of a step, in turns; and the most memory that they need: weights, what
    the optimizer keeps, activations."""
    calls, steps, most = {}, {}, {}
    for case in cases:
        problem = Problem(case, SEEDS[0])
        made = steps[case.method] = Steps(problem, METHODS[case.method].begin, SEEDS[0])
        calls[case.method] = made.cycle
        with Count(problem.model.parameters()) as count:
            made.cycle(), made.cycle()  # the first one makes states that stay
        most[case.method], made.queries, made.made = count.most, 0, 0
    samples = interleave(calls, timer := Wall(cases[0].device, most=1), budget)
    for case in cases:
        made, found = steps[case.method], samples[case.method]
        measured = {
            "timer": timer.name,
            "threads": torch.get_num_threads(),
            "median_s": found.median,
            "q1_s": found.quartiles[0],
            "q3_s": found.quartiles[2],
            "rounds": len(found.seconds),
            "queries_a_call": made.queries / made.made * made.at_once,
            "queries": case.queries(False),
            "peak_bytes": most[case.method],
        }
        own = record.backend(case.device, not case.by_backpropagation)
        record.append(out, [dict.fromkeys(record.FIELDS) | case.named() | own | measured | record.where(case.device)])


def records_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(argv=None) -> int:
    given = parser().parse_args(argv)
    if given.table:
        print(aligned(runs.of_accuracy(records_of(given.out))))
        return 0
    if reason := models.missing(None if given.model else smollm2.NAME):
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    rows = (16, 8, 8) if given.quick else ROWS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for task in (TASKS[name] for name in given.task or TASKS):
        task = replace(task, **QUICK) if given.quick else task
        cases = [Case(method, task, device, given.data, given.model, given.dtype, given.times, rows) for method in given.method or METHODS]
        if given.seconds:
            timed(cases, given.out, given.seconds)
        for case in () if given.seconds else cases:
            measure(case, given.out, given.lr, given.seed or SEEDS)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m bench.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", help="a folder with sst2/ and rte/")
    made.add_argument("--out", type=Path, required=True, help="file of records, which are appended")
    made.add_argument("--task", action="append", choices=tuple(TASKS), help="default: all")
    made.add_argument("--method", action="append", choices=tuple(METHODS), help="default: all")
    made.add_argument("--model", help="folder of a causal language model; default: SmolLM2-135M")
    made.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of matrix products; default bf16")
    made.add_argument("--times", type=float, default=1.0, help="queries of a run, over the task's own; default 1")
    made.add_argument("--lr", type=float, help="of all runs, instead of a search")
    made.add_argument("--seed", type=int, action="append", help="default: 0, 1, 2")
    made.add_argument("--seconds", type=float, help="take the time of steps, so many seconds in all, instead of making runs")
    made.add_argument("--quick", action="store_true", help="some rows, few steps: does it run here?")
    made.add_argument("--table", action="store_true", help="print what the records in --out say")
    return made


if __name__ == "__main__":
    sys.exit(main())
