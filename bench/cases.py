"""What is measured, as data."""

from dataclasses import dataclass, field

import torch

from zokern.kernels import backend_for

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Kernel:
    """One pass of the primitive over one tensor. ``in_l2``: one thread, the same tensor again and again, cycles counted."""

    dtype: str
    terms: int
    n: int
    threads: int
    budget: float  # seconds, of all candidates together
    in_l2: bool = False


@dataclass(frozen=True)
class Step:
    """One full-parameter MeZO step of an OPT with random weights. ``shape``: what its config differs in from OPT-125m's."""

    model: str
    dtype: str
    batch: int
    tokens: int
    threads: int
    budget: float
    shape: dict = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Drift:
    """``steps`` steps with lr = 0 on n weights."""

    dtype: str
    n: int
    steps: int


@dataclass(frozen=True)
class Replay:
    """``steps`` logged steps applied to the weights of an OPT, ``widths`` of them a pass."""

    model: str
    dtype: str
    steps: int
    widths: tuple[int, ...]
    threads: int
    budget: float
    shape: dict = field(default_factory=dict, repr=False)


def replays(device, quick=False, dtypes=None, threads=None) -> list[Replay]:
    """The cases of suite ``replay``."""
    threads = threads or torch.get_num_threads()
    if quick:
        cases = [Replay("tiny", "fp32", 8, (1, 4), threads, 0.05, opt(32, 1, 2, vocab_size=128, max_position_embeddings=16))]
    elif device.type == "cpu":
        cases = [Replay("OPT-12M", d, 64, (1, 4, 16, 64), threads, 6.0, OPT_12M) for d in ("fp32", "bf16")]
    else:
        sizes = {"OPT-125M": OPTS["OPT-125M"], "OPT-1.3B": OPTS["OPT-1.3B"], "OPT-6.7B": opt(4096, 32, 32)}
        cases = [Replay(model, "fp32", 1000, (1, 16, 1000), threads, 3.0, shape) for model, shape in sizes.items()]
    return [case for case in cases if not dtypes or case.dtype in dtypes]


def drifts(quick=False, dtypes=None) -> list[Drift]:
    """The cases of suite ``drift``."""
    return [Drift(dtype, 1 << 10, 10) if quick else Drift(dtype, 1 << 14, 1000) for dtype in dtypes or DTYPES]


def kernels(device, quick=False, dtypes=None, threads=None) -> list[Kernel]:
    """The cases of suite ``kernels``: on a CPU with all threads unless told otherwise."""
    dtypes = dtypes or list(DTYPES)
    threads = threads or torch.get_num_threads()
    if quick:
        exponents, budget = (12,), 0.02
    elif device.type == "cuda":
        exponents, budget = (16, 22, 26, 30), 0.6
    else:
        exponents, budget = (16, 22, 26), 3.0
    cases = [Kernel(dtype, terms, 1 << e, threads, budget) for dtype in dtypes for terms in (1, 2) for e in exponents]
    if "fp32" in dtypes and backend_for(device).__name__ == "zokern.kernels.cpu":
        # 512 KiB: more than a first-level cache holds, and less than most second-level ones, which have 1 MiB or more by now.
        cases.append(Kernel("fp32", 1, 1 << (12 if quick else 17), 1, budget, in_l2=True))
    return cases


def steps(device, quick=False, dtypes=None, threads=None) -> list[Step]:
    """The cases of suite ``step``: on a CPU with one thread and with all, unless told otherwise."""
    every = sorted({1, torch.get_num_threads()}) if threads is None else [threads]
    if quick:
        cases = [Step("tiny", "fp32", 1, 8, every[0], 0.1, opt(32, 1, 2, vocab_size=128, max_position_embeddings=16))]
    elif device.type == "cpu":
        cases = [Step("OPT-12M", "fp32", 2, 32, count, 10.0, OPT_12M) for count in every]
    else:
        wanted = [(m, d, 16) for m in ("OPT-125M", "OPT-1.3B") for d in ("bf16", "fp32")] + [("OPT-13B", "bf16", b) for b in (16, 8)]
        cases = [Step(model, dtype, batch, 400, torch.get_num_threads(), 4.0, OPTS[model]) for model, dtype, batch in wanted]
    return [case for case in cases if not dtypes or case.dtype in dtypes]


def opt(hidden, layers, heads, **other):
    return dict(
        hidden_size=hidden, word_embed_proj_dim=hidden, ffn_dim=4 * hidden, num_hidden_layers=layers, num_attention_heads=heads, **other
    )


OPT_12M = opt(384, 6, 6, vocab_size=4096, max_position_embeddings=128)
OPTS = {"OPT-125M": opt(768, 12, 12), "OPT-1.3B": opt(2048, 24, 32), "OPT-13B": opt(5120, 40, 40)}
