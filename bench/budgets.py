"""Suite ``budgets``: MeZO, MeZO-SVRG and SGD by backpropagation on every parameter of MiniLM, SST-2, with as many steps each as the paper
gives them, or of the first two the share that ``seconds`` allow: 200,000 steps of MeZO take minutes on a GPU and weeks on a CPU.

theta is in float32. Forward passes are in float16, from a copy (``zokern.Copied``), and on a GPU MeZO's step, and the losses of MeZO-SVRG,
are CUDA graphs; backpropagation is in float32. Learning rates fall linearly to 0, from the best of a grid, which is found on a seed of its
own with a tenth of the steps. All runs take turns, on a GPU each on a stream of its own, so that the small kernels of one fill the gaps of
the others.

Reference: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", table 11 (DistilBERT).
"""

import itertools
import math
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch

import zokern
from zokern.kernels.tables import to_device
from zokern.optim.cuda_graph import own_workspaces

from . import minilm, problems, record
from .cases import MEZO, SGD, SVRG
from .convergence import EPS, SEARCH_SEED, batches
from .runs import spread

RATES = {MEZO: (1e-4, 3e-4, 1e-3, 3e-3), SVRG: (3e-5, 1e-4, 3e-4, 1e-3), SGD: (3e-3, 1e-2, 3e-2, 1e-1)}  # SVRG's between anchors
OVER_LR = 10  # lr_full over lr
SEARCHED = 0.1  # share of the steps that a search takes
LATE = 1.15
TURNS = 400  # from point to point
AHEAD = 4096  # batches whose rows are sent to the device at once
GROUPS = 4  # in which all rows go through the model, by length, so that little of it is padding


@dataclass(frozen=True)
class Budgets:
    """``steps`` of each method, of ``batch`` rows; rows are padded, or cut, to ``tokens``. ``seconds``: for all runs together.
    What they allow is reckoned from the search; a run that is not through when LATE times as much is over ends where it is. ``points``: of
    a curve, besides its first."""

    steps: dict[str, int] = field(default_factory=lambda: {MEZO: 200_000, SVRG: 50_000, SGD: 1_000})
    batch: int = 64
    tokens: int = 40
    examples: int = 512
    tested: int = 872
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float = 200.0
    points: int = 40
    data: str | None = None


def cases(quick=False, data=None) -> list[Budgets]:
    few = dict(steps={MEZO: 10, SVRG: 10, SGD: 10}, batch=2, tokens=8, examples=4, tested=4, seeds=(0,), seconds=math.inf, points=2)
    return [Budgets(**few if quick else {}, data=data)]


def missing(case: Budgets) -> str:
    """Why the case cannot be measured here; "" where it can."""
    return problems.no_data(case.data) or minilm.missing()


class Rows:
    """Tokens [n, tokens], masks [n, 1, tokens, tokens], and labels [n], on the device. A mask is 0 where a token may look, else -inf, in
    the model's dtype: it is added to scores, and no layer need make it again."""

    def __init__(self, examples, tokenizer, tokens, device):
        shape = dict(padding="max_length", truncation=True, max_length=tokens, return_tensors="pt")
        found = tokenizer([example["sentence"] for example in examples], **shape)
        self.ids = found["input_ids"].to(device)
        hidden = (found["attention_mask"] == 0)[:, None, None, :].expand(-1, 1, tokens, tokens)
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -math.inf).to(device)
        self.masks = {dtype: mask.to(dtype) for dtype in (torch.float16, torch.float32)}
        self.labels = torch.tensor([example.label for example in examples], device=device)
        lengths, order = found["attention_mask"].sum(1).sort()
        self.groups = [
            (rows.to(device), -(-int(length[-1]) // 8) * 8)  # so many tokens
            for rows, length in zip(order.tensor_split(GROUPS), lengths.tensor_split(GROUPS))
        ]

    def logits(self, model, rows, tokens=None):
        mask = self.masks[model.dtype][rows, :, :tokens, :tokens]
        return model(input_ids=self.ids[rows, :tokens], attention_mask=mask).logits.float()

    def loss(self, model, rows, tokens=None):
        return torch.nn.functional.cross_entropy(self.logits(model, rows, tokens), self.labels[rows])

    def loss_of_all(self, model):
        return sum(self.loss(model, *group) * len(group[0]) for group in self.groups) / len(self.labels)

    @torch.no_grad()
    def accuracy(self, model) -> float:
        right = sum((self.logits(model, *group).argmax(-1) == self.labels[group[0]]).sum() for group in self.groups)
        return int(right) / len(self.labels)


def rows_of(case: Budgets, device) -> tuple[Rows, Rows]:
    """-> those to train with, those to test with."""
    tokenizer, (train, test) = minilm.tokenizer(), problems.examples(case.data, case.examples)
    return tuple(Rows(part, tokenizer, case.tokens, device) for part in (train, test[: case.tested]))


class Captured:
    """A loss as a CUDA graph, measured with what the model's parameters then hold."""

    def __init__(self, loss):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(3):
                loss()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with own_workspaces(), torch.no_grad(), torch.cuda.graph(self.graph):
            self.loss = loss()

    def __call__(self):
        self.graph.replay()
        return self.loss.clone()  # the next replay writes over it


class Run:
    """One method with one learning rate and one seed, step by step.

    Args:
        case: what it is a run of.
        steps: how many it is to make, by which its learning rate falls. May be set until the first one.
        rows: those to train with.
    """

    def __init__(self, case: Budgets, method: str, lr: float, seed: int, steps: int, rows: Rows, device):
        self.case, self.method, self.lr, self.seed, self.steps, self.rows = case, method, lr, seed, steps, rows
        self.made, self.queries, self.curve = 0, 0, []
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        torch.manual_seed(seed)  # of the head
        model = minilm.load("AutoModelForSequenceClassification", num_labels=2).half()  # of SGD too: all begin with the same weights
        self.model = (model.float() if method == SGD else model).to(device)
        self.batch = torch.zeros(case.batch, dtype=torch.long, device=device)
        self.order = self.sent(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        with self.turn():
            self.optimizer, self.step = {MEZO: self.mezo, SVRG: self.svrg, SGD: self.sgd}[method]()
        self.rates = [{name: group[name] for name in ("lr", "lr_full") if name in group} for group in self.optimizer.param_groups]

    def turn(self):
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def sent(self, device):
        """The batches' row numbers, on the device."""
        endless = batches(self.case.examples, self.case.batch, self.seed)
        while True:
            yield from to_device(torch.stack(list(itertools.islice(endless, AHEAD))), device)

    def loss(self):
        return self.rows.loss(self.model, self.batch)

    def mezo(self):
        optimizer = zokern.MeZO(self.model.parameters(), lr=self.lr, eps=EPS, seed=self.seed, perturbation=zokern.Copied())
        step = zokern.graph(optimizer, self.loss) if self.stream else lambda: optimizer.step(self.loss)

        def one():
            step()
            return 2 * self.case.batch

        return optimizer, one

    def svrg(self):
        settings = dict(lr=self.lr, lr_full=OVER_LR * self.lr, q=2, eps=EPS, seed=self.seed, perturbation=zokern.Copied())
        optimizer = zokern.MeZOSVRG(self.model.parameters(), **settings)
        some, every = (Captured(f) if self.stream else f for f in (self.loss, lambda: self.rows.loss_of_all(self.model)))

        def one():
            queries = 2 * self.case.examples if optimizer.full_batch_due else 4 * self.case.batch
            optimizer.step(some, every)
            return queries

        return optimizer, one

    def sgd(self):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)

        def one():
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()
            return self.case.batch

        return optimizer, one

    def part(self, share: float) -> int:
        """Steps that are a share of its own; of SGD all, whose thousand take less than the others' tens of thousands."""
        return self.steps if self.method == SGD else max(1, round(share * self.steps))

    def until(self, share: float):
        """Steps until this share of all is made; their learning rates change a thousand times in a run."""
        with self.turn():
            while self.made < share * self.steps:
                if self.made % max(1, self.steps // 1000) == 0:
                    for group, rates in zip(self.optimizer.param_groups, self.rates):
                        group.update({name: rate * (1 - self.made / self.steps) for name, rate in rates.items()})
                self.batch.copy_(next(self.order))
                self.queries += self.step()
                self.made += 1

    def look(self, test: Rows | None = None):
        """Writes down the loss of all rows and, where there are some to test with, the accuracy."""
        with self.turn(), torch.no_grad():
            loss = float(self.rows.loss_of_all(self.model))
            self.curve.append((self.queries, loss if math.isfinite(loss) else None, test and test.accuracy(self.model)))


def together(runs: list[Run], points: int, deadline: float, test: Rows | None = None):
    """All of them to their ends, in turns, so many ``points`` on the way looked at; or until the deadline, on perf_counter's clock."""
    for run in runs:
        run.look(test)
    for point in range(1, points + 1):
        for turn in range(1, TURNS + 1):
            if time.perf_counter() < deadline:
                for run in runs:
                    run.until((point - 1 + turn / TURNS) / points)
        for run in runs:
            if run.queries > run.curve[-1][0]:
                run.look(test)


def measure(case: Budgets, device) -> list[dict]:
    """Choose each method's learning rate, then run it with every seed. -> records, one a run."""
    train, test = rows_of(case, device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.enable_cudnn_sdp(False)  # with a mask: reports of wrong results, and of plans that fail
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a loss that is not finite: its step is skipped
        searched = [
            Run(case, method, lr, SEARCH_SEED, round(SEARCHED * steps), train, device)
            for method, steps in case.steps.items()
            for lr in RATES[method]
        ]
        share = share_of(case, searched)
        for run in searched:
            run.steps = run.part(share)
        began = time.perf_counter()
        deadline = began + LATE * case.seconds
        together(searched, 1, deadline)
        best = {method: min((r for r in searched if r.method == method), key=lambda r: last(r)).lr for method in case.steps}
        runs = [Run(case, method, best[method], seed, steps, train, device) for method, steps in case.steps.items() for seed in case.seeds]
        for run in runs:
            run.steps = run.part(share)
        together(runs, case.points, deadline, test)
    common = {"share_of_budget": share, "seconds_together": time.perf_counter() - began}
    here = record.where(device)
    return [told(run, common | {"searched": run in searched}, device) | here for run in (*searched, *runs)]


def last(run: Run) -> float:
    loss = run.curve[-1][1]
    return math.inf if loss is None else loss


def share_of(case: Budgets, searched: list[Run]) -> float:
    """The share of all steps that the seconds allow, by the time of a hundredth of the search's."""
    if math.isinf(case.seconds):
        return 1.0
    for run in searched:
        run.until(0.01)  # what is made once
    wait(searched)
    begin = time.perf_counter()
    for hundredth in range(2, 6):
        for run in searched:
            run.until(hundredth / 100)
    wait(searched)
    a_hundredth = (time.perf_counter() - begin) / 4
    rates = len(searched) / len(case.steps)
    return min(1.0, case.seconds / (100 * a_hundredth * (1 + len(case.seeds) / rates / SEARCHED)))


def wait(runs):
    for run in runs:
        if run.stream:
            run.stream.synchronize()


def told(run: Run, common: dict, device) -> dict:
    case, (_, loss, accuracy) = run.case, run.curve[-1]
    return {
        **dict.fromkeys(record.FIELDS),
        "suite": "budgets",
        "op": minilm.PROBLEM,
        "candidate": run.method,
        **record.backend(device, run.method != SGD),
        "dtype": "fp32" if run.method == SGD else "fp16",
        "n": sum(p.numel() for p in run.model.parameters()),
        "threads": torch.get_num_threads(),
        **{name: value for name, value in asdict(case).items() if name in ("batch", "tokens", "examples")},
        "pretrained": minilm.source(),
        "settings": {"lr": run.lr} | ({"lr_full": OVER_LR * run.lr, "q": 2} if run.method == SVRG else {}),
        "eps": None if run.method == SGD else EPS,
        "seed": run.seed,
        "steps": run.made,
        "planned_steps": run.steps,
        "budget_steps": case.steps[run.method],
        "queries": run.queries,
        **common,
        "curve": run.curve,
        "final_loss": loss,
        "test_accuracy": accuracy,
    }


def rows(records) -> list[dict[str, str]]:
    """Those of the search, whose seed is theirs alone, are left out."""
    groups = {}
    for r in records:
        if r["suite"] == "budgets" and not r["searched"]:
            groups.setdefault(r["candidate"], []).append(r)
    return [
        {
            "method": method,
            "lr": f"{(one := found[0])['settings']['lr']:g}",
            "runs": str(len(found)),
            "steps": f"{one['steps']:,}",
            "of the budget": f"{one['steps'] / one['budget_steps']:.0%}",
            "queries": f"{one['queries'] / 1e6:.2g}M",
            "loss": spread([r["final_loss"] for r in found], "{:.4f}"),
            "accuracy": spread([r["test_accuracy"] for r in found], "{:.3f}"),
        }
        for method, found in groups.items()
    ]
