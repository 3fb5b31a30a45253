"""After a run: its model is saved, judged on held-out and test rows, and described."""

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..optim import named
from . import curves, output
from .metrics_of_model import best_of, metrics_of
from .prepare import Run

if TYPE_CHECKING:
    from .train import Training


@dataclass(frozen=True)
class Result:
    """A run of ``finetune`` in numbers.

    Attributes:
        model: its name, folder or hub id.
        method: what was trained: "full", "lora", ... or patterns of names.
        optimizer: its name on the command line.
        data: what the rows are called.
        labels: names of the classes.
        columns: of the data, by what they were taken for.
        metric: the one that is reported, a key of ``after``.
        train_rows: how many.
        held_out_rows: how many.
        test_rows: how many; 0 without a test.
        trained_parameters: elements that were trained.
        parameters: elements of the model.
        before: loss and the task's metrics on the held-out rows, before any step.
        probed: the same with the head that a linear probe fitted; None where none was.
        after: the same of the model as saved.
        best: the best evaluation: its step, metrics and loss; None where there was none.
        kept: the weights that were saved: "last" or "best".
        test: of the model as saved on the test rows; None where there are none.
        steps: that were made.
        forwards: forward passes of all steps.
        backwards: backward passes of all steps.
        skipped: steps whose loss was not finite.
        interrupted: whether the run was stopped.
        train_seconds: of all steps, without the judging.
        seconds: of the process that ended the run.
        steps_per_second: of the steps, without the judging.
        peak_mib: the most memory that was in use, MiB: of the device, or of the process on a CPU.
        out: the folder.
        load: the line of Python that loads the model.
    """

    model: str
    method: str
    optimizer: str
    data: str
    labels: tuple[str, ...]
    columns: dict[str, Any]
    metric: str
    train_rows: int
    held_out_rows: int
    test_rows: int
    trained_parameters: int
    parameters: int
    before: dict[str, float]
    probed: dict[str, float] | None
    after: dict[str, float]
    best: dict[str, Any] | None
    kept: str
    test: dict[str, float] | None
    steps: int
    forwards: int
    backwards: int
    skipped: int
    interrupted: bool
    train_seconds: float
    seconds: float
    steps_per_second: float
    peak_mib: float
    out: str
    load: str

    def facts(self) -> list[tuple[str, str]]:
        """What there is to know beside the numbers, each with its name."""
        classes = ", ".join(self.labels[:6]) + (f" and {len(self.labels) - 6} more" if len(self.labels) > 6 else "")
        classes = f", classes {classes}" if classes else ""
        skipped = f", {self.skipped} skipped for want of a finite loss" if self.skipped else ""
        metrics = "" if self.interrupted else ", metrics.json"
        log = "log.jsonl, trajectory.jsonl" if named(self.optimizer).replayable else "log.jsonl"
        backwards = f" and {self.backwards} backward passes" if self.backwards else ""
        return [
            *([("stopped", "early: what follows is of the steps done")] if self.interrupted else []),
            ("model", f"{self.model}, {self.method}: {self.trained_parameters:,} of {self.parameters:,} parameters trained"),
            ("data", f"{self.data}: {self.train_rows} training rows, {self.held_out_rows} held out{classes}"),
            *self._best(),
            (
                "time",
                f"{self.train_seconds:.0f} s in training, {self.seconds:.0f} s in all of this process; {self.steps} steps, "
                f"{self.forwards} forward passes{backwards}, {self.steps_per_second:.2f} steps/s{skipped}",
            ),
            ("memory", f"{self.peak_mib:,.0f} MiB at most"),
            ("saved", f"{self.out} (model, tokenizer, curve.png, {log}{metrics})"),
            ("load with", self.load),
        ]

    def numbers(self) -> dict[str, dict[str, str]]:
        """Losses and metrics: rows by column."""
        columns: dict[str, dict[str, Any] | None] = {"before": self.before, "probe": self.probed, "after": self.after}
        if self.best and self.best["step"] != self.steps:
            columns[f"best, step {self.best['step']}"] = self.best
        columns["test rows"] = self.test
        names = [name for name in self.after if name != "loss"] + ["loss"]
        return {column: {name: f"{found[name]:.3f}" for name in names if name in found} for column, found in columns.items() if found}

    def lines(self) -> list[str]:
        """The summary, to be read."""
        facts = self.facts()
        numbers = [
            (self.metric, f"{self._path(self.metric)} on held-out rows"),
            *([("loss", f"{self._path('loss')} on held-out rows")] if "loss" in self.after else []),
            *([("test", f"{self.metric} {self.test[self.metric]:.3f} on {self.test_rows} rows")] if self.test else []),
        ]
        behind = [name for name, _ in facts].index("data") + 1
        return [f"{name:<10} {text}" for name, text in (*facts[:behind], *numbers, *facts[behind:])]

    def _best(self) -> list[tuple[str, str]]:
        """Where an evaluation on the way was better than the last one."""
        if not self.best or self.best["step"] == self.steps:
            return []
        again = f": zokern replay {self.out} --step best --out FOLDER" if named(self.optimizer).replayable else ""
        how = ", which is saved" if self.kept == "best" else again
        return [("best", f"{self.metric} {self.best[self.metric]:.3f} on held-out rows after step {self.best['step']}{how}")]

    def _path(self, name: str) -> str:
        probed = f"{self.probed[name]:.3f} (linear probe) -> " if self.probed else ""
        return f"{self.before[name]:.3f} -> {probed}{self.after[name]:.3f}"


def report(run: Run, training: "Training") -> Result:
    """Write model, curve and metrics into the folder of a run whose steps are made. -> the run in numbers."""
    settings, data, loaded, path = run.settings, run.data, run.loaded, run.path
    trained = run.trained_parameters  # of the adapter, which becomes part of the weights as the model is saved
    with output.whole(path) as draft:
        loaded.save(draft)
        after = metrics_of(loaded, data.held_out, run.held_out)
        test = metrics_of(loaded, data.test, [loaded.reader.encode(example) for example in data.test]) if data.test else None
        title = (f"{loaded.name} on {data.name}", f"{settings.optimizer}, {run.method}")
        forwards, backwards = training.passes
        loss = "nats" if loaded.reader.smooth else f"nats; training: 1 - {settings.objective}"
        names = (step_of(training.steps, forwards, backwards), f"loss ({loss})")
        draw(training.trainer.state.log_history, data.task.metric, title, names, draft / output.CURVE)
    result = Result(
        model=loaded.name,
        method=run.method,
        optimizer=settings.optimizer,
        data=data.name,
        labels=tuple(data.task.labels),
        columns=data.columns,
        metric=data.task.metric,
        train_rows=len(data.train),
        held_out_rows=len(data.held_out),
        test_rows=len(data.test),
        trained_parameters=trained,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        before=run.before,
        probed=run.probed if settings.head == "probe" else None,
        after=after,
        best=training.best,
        kept=settings.keep,
        test=test,
        steps=training.steps,
        forwards=forwards,
        backwards=backwards,
        skipped=training.trainer.zeroth_order.skipped,
        interrupted=training.interrupted,
        train_seconds=training.seconds,
        seconds=time.perf_counter() - run.began,
        steps_per_second=training.steps / training.seconds if training.seconds else 0.0,
        peak_mib=training.own_memory.peak_mib or peak_mib(loaded.device),
        out=str(settings.out),
        load=loaded.load(str(settings.out)),
    )
    if not training.interrupted:
        output.write(path / output.METRICS, json.dumps(asdict(result), indent=1))
    return result


def peak_mib(device: torch.device) -> float:
    """The most memory held so far, in MiB: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS and KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def draw(history: list[dict[str, Any]], metric: str, title: Sequence[str], names: tuple[str, str], path: Path) -> Any:
    """Losses and held-out metric over the steps, of what Trainer logged, as a PNG. -> the figure.

    Args:
        title: its lines.
        names: of the axes of steps and of losses.
    """
    figure, (upper, lower) = curves.figure_of(title, names[0], [names[1], metric])
    steps, losses = curves.series(history, "loss")
    means, window = curves.smooth(losses)
    missing = sorted({entry["step"] for entry in history if "loss" in entry} - set(steps))
    upper.under((steps, losses), curves.BLUE, missing)
    name = f"training, mean of {window}" if window > 1 else "training"
    upper.line((steps, means), name, curves.BLUE, missing)
    upper.without(missing)
    for panel, name in ((upper, "loss"), (lower, metric)):
        held_out = curves.series(history, f"eval_{name}")
        panel.before(held_out)
        panel.held_out(held_out)
    if best := best_of(history, metric):
        lower.best(best["step"], best[metric], "step")
    for panel in (upper, lower):
        panel.finish()
    curves.save(figure, path)
    return figure


def step_of(steps: int, forwards: int, backwards: int) -> str:
    """What a step is, by the passes of all."""
    passes = [f"{count / steps:.3g} {name}" for count, name in ((forwards, "forward"), (backwards, "backward")) if steps and count]
    return f"step ({' and '.join(passes)} pass{'' if passes == ['1 forward'] else 'es'} each)" if passes else "step"
