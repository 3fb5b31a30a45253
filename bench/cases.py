"""What is measured, as data."""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

from zokern.kernels import backend_for

from .models import DTYPES
from .smollm2 import NAME as SMOLLM2


@dataclass(frozen=True)
class Kernel:
    """One pass of the primitive over one tensor of ``n`` elements, or over the parameters of a model. ``in_l2``: one thread, the same
    tensor again and again, cycles counted."""

    dtype: str
    terms: int
    n: int  # 0: as many as the model has
    threads: int
    budget: float  # seconds, of all candidates together
    in_l2: bool = False
    model: str | None = None


@dataclass(frozen=True)
class Form:
    """One pass of the primitive in another form than suite ``kernels``: ``what`` is "signs"; "out", float32 weights written elsewhere in
    bfloat16; or "columns", so many leading ones of a square weight of ``side``."""

    what: str
    dtype: str
    terms: int
    n: int
    threads: int
    budget: float
    columns: int = 0
    side: int = 0


@dataclass(frozen=True)
class Step:
    """One full-parameter MeZO step of a model with random weights. ``trained``: by backpropagation as well."""

    model: str
    dtype: str
    batch: int
    tokens: int
    threads: int
    budget: float
    trained: bool = True


FULL, LEAN = "forward, full logits", "forward, lean"


@dataclass(frozen=True)
class Memory:
    """Peak memory of one step. ``only``: these methods (all). ``counted``: not run, reckoned from the sizes of its tensors."""

    model: str
    dtype: str
    batch: int
    tokens: int
    counted: bool = False
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Resident:
    """Memory that one step has resident, by mode."""

    model: str
    dtype: str
    batch: int
    tokens: int


@dataclass(frozen=True)
class Drift:
    """``steps`` steps with lr = 0, and ``updates`` small ones, on n random weights or those of a pretrained model."""

    dtype: str
    n: int | None
    steps: int
    updates: int
    model: str | None = None


@dataclass(frozen=True)
class Rounding:
    """``directions`` of a pretrained model's loss, each with ``batch`` rows of the train.tsv of SST-2 in the folder ``data``."""

    dtype: str
    eps: float
    directions: int
    batch: int
    tokens: int
    data: str | None = None


@dataclass(frozen=True)
class Replay:
    """``steps`` logged steps applied to the weights of a model, ``widths`` of them a pass, or a call of ``replay_``; and ``logged`` ones
    from a file."""

    model: str
    dtype: str
    steps: int
    widths: tuple[int, ...]
    replayed: tuple[int, ...]
    threads: int
    budget: float
    logged: int = 0


@dataclass(frozen=True)
class Trained:
    """``steps`` steps of Trainer, each followed by one of a plain loop. ``data``: a folder with the train.tsv of SST-2."""

    model: str
    batch: int
    tokens: int
    threads: int
    steps: int
    logging_steps: int
    data: str | None = None


@dataclass(frozen=True)
class OwnPart:
    """One step of an optimizer over the weights of a model, without the model's forward passes."""

    optimizer: str
    model: str
    dtype: str
    threads: int
    budget: float


@dataclass(frozen=True)
class Convergence:
    """One problem, solved by every method with every seed. ``queries``: those that a method may take, the same for all of them unless
    some come to rest long before the others.

    ``grid``: method -> setting -> values. Where they leave a choice, all combinations run once, with as many queries, on a seed of
    their own, and the one with the lowest final training loss is taken.
    """

    problem: str
    batch: int
    queries: dict[str, int]
    seeds: tuple[int, ...]
    grid: dict
    data: str | None = None


@dataclass(frozen=True)
class Precision:
    """One run of a pretrained model on SST-2, in one of the ways to keep 16-bit weights: its loss on held-out rows ``every`` so many steps,
    and its accuracy on ``tested`` others at the end."""

    problem: ClassVar[str] = f"{SMOLLM2}, SST-2"
    candidate: str
    seed: int
    steps: int
    every: int
    batch: int
    tokens: int
    lr: float
    tested: int
    data: str | None = None


@dataclass(frozen=True)
class EffectiveRank:
    """A quadratic with eigenvalues i^-alpha. ``rates``: learning rates to try, descending; ``limit``: steps, at most."""

    problem: ClassVar[str] = "effective rank"
    alpha: float
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    tolerance: float
    limit: int


def kernels(device, quick=False, dtypes=None, threads=None) -> list[Kernel]:
    """The cases of suite ``kernels``: on a CPU with all threads unless told otherwise; on a GPU the most telling first."""
    dtypes = dtypes or list(DTYPES)
    threads = threads or torch.get_num_threads()
    if quick:
        exponents, budget, many, model = (12,), 0.02, (4,), "tiny"
    elif device.type == "cuda":
        exponents, budget, many, model = (16, 22, 26, 30), 0.8, (4, 16), "OPT-125M"
    else:
        exponents, budget, many, model = (16, 22, 26), 3.0, (4, 16), "OPT-12M"
    cases = [Kernel(dtype, terms, 1 << e, threads, budget) for dtype in dtypes for terms in (1, 2) for e in exponents]
    large = exponents[-1] if device.type == "cuda" else exponents[len(exponents) // 2]  # or torch's way takes minutes
    cases += [Kernel(dtype, terms, 1 << large, threads, budget) for dtype in dtypes for terms in many if dtype != "fp16"]
    cases += [Kernel(dtype, 1, 0, threads, budget, model=model) for dtype in dtypes if dtype != "fp16"]
    if device.type == "cuda":
        telling = lambda case: 0 if case.n == 1 << large and case.terms <= 2 else 1 if case.model else 2  # noqa: E731
        cases.sort(key=lambda case: (case.dtype == "fp16", telling(case)))
    if "fp32" in dtypes and backend_for(device).__name__ == "zokern.kernels.cpu":
        # 512 KiB: more than a first-level cache holds, and less than most second-level ones, which have 1 MiB or more by now.
        cases.append(Kernel("fp32", 1, 1 << (12 if quick else 17), 1, budget, in_l2=True))
    return cases


def forms(device, quick=False, dtypes=None, threads=None) -> list[Form]:
    """The cases of suite ``forms``, the most telling first."""
    threads = threads or torch.get_num_threads()
    on_gpu = device.type == "cuda"
    n, side, budget = (1 << 12, 64, 0.02) if quick else (1 << 30, 32768, 1.5) if on_gpu else (1 << 26, 4096, 3.0)
    cases = []
    for dtype in (d for d in dtypes or DTYPES if d != "fp16"):
        cases += [Form("signs", dtype, 1, n, threads, budget)]
        cases += [Form("out", dtype, 1, n, threads, budget)] if dtype == "fp32" else []
        cases += [Form("signs", dtype, 16, n // 16, threads, budget)]
        for columns in (side // 8, side // 4, side // 2):
            cases.append(Form("columns", dtype, 1, columns * side, threads, budget, columns, side))
    if on_gpu:  # one of columns is enough to begin with; 16 bits, where instructions weigh the most, before 32
        cases.sort(key=lambda case: (case.columns not in (0, side // 8), case.what != "out" and case.dtype == "fp32"))
    return cases


def steps(device, quick=False, dtypes=None, threads=None, pretrained=True) -> list[Step]:
    """The cases of suite ``step``: on a CPU with one thread and with all, unless told otherwise, and a pretrained model; on a GPU the most
    telling first."""
    every = sorted({1, torch.get_num_threads()}) if threads is None else [threads]
    if quick:
        cases = [Step("tiny", "fp32", 1, 8, every[0], 0.1)]
    elif device.type == "cpu":
        cases = [Step("OPT-12M", "fp32", 2, 32, count, 10.0) for count in every]
        cases += [Step(SMOLLM2, d, 16, 48, every[-1], 60.0, trained=False) for d in ("fp32", "bf16") if pretrained]
    else:  # 16 and 8 times 400 tokens: MultiRC as in the MeZO paper's table of times
        cases = [
            Step(model, dtype, batch, tokens, torch.get_num_threads(), budget, trained)
            for model, dtype, batch, tokens, budget, trained in (
                ("OPT-13B", "bf16", 16, 400, 6.0, False),
                ("OPT-125M", "bf16", 16, 400, 3.0, True),
                ("OPT-1.3B", "bf16", 16, 400, 3.0, True),
                ("OPT-125M", "bf16", 1, 64, 2.0, True),  # launches weigh the most
                ("OPT-1.3B", "fp32", 16, 400, 4.0, False),
                ("OPT-125M", "fp32", 16, 400, 3.0, True),
                ("OPT-1.3B", "bf16", 8, 400, 3.0, True),
                ("OPT-1.3B", "fp16", 16, 400, 3.0, False),  # backpropagation in float16 would need a loss scale
                ("OPT-2.7B", "bf16", 16, 400, 4.0, False),
                ("OPT-6.7B", "bf16", 16, 400, 4.0, False),
                ("OPT-13B", "bf16", 8, 400, 6.0, False),
                ("RoBERTa-large", "bf16", 64, 128, 3.0, True),
                ("GPT2-xl", "bf16", 16, 400, 3.0, False),
                ("Llama-7B", "bf16", 8, 400, 4.0, False),
            )
        ]
    return [case for case in cases if not dtypes or case.dtype in dtypes]


ROBERTA = [(64, 128), (64, 256), (64, 512), (16, 128), (32, 128)]  # batch, tokens: as in MeZO-SVRG's tables 3 and 25
FAMILY = ("OPT-1.3B", "OPT-2.7B", "OPT-6.7B", "OPT-13B", "OPT-30B", "OPT-66B", "GPT2-xl")
LARGEST = 140e9  # bytes of a GPU that holds OPT-66B


def residents(device, quick=False, dtypes=None, pretrained=True) -> list[Resident]:
    """The cases of suite ``memory`` that the kernel counts the pages of, on Linux, where the model is on the CPU."""
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return []
    cases = [Resident("tiny", "bf16", 2, 8)] if quick else [Resident(SMOLLM2, d, 4, 64) for d in ("bf16", "fp32") if pretrained]
    return [case for case in cases if not dtypes or case.dtype in dtypes]


def memory(device, quick=False, dtypes=None, threads=None) -> list[Memory]:
    """The cases of suite ``memory``: those of the papers' tables, measured on a GPU, the most telling first, elsewhere reckoned; and which
    OPT fits where."""
    if quick:
        cases = [Memory("tiny", "fp32", 2, 8), Memory("tiny", "fp32", 2, 8, counted=True)]
        cases.append(Memory("tiny", "fp32", 2, 16, counted=True, only=(FULL, LEAN)))
    else:
        on_gpu = device.type == "cuda"
        cases = [] if on_gpu else [Memory("OPT-12M", d, 4, 64) for d in ("fp32", "bf16")]
        for d in ("bf16", "fp32"):
            cases += [Memory("OPT-13B", d, 4, 400, counted=not on_gpu)]
            cases += [Memory("OPT-125M", d, 8, 256, counted=not on_gpu, only=(FULL, LEAN))]
            cases += [Memory("RoBERTa-large", d, *size, counted=not on_gpu) for size in ROBERTA]
        if on_gpu and torch.cuda.get_device_properties(device).total_memory > LARGEST:
            cases.append(Memory("OPT-66B", "bf16", 1, 400, only=("two forwards", "zokern.MeZO", "zokern.MeZO, streamed")))
        if not on_gpu:
            cases += [Memory(model, "bf16", 1, 400, counted=True) for model in FAMILY]
    return [case for case in cases if not dtypes or case.dtype in dtypes]


def replays(device, quick=False, dtypes=None, threads=None) -> list[Replay]:
    """The cases of suite ``replay``, on a GPU the most telling first."""
    threads = threads or torch.get_num_threads()
    if quick:
        cases = [Replay("tiny", "fp32", 8, (1, 4), (1, 8), threads, 0.05, 40)]
    elif device.type == "cpu":
        cases = [Replay("MiniLM", d, 64, (1, 4, 16, 64), (1, 16, 64), threads, 8.0, 1000) for d in ("fp32", "bf16")]
    else:
        # (model, dtype, steps, seconds): the first two tell the most; a pass over 1.3e9 float32 weights takes 3.5 ms at least.
        runs = (("OPT-1.3B", "fp32", 256, 1.0), ("MiniLM", "fp32", 64, 1.0), ("OPT-1.3B", "bf16", 1000, 3.0))
        runs += (("OPT-125M", "fp32", 1000, 3.0), ("OPT-6.7B", "fp32", 32, 3.0))
        cases = [
            Replay(model, d, steps, (1, steps), (min(steps, 64),), threads, budget, 1000 if model == "MiniLM" else 0)
            for model, d, steps, budget in runs
        ]
    return [case for case in cases if not dtypes or case.dtype in dtypes]


def drifts(quick=False, dtypes=None, pretrained=True) -> list[Drift]:
    """The cases of suite ``drift``. Enough updates for a standard error of 0.3 %."""
    random = [Drift(dtype, 1 << 10, 10, 4) if quick else Drift(dtype, 1 << 14, 1000, 1000) for dtype in dtypes or DTYPES]
    return random + [Drift(d, None, 10 if quick else 1000, 1, SMOLLM2) for d in dtypes or DTYPES if pretrained and d != "fp32"]


def roundings(quick=False, dtypes=None, data=None) -> list[Rounding]:
    """The cases of suite ``rounding``: the most directions where the usual eps is rounded the most."""
    sizes = [("bf16", 1e-3, 64), ("bf16", 1e-2, 16), ("bf16", 3e-4, 16), ("fp16", 1e-3, 16), ("fp16", 3e-4, 16)]
    return [Rounding(d, eps, 2 if quick else n, 8, 64, data) for d, eps, n in sizes[:: 3 if quick else 1] if not dtypes or d in dtypes]


def trained(device, quick=False, dtypes=None, threads=None, data=None) -> list[Trained]:
    """The cases of suite ``trainer``: float32; rows of a sentence's length."""
    if dtypes and "fp32" not in dtypes:
        return []
    threads = threads or torch.get_num_threads()
    return [Trained("tiny", 2, 8, threads, 10, 5)] if quick else [Trained("MiniLM", 16, 32, threads, 100, 10, data)]


WITHOUT_STATE = ("MeZO", "MeZO, q=4", "MeZO, half masked", "MeZO, 3 blocks", "ZOSign", "ZOConservative", "AdaMeZO")
WITH_STATE = ("MeZOSVRG", "ZOMomentum", "ZOAdam")


def own_parts(device, quick=False, dtypes=None, threads=None) -> list[OwnPart]:
    """The cases of suite ``optimizers``: float32, on a CPU with one thread; on a GPU those with state first."""
    if dtypes and "fp32" not in dtypes:
        return []
    model, budget = ("tiny", 0.02) if quick else ("OPT-12M", 10.0) if device.type == "cpu" else ("OPT-1.3B", 3.0)
    names = (*WITHOUT_STATE, *WITH_STATE) if device.type == "cpu" else (*reversed(WITH_STATE), *WITHOUT_STATE)
    return [OwnPart(name, model, "fp32", threads or 1, budget) for name in names]


MEZO, SVRG, SGD = "zokern.MeZO", "zokern.MeZOSVRG", "torch.optim.SGD"
# As in table 7 of MeZO-SVRG.
LEAST_SQUARES = {MEZO: {"lr": (1e-3,)}, SVRG: {"lr_full": (1e-3,), "lr": (1e-4,), "q": (2,)}, SGD: {"lr": (1e-3,)}}
# Around the largest learning rates that a coarser grid, with fewer queries, left without divergence; its best q was 2, of 2 and 5.
DIGITS = {
    MEZO: {"lr": (1e-3, 2e-3)},
    SVRG: {"lr_full": (5e-3, 1e-2), "lr": (1e-3, 3e-3), "q": (2,)},
    SGD: {"lr": (1e-1, 3e-1)},
}
MINILM = {
    MEZO: {"lr": (1e-3, 2e-3)},
    SVRG: {"lr_full": (5e-3, 1e-2), "lr": (1e-3, 3e-3), "q": (2,)},
    SGD: {"lr": (1e-2, 3e-2)},
}


def convergences(quick=False, data=None) -> list[Convergence]:
    """The problems of suite ``convergence``."""
    if quick:
        few = {
            method: {name: values[:2] if name == "lr" else values[:1] for name, values in grid.items()} for method, grid in DIGITS.items()
        }
        return [
            Convergence("least squares", 32, equal(8_000), (0, 1), LEAST_SQUARES),
            Convergence("digits", 64, equal(3_000), (0,), few),
            Convergence("MiniLM, SST-2", 16, equal(3_000), (0,), few, data),
        ]
    return [
        Convergence("least squares", 32, {MEZO: 2_000_000, SVRG: 6_000_000, SGD: 500_000}, tuple(range(5)), LEAST_SQUARES),
        Convergence("digits", 64, equal(4_000_000) | {SGD: 1_000_000}, tuple(range(5)), DIGITS),
        Convergence("MiniLM, SST-2", 64, equal(2_000_000) | {SGD: 300_000}, tuple(range(3)), MINILM, data),
    ]


DRIFTS = "bfloat16, in place, lr 0"  # learns nothing
IN_16_BITS = ("float32", "bfloat16, in place", "bfloat16, streamed", "bfloat16, streamed, stochastic", "bfloat16, copied", DRIFTS)


def precisions(quick=False, data=None) -> list[Precision]:
    """The runs of a pretrained model, all of one seed before the next."""
    steps, every, batch, seeds, tested = (2, 1, 2, 1, 4) if quick else (500, 50, 8, 3, 256)
    rates = {name: 0.0 if name == DRIFTS else 5e-6 for name in IN_16_BITS}
    return [Precision(name, seed, steps, every, batch, 64, lr, tested, data) for seed in range(seeds) for name, lr in rates.items()]


def equal(queries) -> dict[str, int]:
    return dict.fromkeys((MEZO, SVRG, SGD), queries)


def effective_ranks(quick=False) -> list[EffectiveRank]:
    """The toy of suite ``convergence``, over a range of effective ranks."""
    if quick:
        return [EffectiveRank(alpha, tuple(2.0**-k for k in range(6)), (0,), 0.3, 200) for alpha in (1.5, 2.0)]
    rates = tuple(2 ** (1 - k / 4) for k in range(37))
    return [EffectiveRank(alpha, rates, (0, 1, 2), 1e-6, 15_000) for alpha in (0.25, 0.5, 0.75, 1.0, 1.25)]
