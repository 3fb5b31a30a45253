"""Everything that decides a run, each option with the one line that says what it is."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch

from ..errors import BadInput
from ..optim import ClosureOptimizer, named, optimizers
from ..tasks.kinds import READERS
from ..tasks.reader import OBJECTIVES
from .options import fitting, option, title
from .run_settings import DTYPES, ZO, Length, Natural, Positive, RunSettings, Seed, free, zo_choices

# The first k blocks zeroth-order; so many of the deepest blocks first-order, or those of the numbers 1+3 (of one number: +2), all or a
# share of each parameter; so many at random, drawn again every so many steps.
BLOCKS = r"(\d+|\+\d+|\d+(\+\d+)+)"
SPLIT = re.compile(rf"depth:\d+|inter:{BLOCKS}|intra:{BLOCKS}(:0?\.\d+)?|lisa:\d+:\d+")
FIRST_ORDER = {"adamw": (torch.optim.AdamW, 1e-5), "sgd": (torch.optim.SGD, 2e-5)}  # with LoHO's lr, on RoBERTa-large
FO = "adamw"  # what moves the first-order half of a model where nothing else is asked for
LORA, VIRTUAL = {"lora", "dora"}, {"prefix", "prompt"}  # adapters
Ratio = Annotated[float, "a number >= 1", lambda x: 1 <= x < math.inf]
Split = Annotated[str, "depth:3, inter:4, inter:1+3, intra:4:0.5 or lisa:2:20", SPLIT.fullmatch]
Columns = Annotated[tuple[str, ...], "one column or two", lambda x: len(x) <= 2]
SIZES = "three integers, the last one may be 0, as '512,256,256'"
Rows = Annotated[tuple[int, ...], SIZES, lambda x: len(x) == 3 and min(x[:2]) >= 1 and x[2] >= 0]
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Settings(RunSettings):
    """What to fine-tune, on what, and how. ``checked()`` fills in what follows from the rest.

    Each field is an option of ``zokern finetune``, and its metadata's ``help`` says what it is (docs/command_line.md): batch_size is
    --batch-size. ``optimizer_settings`` holds those of the optimizer, by name.
    """

    model: str | None = option("Local folder, GGUF file or hub id. Without it: a small MiniLM, with LoRA.")
    trust_remote_code: bool = option("Run the Python code that comes with --model. Read it first.", False)
    task: str | None = option("A task that zokern knows: sst2, rte, boolq, ... (docs/tasks.md).")
    data: str | None = option(
        "With --task: a local copy of it. Else: csv, tsv, json, jsonl or parquet file, or a hub data set (name or name:config); without "
        "it sentences from the docstrings of networkx and sympy, to be told apart."
    )
    eval_data: str | None = option("The same, for held-out rows. Without it: a fifth of --data.")
    text: Columns = option("Text column of --data; 'a,b' for pairs of texts. Without it: by name.", ())
    label: str | None = option("Label column of --data. Without it: by name.")
    rows: Rows = option("Of a task: rows for training, for evaluation, and for the test at the end.", (512, 256, 256))
    shots: Natural | None = option("Of a task: so many rows of every class for training, and so many for evaluation, instead of --rows.")
    task_type: str | None = option(
        "What the model predicts: head, a class by a head on top; causal, the words of a task's prompt, by models that write (GPT, Llama); "
        "masked, the same by models that fill in words (BERT). Without it: head.",
        formerly=("ask",),
        choices=tuple(READERS),
    )
    objective: str = option(
        "What is minimised: cross-entropy, option (of the right answer's tokens alone), or 1 minus accuracy or f1.",
        "cross-entropy",
        choices=OBJECTIVES,
    )
    adapter: tuple[str, ...] = option("What is trained: full, head, lora, dora, prefix, prompt, or patterns of parameter names.", ())
    rank: Natural | None = option("Of LoRA and DoRA. Without it: 8.", None, "lora_r")
    lr_ratio: Ratio | None = option("LoRA+: learning rate of B over that of A, which is then trained too.", None, "loraplus_lr_ratio")
    virtual_tokens: Natural | None = option("Of prefix and prompt tuning. Without it: 5, or 10 of prompt.", None, "num_virtual_tokens")
    head: str = option("Begin with the head as loaded (random if new), or with a linear probe.", "loaded", choices=("loaded", "probe"))
    optimizer: str = option(lambda: f"One of {', '.join(optimizers())}.", ZO, choices=lambda: tuple(optimizers()))
    lr: Positive | None = option("Learning rate. Without it: the adapter's starting point (docs/settings.md).", None, "learning_rate")
    eps: Positive | None = option("Perturbation radius. Without it: the adapter's starting point.")
    split: Split | None = option(
        "hybrid: which parameters are trained by backpropagation, beside the head: depth:K (blocks from K on), inter:N (the N deepest; "
        "blocks by number as 1+3), intra:N:0.5 (that share of each parameter in them), lisa:G:K (G blocks at random every K steps, and "
        "embeddings). Without it: the deeper half."
    )
    zo: str | None = option(lambda: f"hybrid: what moves the others: {', '.join(zo_choices())}. Without it: {ZO}.", choices=zo_choices)
    fo: str | None = option(f"hybrid: what moves those: {' or '.join(FIRST_ORDER)}. Without it: {FO}.", choices=tuple(FIRST_ORDER))
    fo_lr: Positive | None = option("hybrid: learning rate of --fo. Without it: 1e-5 (adamw) or 2e-5 (sgd), and more for adapters.")
    optimizer_settings: dict[str, object] = field(default_factory=dict)
    schedule: str = option("How the learning rate ends: linear, cosine or constant.", "linear", "lr_scheduler_type", choices=SCHEDULES)
    full_batch: Natural | None = option("mezo-svrg: rows at an anchor, drawn anew for each. Without it: all training rows.")
    seed: Seed = option("Fixes the split, the new parts' first values, the batches and the noise.", 0)
    steps: Natural = option("Optimizer steps.", 400, "max_steps")
    batch_size: Natural = option("Rows that go through the model at once.", 16, "per_device_train_batch_size")
    accumulate: Natural = option("Batches a step: all are seen along the same noise.", 1, "gradient_accumulation_steps")
    directions: Natural | None = option(
        "Groups of processes, of those that torchrun has started, which measure different points of a step on the same rows. Without it "
        "all measure all points, each of rows of its own."
    )
    eval_every: Natural = option("Steps between evaluations on held-out rows.", 100, "eval_steps")
    save_every: Natural | None = option("Steps between checkpoints, for --resume. Without it: --eval-every.", None, "save_steps")
    keep: str = option("Weights that are saved: last, or best, of the evaluation with the best metric.", "last", choices=("last", "best"))
    max_length: Length = option("Tokens a row; longer texts are cut.", 128)
    dtype: str = option("float32, bfloat16 or float16.", "float32", choices=DTYPES)
    device: str | None = option("cpu or cuda. Without it: a GPU where there is one.")
    offload: str | None = option(
        "Weights that lie elsewhere than where the model computes, and come part by part: in host memory, or in a file on the disk, for "
        "models that fit into neither (docs/precision.md).",
        choices=("host", "disk"),
    )
    no_check: bool = option("Do not check, by some forward passes before the first step, that losses, eps and rounding are sound.", False)
    out: str | None = option("Folder for model, curve and logs. Without it: zokern-finetune, or -2, ...", None, "output_dir")
    overwrite: bool = option("Replace an earlier run in --out.", False)

    @property
    def zeroth_class(self) -> type[ClosureOptimizer] | None:
        """The optimizer that perturbs weights: --optimizer, or where that has two halves --zo; None where that half is frozen."""
        name = (self.zo or ZO) if self.halves else self.optimizer
        return None if name == "none" else named(name)

    def checked(self) -> "Settings":
        """Return the same with what follows from the rest filled in, lr and eps excepted.

        Raises:
            BadInput: a value of another type or out of range, or options that do not go together, by the names of the options.
        """
        given: Settings = fitting(self)
        settings = replace(
            given,
            **given._local(),
            optimizer_settings=given._optimizer_settings(),
            adapter=given.adapter or (("lora",) if given.model is None else ("full",)),
            task_type=given.task_type or "head",
            zo=given.zo or ZO if given.halves else given.zo,
            fo=given.fo or FO if given.halves else given.fo,
            save_every=given.save_every or given.eval_every,
            device=given.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            out=given.out or free("zokern-finetune"),
        )
        for fault in settings._faults():
            raise BadInput(fault)
        return settings

    def _faults(self) -> Iterator[str]:
        """What does not go together, the first fault first."""
        name, device, plain = self.optimizer, self.device or "", self.task is None
        cls, prompted, adapters = named(name), self.task_type in ("masked", "causal"), set(self.adapter)
        full_batch, halves = (
            " or ".join(other for other, its in optimizers().items() if getattr(its, what)) for what in ("full_batch", "divides")
        )
        if device.startswith("cuda:"):
            cure = f"pass --device cuda, with CUDA_VISIBLE_DEVICES={device.partition(':')[2]} set"
            yield f"--device {device}: Trainer takes the first GPU that it sees: {cure}"
        if plain and self.data is None and (self.eval_data or self.text or self.label):
            yield "--eval-data, --text and --label belong to --data: pass --data as well"
        for names, fits, fault in (
            (("eval_data", "text", "label"), plain, f"does not go with --task {self.task}, whose columns are known: leave it out"),
            (("rank", "lr_ratio"), adapters & LORA, "is of LoRA and DoRA: pass --adapter lora, or leave it out"),
            (("virtual_tokens",), adapters & VIRTUAL, "is of prefix and prompt tuning: pass --adapter prefix, or leave it out"),
            (("full_batch",), cls.full_batch, f"does not go with --optimizer {name}: pass --optimizer {full_batch}, or leave it out"),
            (("split", "zo", "fo", "fo_lr"), cls.divides, f"is of --optimizer {halves}: pass that, or leave it out"),
            (("lr_ratio", "defer"), not cls.divides, f"does not go with --optimizer {name}: leave it out, or pass --optimizer {ZO}"),
        ):
            for given in names:
                if (getattr(self, given, None) or self.optimizer_settings.get(given)) and not fits:
                    yield f"{title(given)} {fault}"
        if (self.directions or 1) > 1 and (cls.derivative or cls.divides):
            yield f"--directions {self.directions} with --optimizer {name}, which takes derivatives: leave it out, or pass --optimizer {ZO}"
        if plain and prompted:
            yield f"--task-type {self.task_type} needs the prompts of a task: pass --task, or --task-type head"
        if plain and (self.shots is not None or self.rows != type(self).rows):
            yield "--rows and --shots are of tasks: pass --task, or name the held-out rows by --eval-data"
        if prompted and self.head == "probe":
            yield f"--head probe with --task-type {self.task_type}, which has no new head: pass --task-type head, or --head loaded"
        if cls.derivative and self.objective in ("accuracy", "f1"):
            yield f"--objective {self.objective} has no derivative for --optimizer {name}: pass cross-entropy, or {ZO}"
        if self.task_type == "masked" and adapters & VIRTUAL:
            chosen = ",".join(self.adapter)
            yield f"--adapter {chosen} is not for masked models: pass lora, dora, full or patterns, or --task-type head"
        if cls.divides:
            yield from self._faults_of_halves(f"of --optimizer {name}")
        if self.offload:
            yield from self._faults_of_offload(f"with --offload {self.offload}")

    def _faults_of_halves(self, what: str) -> Iterator[str]:
        given, zeroth = self.optimizer_settings, self.zeroth_class
        streamed = given.get("perturbation") == "streamed"
        for asked, holds in (("--blocks", given.get("blocks")), ("--perturbation streamed", streamed)):
            if holds and self.split and self.split.startswith("intra"):
                yield f"{asked} does not go with --split {self.split}, which divides the parameters of a block: pass another split"
        if given.get("share_forward") and (zeroth is None or zeroth.derivative):
            yield f"--share-forward with --zo {self.zo}, which has no forward pass to share: leave it out, or pass --zo {ZO}"
        if zeroth is not None and self.adapter == ("head",):
            yield f"--adapter head leaves nothing to the zeroth-order half {what}: pass --zo none, or another adapter"
        if self.dtype == "float16" and not (LORA | VIRTUAL) & set(self.adapter):
            yield f"--dtype float16 underflows in gradients and AdamW {what}: pass float32 or bfloat16"

    def _faults_of_offload(self, what: str) -> Iterator[str]:
        cls, given, adapters = named(self.optimizer), self.optimizer_settings, set(self.adapter)
        takes, without = cls.declared(), "leave out --offload"
        if cls.derivative:
            yield f"--optimizer {self.optimizer} {what}: it takes derivatives, which need all weights at once: pass {ZO}, or {without}"
        if given.get("perturbation", "streamed") != "streamed":
            yield f"--perturbation {given['perturbation']} {what}, whose weights are streamed: leave it out, or {without}"
        if chosen := adapters & (LORA | VIRTUAL):
            yield f"--adapter {','.join(sorted(chosen))} {what}, which trains the model's own weights: pass --adapter full, or {without}"
        if self.head == "probe":
            yield f"--head probe {what}: fit it in a run of --adapter head, and pass --model of that, or {without}"
        if self.offload == "host" and self.device == "cpu":
            yield f"--device cpu {what}: the weights are there already: leave out --offload, or pass --offload disk"
        if self.offload == "disk" and "state_dtype" in takes:
            yield f"--optimizer {self.optimizer} {what} keeps state in memory, as much as the weights: pass {ZO}, or {without}"
        if self.offload == "disk" and "anchor" in takes and given.get("anchor") != "replay":
            yield f"--optimizer {self.optimizer} {what} would keep a copy of the weights in memory: pass --anchor replay"
