"""Everything that decides a run, each option with the one line that says what it is."""

import math
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

from ..errors import BadInput
from .values import brief, fitting

DTYPES = ("float32", "bfloat16", "float16")
CHOICES = {
    "dtype": DTYPES,
    "head": ("loaded", "probe"),
    "keep": ("last", "best"),
    "schedule": ("linear", "cosine", "constant"),
    "task_type": ("head", "masked", "causal"),
    "objective": ("cross-entropy", "option", "accuracy", "f1"),
    "optimizer": (
        "mezo",
        "mezo-svrg",
        "zo-adam",
        "zo-momentum",
        "zo-sign",
        "zo-conservative",
        "forward-gradient",
        "hybrid",
    ),
    "zo": ("mezo", "zo-adam", "zo-momentum", "zo-sign", "zo-conservative", "forward-gradient", "none"),
    "fo": ("adamw", "sgd"),
    "estimator": ("two-point", "one-sided"),
    "anchor": ("copy", "replay"),
    "form": ("element", "scalar"),
    "state_dtype": ("float32", "bfloat16"),
}
# The first k blocks zeroth-order; so many of the deepest blocks first-order, or those at places, all or a share of each parameter; so
# many at random, drawn again every so many steps.
PLACES = r"(\d+|\+\d+|\d+(\+\d+)+)"
SPLIT = re.compile(rf"depth:\d+|inter:{PLACES}|intra:{PLACES}(:0?\.\d+)?|lisa:\d+:\d+")
# What an optimizer may be given beside lr, eps and seed; which of them it takes, its own signature says.
OPTIMIZER = (
    "weight_decay",
    "q",
    "estimator",
    "sparsity",
    "blocks",
    "defer",
    "lr_full",
    "anchor",
    "momentum",
    "betas",
    "delta",
    "amsgrad",
    "form",
    "state_dtype",
)
PATHS = ("model", "data", "eval_data")  # or names on the hub
EACH_TIME = ("out", "overwrite", "trust_remote_code")  # of the command line alone: what a file of another run says of them is not taken
POSITIVE = "a number > 0", lambda x: 0 < x < math.inf
NATURAL = "an integer >= 1", lambda x: x >= 1
RANGES = {
    **dict.fromkeys(("lr", "eps", "lr_full", "delta", "fo_lr"), POSITIVE),
    "lr_ratio": ("a number >= 1", lambda x: 1 <= x < math.inf),
    **dict.fromkeys(("q", "steps", "batch_size", "accumulate", "eval_every", "save_every", "shots", "rank", "virtual_tokens"), NATURAL),
    "weight_decay": ("a number >= 0", lambda x: 0 <= x < math.inf),
    "sparsity": ("a number in [0, 1)", lambda x: 0 <= x < 1),
    "momentum": ("a number in [0, 1)", lambda x: 0 <= x < 1),
    "split": ("depth:3, inter:4, inter:1+3, intra:4:0.5 or lisa:2:20", SPLIT.fullmatch),
    "seed": ("an integer in [0, 2**32)", lambda x: 0 <= x < 1 << 32),  # numpy's generators take no more
    "max_length": ("an integer >= 4", lambda x: x >= 4),
    "text": ("one column or two", lambda x: len(x) <= 2),
    "betas": ("two numbers in [0, 1), as '0.9,0.999'", lambda x: len(x) == 2 and all(0 <= b < 1 for b in x)),
    "rows": ("three integers, the last one may be 0, as '512,256,256'", lambda x: len(x) == 3 and min(x[:2]) >= 1 and x[2] >= 0),
}


def _option(text, default=None):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What to fine-tune, on what, and how; ``help`` in each field's metadata says what it is. ``checked()`` fills in what follows from
    the rest."""

    model: str | None = _option("Local folder or hub id. Without it: a small MiniLM, with LoRA.")
    trust_remote_code: bool = _option("Run the Python code that comes with --model. Read it first.", False)
    task: str | None = _option("A task that zokern knows: sst2, rte, boolq, ... (docs/tasks.md).")
    data: str | None = _option(
        "With --task: a local copy of it. Else: csv, tsv, json, jsonl or parquet file, or a hub data set (name or name:config); without "
        "it sentences from the docstrings of networkx and sympy, to be told apart."
    )
    eval_data: str | None = _option("The same, for held-out rows. Without it: a fifth of --data.")
    text: tuple[str, ...] = _option("Text column of --data; 'a,b' for pairs of texts. Without it: by name.", ())
    label: str | None = _option("Label column of --data. Without it: by name.")
    rows: tuple[int, ...] = _option("Of a task: rows for training, for evaluation, and for the test at the end.", (512, 256, 256))
    shots: int | None = _option("Of a task: so many rows of every class for training, and so many for evaluation, instead of --rows.")
    task_type: str | None = _option("How the model is asked: head, masked or causal (a task's prompts). Without it: head.")
    objective: str = _option(
        "What is minimised: cross-entropy, option (of the right answer's tokens alone), or 1 minus accuracy or f1.", "cross-entropy"
    )
    adapter: tuple[str, ...] = _option("What is trained: full, head, lora, dora, prefix, prompt, or patterns of parameter names.", ())
    rank: int | None = _option("Of LoRA and DoRA. Without it: 8.")
    lr_ratio: float | None = _option("LoRA+: the learning rate of B is so many times that of A, which is then trained too.")
    virtual_tokens: int | None = _option("Of prefix and prompt tuning. Without it: 5.")
    head: str = _option("Begin with the head as loaded (random if new), or with a linear probe.", "loaded")
    optimizer: str = _option("One of " + ", ".join(CHOICES["optimizer"]) + ".", "mezo")
    lr: float | None = _option("Learning rate. Without it: the adapter's starting point (docs/settings.md).")
    eps: float | None = _option("Perturbation radius. Without it: the adapter's starting point.")
    lr_full: float | None = _option("mezo-svrg: learning rate at anchors. Without it: 10 times --lr.")
    split: str | None = _option(
        "hybrid: who is trained by backpropagation, beside the head: depth:K (blocks from K on), inter:N (the N deepest; places as 1+3), "
        "intra:N:0.5 (that share of each parameter in them), lisa:G:K (G at random every K steps, and "
        "embeddings). Without it: the deeper half."
    )
    zo: str | None = _option("hybrid: what moves the others: " + ", ".join(CHOICES["zo"]) + ". Without it: mezo. --lr, --eps, ... are its.")
    fo: str | None = _option("hybrid: what moves those: adamw or sgd. Without it: adamw.")
    fo_lr: float | None = _option(
        "hybrid: learning rate of --fo. Without it: 1e-5 for adamw and 2e-5 for sgd, more for adapters (docs/settings.md)."
    )
    share_forward: bool = _option("hybrid: take the gradient at the first perturbed place, one forward pass less.", False)
    schedule: str = _option("How the learning rate ends: linear, cosine or constant.", "linear")
    weight_decay: float | None = _option("Decoupled weight decay: theta shrinks by lr times this a step.")
    q: int | None = _option("Directions a step, averaged; of mezo-svrg: steps from anchor to anchor.")
    estimator: str | None = _option("two-point or one-sided.")
    sparsity: float | None = _option("Share of all elements that the noise leaves alone.")
    blocks: bool = _option("Estimate each layer by itself.", False)
    defer: bool = _option("Leave each update to the next step's first pass.", False)
    anchor: str | None = _option("mezo-svrg: copy or replay.")
    full_batch: int | None = _option("mezo-svrg: rows at an anchor, drawn anew for each. Without it: all training rows.")
    momentum: float | None = _option("zo-momentum.")
    betas: tuple[float, ...] = _option("zo-adam: '0.9,0.999'.", ())
    delta: float | None = _option("zo-adam: added to the denominator.")
    amsgrad: bool = _option("zo-adam: divide by the running maximum.", False)
    form: str | None = _option("zo-sign: element or scalar.")
    state_dtype: str | None = _option("zo-adam, zo-momentum: float32 or bfloat16.")
    seed: int = _option("Fixes the split, the new parts' first values, the batches and the noise.", 0)
    steps: int = _option("Optimizer steps.", 400)
    batch_size: int = _option("Rows that go through the model at once.", 16)
    accumulate: int = _option("Batches a step: all are seen along the same noise.", 1)
    eval_every: int = _option("Steps between evaluations on held-out rows.", 100)
    save_every: int | None = _option("Steps between checkpoints, from which --resume goes on. Without it: --eval-every.")
    keep: str = _option("Which weights are saved at the end: last, or best, those of the evaluation with the best metric.", "last")
    max_length: int = _option("Tokens a row; longer texts are cut.", 128)
    dtype: str = _option("float32, bfloat16 or float16.", "float32")
    device: str | None = _option("cpu or cuda. Without it: a GPU where there is one.")
    no_check: bool = _option("Do not check, by some forward passes before the first step, that losses, eps and rounding are sound.", False)
    out: str | None = _option("Folder for model, curve and logs. Without it: zokern-finetune, or -2, ...")
    overwrite: bool = _option("Replace an earlier run in --out.", False)

    @property
    def zeroth(self) -> str | None:
        """The zeroth-order optimizer: of hybrid that of its half, None where it is frozen."""
        if self.optimizer != "hybrid":
            return self.optimizer
        return None if self.zo == "none" else self.zo or "mezo"

    def checked(self) -> "Settings":
        """The same with what follows from the rest filled in, lr and eps excepted.

        Raises:
            BadInput: a value of another type or out of range, or options that do not go together, by the names of the options.
        """
        return fitting(self, title)._checked()

    def _checked(self):
        for name, (cure, holds) in RANGES.items():
            value = getattr(self, name)
            if value is not None and (value != () or name == "rows") and not holds(value):
                raise BadInput(f"{title(name)} {shown(value)}: pass {cure}")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise BadInput(f"{title(name)} {shown(value)}: pass one of {', '.join(choices)}{nearest(value, choices)}")
        self._together()
        lora = not self.adapter and self.model is None
        local = {name: path for name in PATHS if os.path.exists(path := os.path.expanduser(getattr(self, name) or ""))}
        return replace(
            self,
            **{name: str(Path(path).absolute()) for name, path in local.items()},  # from wherever the run is gone on with
            adapter=self.adapter or (("lora",) if lora else ("full",)),
            task_type=self.task_type or "head",
            **({"zo": self.zo or "mezo", "fo": self.fo or "adamw"} if self.optimizer == "hybrid" else {}),
            save_every=self.save_every or self.eval_every,
            device=self.device or _device(),
            out=self.out or _free("zokern-finetune"),
        )

    def _together(self):
        plain = self.task is None
        if self.device and self.device.startswith("cuda:"):
            cure = f"pass --device cuda, with CUDA_VISIBLE_DEVICES={self.device.partition(':')[2]} set"
            raise BadInput(f"--device {self.device}: Trainer takes the first GPU that it sees: {cure}")
        if plain and self.data is None and (self.eval_data or self.text or self.label):
            raise BadInput("--eval-data, --text and --label belong to --data: pass --data as well")
        if not plain:
            for name in ("eval_data", "text", "label"):
                if getattr(self, name):
                    raise BadInput(f"{title(name)} does not go with --task {self.task}, whose columns are known: leave it out")
        elif self.task_type in ("masked", "causal"):
            raise BadInput(f"--task-type {self.task_type} needs the prompts of a task: pass --task, or --task-type head")
        elif self.shots is not None or self.rows != (512, 256, 256):
            raise BadInput("--rows and --shots are of tasks: pass --task, or divide the rows by --eval-data")
        if self.head == "probe" and self.task_type in ("masked", "causal"):
            raise BadInput(
                f"--head probe with --task-type {self.task_type}, which has no new head: pass --task-type head, or --head loaded"
            )
        adapters = {"lora", "dora"} & set(self.adapter or ("lora",) * (self.model is None))
        for name in ("rank", "lr_ratio"):
            if getattr(self, name) is not None and not adapters:
                raise BadInput(f"{title(name)} is of LoRA and DoRA: pass --adapter lora, or leave it out")
        if self.virtual_tokens is not None and not {"prefix", "prompt"} & set(self.adapter):
            raise BadInput("--virtual-tokens is of prefix and prompt tuning: pass --adapter prefix, or leave it out")
        if self.optimizer in ("forward-gradient", "hybrid") and self.objective in ("accuracy", "f1"):
            raise BadInput(f"--objective {self.objective} has no derivative for --optimizer {self.optimizer}: pass cross-entropy, or mezo")
        if self.task_type == "masked" and {"prefix", "prompt"} & set(self.adapter):
            raise BadInput(
                f"--adapter {','.join(self.adapter)} is not for masked models: pass lora, dora, full or patterns, or --task-type head"
            )
        if self.full_batch is not None and self.optimizer != "mezo-svrg":
            raise BadInput(f"--full-batch does not go with --optimizer {self.optimizer}: pass --optimizer mezo-svrg, or leave it out")
        self._halves()

    def _halves(self):
        if self.optimizer != "hybrid":
            for name in ("split", "zo", "fo", "fo_lr", "share_forward"):
                if getattr(self, name):
                    raise BadInput(f"{title(name)} is of --optimizer hybrid: pass that, or leave it out")
            return
        for name in ("defer", "lr_ratio"):
            if getattr(self, name):
                raise BadInput(f"{title(name)} does not go with --optimizer hybrid: leave it out, or pass --optimizer mezo")
        if self.blocks and self.split and self.split.startswith("intra"):
            raise BadInput(f"--blocks does not go with --split {self.split}, which divides the parameters of a block: pass another split")
        if self.share_forward and self.zeroth in (None, "forward-gradient"):
            raise BadInput(f"--share-forward with --zo {self.zo}, which has no forward pass to share: leave it out, or pass --zo mezo")
        if self.zeroth is not None and self.adapter == ("head",):
            raise BadInput("--adapter head leaves nothing to the zeroth-order half of --optimizer hybrid: pass --zo none, or another")
        if self.dtype == "float16" and not {"lora", "dora", "prefix", "prompt"} & set(self.adapter or ("lora",) * (self.model is None)):
            raise BadInput("--dtype float16 with --optimizer hybrid, whose gradients and AdamW underflow in it: pass float32 or bfloat16")
        for name in ("lr", "eps", *OPTIMIZER):
            if self.zeroth is None and name != "weight_decay" and getattr(self, name) not in (None, False, ()):
                raise BadInput(f"{title(name)} is of the zeroth-order half, and --zo is none: leave it out, or pass --zo mezo")

    def record(self) -> dict:
        """For run.json and the log, as JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, record: dict) -> "Settings":
        """The settings that ``record`` wrote, checked; code of a model's is trusted by who runs it, not by a file.

        Raises:
            BadInput: a setting that is not known here, one that is missing, or what ``checked`` refuses.
        """
        known = [f.name for f in fields(cls) if f.name != "trust_remote_code"]
        for name in record:
            if name not in (*known, "trust_remote_code"):
                raise BadInput(f"{brief(name)} is no setting of this zokern{nearest(name, known)}: use the zokern that made it")
        for name in known:
            if name not in record:
                raise BadInput(f"{name!r} is missing: use the zokern that made it")
        return cls(**{name: record[name] for name in known}).checked()


def title(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known) -> str:
    """ ", did you mean ...?" where something known is near."""
    close = get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value):
    """A value as its option takes it, in a line."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if text.isprintable() and len(text) <= 80 else brief(text)


def _device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _free(name):
    path, n = Path(name), 1
    while path.exists():
        n += 1
        path = Path(f"{name}-{n}")
    return str(path)
