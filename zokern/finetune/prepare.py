"""Before a run: whatever can be refused is refused here, and all that the training needs is loaded. Nothing is
written but the weights that a model computes with which lives in a file."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput, need, require
from ..tasks.reader import Features
from . import output
from .data import Data
from .data import load as load_data
from .features import head_of, probe
from .metrics_of_model import metrics_of
from .model import LoadedModel, settle_network
from .model import load as load_model
from .optimizers import make, with_rates
from .options import title
from .runs import refuse_within, versions
from .settings import Settings

PACKAGES = ("transformers", "accelerate", "peft", "sklearn", "safetensors", "matplotlib")  # asked for before any work, not after it


@dataclass
class Run:
    """A run that is ready to be trained.

    Attributes:
        settings: with all that follows from them filled in.
        path: its folder, absolute.
        data, loaded: what it learns from, and the model.
        train, held_out: features of the rows of the same name.
        resumed: what run.json said of a run that goes on; None of a new one.
        checkpoint: where it goes on from; None: from its first step on.
        began: time.perf_counter() at the beginning.
        before, probed: metrics on held-out rows, of the model as loaded and with a linear probe; the same where there is no probe.
        steps_made: steps of this process.
    """

    settings: Settings
    path: Path
    data: Data
    loaded: LoadedModel
    train: list[Features]
    held_out: list[Features]
    resumed: dict[str, Any] | None
    checkpoint: Path | None
    began: float
    before: dict[str, float] = field(default_factory=dict)
    probed: dict[str, float] = field(default_factory=dict)
    steps_made: int = 0

    @property
    def method(self) -> str:
        """What is trained, in words."""
        return " + ".join(self.settings.adapter)

    @property
    def trained_parameters(self) -> int:
        return sum(p.numel() for _, p in self.loaded.trained())

    def record(self) -> dict[str, Any]:
        """What run.json says of a run that begins."""
        return {
            "settings": self.settings.record(),
            "labels": list(self.data.task.labels),
            "columns": self.data.columns,
            "digest": self.data.digest(),
            **versions(),
            "before": self.before,
            "probed": self.probed,
        }

    def initial(self) -> dict[str, torch.Tensor]:
        """The parameters that the model as loaded does not have, or has otherwise, by name."""
        loaded = self.loaded
        head = head_of(loaded.model, len(self.data.task.labels)) if self.settings.head == "probe" else None
        fitted = set() if head is None else {id(p) for p in head.parameters()}
        return {name: p for name, p in loaded.model.named_parameters() if name in loaded.new or id(p) in fitted}


def prepare(settings: Settings, path: Path, say: Callable[[str], None], resumed: dict[str, Any] | None = None) -> Run:
    """Load data and model, and look at the model as it is.

    Args:
        settings: checked.
        path: the folder of the run, which is this process's.
        resumed: what run.json says of a run that goes on. Default None: it is a new one.
    """
    began = time.perf_counter()
    if not resumed:
        refuse_within(settings, path)
    settle_network(settings)
    require(*PACKAGES)
    settings = with_rates(settings)
    data = load_data(settings)
    if resumed and resumed["digest"] != data.digest():
        raise BadInput(f"--resume {str(path)!r}: the rows are not those that the run began with: restore --data, or begin another run")
    if data.columns:
        say(f"{data.name}: {data.described()}; {len(data.train)} training rows, {len(data.held_out)} held out")
    loaded = load_model(settings, data, path / output.WEIGHTS)
    make(settings, loaded.model, loaded.streamed)
    checkpoint = need("zokern.hf.checkpoint").newest(path / output.CHECKPOINTS) if resumed else None
    train, held_out = ([loaded.reader.encode(example) for example in examples] for examples in (data.train, data.held_out))
    run = Run(settings, path, data, loaded, train, held_out, resumed, checkpoint, began)
    say(_described(run))
    if resumed:
        run.before, run.probed = resumed["before"], resumed["probed"]
        for name in (data.task.metric, *(() if data.task.writes else ("loss",))):
            if not {name} <= run.before.keys() & run.probed.keys():
                raise BadInput(f"{str(path / output.RUN)!r} lacks the {name} of before or probed: restore the file")
        return run
    run.before = run.probed = metrics_of(loaded, data.held_out, held_out)
    if settings.head == "probe":
        probe(loaded, train)
        run.probed = metrics_of(loaded, data.held_out, held_out)
    return run


def _described(run: Run) -> str:
    settings, loaded = run.settings, run.loaded
    given = settings.optimizer_settings | {name: getattr(settings, name) for name in ("lr", "eps", "fo_lr")}
    radius = settings.zeroth_class.radius if settings.zeroth_class else "eps"
    rates = [f"{title(name)[2:]} {value:g}" for name in ("lr", radius, "fo_lr") if (value := given.get(name))]
    halves = f" of {settings.zo} and {settings.fo}" if settings.halves else ""
    new = ", new classification head" if loaded.fresh_head else ""
    how = f"{settings.optimizer}{halves}, {run.method}, {run.trained_parameters:,} parameters, {', '.join(rates)}"
    return f"{loaded.name} on {run.data.name}: {how}{new}"
