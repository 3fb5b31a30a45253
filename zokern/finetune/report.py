"""After a run: its model is saved, judged on held-out and test rows, and described."""

import json
import math
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from ..errors import need
from ..optim import named
from . import output
from .metrics_of_model import metrics_of
from .prepare import Run

if TYPE_CHECKING:
    from .train import Training

WINDOW = 5  # logged losses that the drawn one is averaged over: one says little


@dataclass(frozen=True)
class Result:
    """A run in numbers. ``before``, ``probed`` (None where no probe was fitted) and ``after`` (of the model as saved) are the loss and the
    task's metrics on the held-out rows; ``test`` those on the test rows, None where there are none; ``best`` as of ``best_of``.
    ``train_seconds`` are of all steps, without the judging; ``seconds`` all of the process that ended the run."""

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

    def lines(self) -> list[str]:
        """The summary, to be read."""
        classes = ", ".join(self.labels[:6]) + (f" and {len(self.labels) - 6} more" if len(self.labels) > 6 else "")
        classes = f", classes {classes}" if classes else ""
        skipped = f", {self.skipped} skipped for want of a finite loss" if self.skipped else ""
        metrics = "" if self.interrupted else ", metrics.json"
        log = "log.jsonl, trajectory.jsonl" if named(self.optimizer).replayable else "log.jsonl"
        backwards = f" and {self.backwards} backward passes" if self.backwards else ""
        return [
            *(["stopped early: what follows is of the steps done"] if self.interrupted else []),
            f"model      {self.model}, {self.method}: {self.trained_parameters:,} of {self.parameters:,} parameters trained",
            f"data       {self.data}: {self.train_rows} training rows, {self.held_out_rows} held out{classes}",
            f"{self.metric:<10} {self._path(self.metric)} on held-out rows",
            *([f"loss       {self._path('loss')} on held-out rows"] if "loss" in self.after else []),
            *self._best(),
            *([f"test       {self.metric} {self.test[self.metric]:.3f} on {self.test_rows} rows"] if self.test else []),
            f"time       {self.train_seconds:.0f} s in training, {self.seconds:.0f} s in all of this process; {self.steps} steps, "
            f"{self.forwards} forward passes{backwards}, {self.steps_per_second:.2f} steps/s{skipped}",
            f"memory     {self.peak_mib:,.0f} MiB at most",
            f"saved      {self.out} (model, tokenizer, curve.png, {log}{metrics})",
            f"load with  {self.load}",
        ]

    def _best(self) -> list[str]:
        """Where an evaluation on the way was better than the last one."""
        if not self.best or self.best["step"] == self.steps:
            return []
        again = f": zokern replay {self.out} --step best --out FOLDER" if named(self.optimizer).replayable else ""
        how = ", which is saved" if self.kept == "best" else again
        return [f"best       {self.metric} {self.best[self.metric]:.3f} on held-out rows after step {self.best['step']}{how}"]

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
        title = f"{loaded.name}, {settings.optimizer}, {run.method}"
        draw(training.trainer.state.log_history, data.task.metric, title, draft / output.CURVE)
    forwards, backwards = training.passes
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


def draw(history: list[dict[str, Any]], metric: str, title: str, path: Path) -> Any:
    """Loss and held-out metric over the steps, of what Trainer logged, as a PNG. -> the figure."""
    figure = need("matplotlib.figure").Figure(figsize=(7, 4.4), layout="constrained")
    left = figure.add_subplot(title=title, xlabel="step", ylabel="loss")
    steps, losses = _series(history, "loss")
    left.plot(steps, losses, color="C0", alpha=0.2, linewidth=0.8)
    smooth = [fmean(losses[max(0, i - WINDOW) : i]) for i in range(1, len(losses) + 1)]  # fewer at the start
    left.plot(steps, smooth, "C0-" if len(steps) > 1 else "C0.", label="training loss")  # one point makes no line
    if _series(history, "eval_loss")[0]:
        left.plot(*_series(history, "eval_loss"), "C2.--", label="held-out loss")
    right = left.twinx()
    right.plot(*_series(history, f"eval_{metric}"), "C1o-", label=f"held-out {metric}")
    right.set(ylabel=metric, ylim=(min(0, right.get_ylim()[0]), 1))
    left.xaxis.set_major_locator(need("matplotlib.ticker").MaxNLocator(integer=True))  # there is no half a step
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=150)
    return figure


def _series(history: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """-> (steps, values) of what was logged under a name and is finite."""
    found = [(entry["step"], entry[name]) for entry in history if isinstance(entry.get(name), int | float) and math.isfinite(entry[name])]
    return [step for step, _ in found], [value for _, value in found]
