"""What a run tells: a picture of its curve and a summary."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..errors import need
from .train import History

try:
    import resource
except ImportError:  # Windows has none
    resource = None

WINDOW = 20  # steps that the drawn loss is averaged over: one batch's loss says little


@dataclass(frozen=True)
class Result:
    """A run in numbers; accuracies and losses are on the held-out rows, those after of the model as saved;
    those of the probe None where none was fitted."""

    model: str
    method: str
    data: str
    labels: tuple[str, ...]
    train_rows: int
    held_out_rows: int
    trained_parameters: int
    parameters: int
    accuracy_before: float
    accuracy_probe: float | None
    accuracy_after: float
    loss_before: float
    loss_probe: float | None
    loss_after: float
    steps: int
    forwards: int
    skipped: int
    interrupted: bool
    train_seconds: float
    seconds: float
    steps_per_second: float
    peak_mib: float | None
    out: str

    def record(self) -> dict:
        """For the log."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The summary, to be read."""
        classes = ", ".join(self.labels[:6]) + (f" and {len(self.labels) - 6} more" if len(self.labels) > 6 else "")
        skipped = f", {self.skipped} skipped for want of a finite loss" if self.skipped else ""
        return [
            *(["stopped early: what follows is of the steps done"] if self.interrupted else []),
            f"model      {self.model}, {self.method}: {self.trained_parameters:,} of {self.parameters:,} parameters trained",
            f"data       {self.data}: {self.train_rows} training rows, {self.held_out_rows} held out, classes {classes}",
            f"accuracy   {_path(self.accuracy_before, self.accuracy_probe, self.accuracy_after)} on held-out rows",
            f"loss       {_path(self.loss_before, self.loss_probe, self.loss_after)} on held-out rows",
            f"time       {self.seconds:.0f} s in all; {self.steps} steps, {self.forwards} forward passes, "
            f"{self.steps_per_second:.2f} steps/s{skipped}",
            *([f"memory     {self.peak_mib:,.0f} MiB at most"] if self.peak_mib else []),
            f"saved      {self.out} (model and tokenizer{', adapter/' if self.method != 'full' else ''}, curve.png, log.jsonl)",
            f"load with  AutoModelForSequenceClassification.from_pretrained({self.out!r})",
        ]


def _path(before, probe, after):
    return f"{before:.3f} -> {after:.3f}" if probe is None else f"{before:.3f} -> {probe:.3f} (linear probe) -> {after:.3f}"


def peak_mib(device: torch.device) -> float | None:
    """The most memory held so far, in MiB: of the device, or of the process on a CPU; None where nobody counts it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS and KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def draw(history: History, title: str, path: Path) -> None:
    """Loss and held-out accuracy over the steps, as a PNG."""
    figure = need("matplotlib.figure").Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot(title=title, xlabel="step", ylabel="loss")
    steps = range(1, len(history.losses) + 1)
    left.plot(steps, history.losses, color="C0", alpha=0.2, linewidth=0.8)
    left.plot(steps, _smooth(history.losses), color="C0", label=f"training loss, mean of {WINDOW} steps")
    at, losses, accuracies = zip(*history.evaluations, strict=True)
    left.plot(at, losses, "C2.--", label="held-out loss")
    right = left.twinx()
    right.plot(at, accuracies, "C1o-", label="held-out accuracy")
    right.set(ylabel="accuracy", ylim=(0, 1))
    handles, names = zip(*(axis.get_legend_handles_labels() for axis in (left, right)), strict=True)
    left.legend(sum(handles, []), sum(names, []), loc="lower left", fontsize="small")
    figure.savefig(path, dpi=150)


def _smooth(values):
    """Mean over the last WINDOW values, fewer at the start."""
    return [sum(part) / len(part) for part in (values[max(0, i - WINDOW) : i] for i in range(1, len(values) + 1))]
