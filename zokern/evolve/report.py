"""After a run: its model is saved, judged on the held-out rows, and described."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..finetune import curves, output
from ..finetune.metrics_of_model import best_of
from ..finetune.report import peak_mib
from .prepare import Run
from .restore import weights_at
from .train import METRIC, Training, noise_share, of_json


@dataclass(frozen=True)
class Result:
    """A run of ``evolve`` in numbers.

    Attributes:
        model: its name, folder or hub id.
        method: what was trained: "full", "lora", ... or patterns of names.
        optimizer: its name on the command line.
        data: what the prompts are called.
        rewards: names of the reward functions.
        train_rows: prompts to train on.
        held_out_rows: prompts held out.
        trained_parameters: elements that were trained.
        parameters: elements of the model.
        before: on the held-out rows, before any iteration: the mean reward, by function where there are several, and the mean number of
            tokens.
        after: the same of the model as saved.
        best: the best evaluation on the way: its step and the same numbers; None where there was none.
        kept: the weights that were saved: "last" or "best".
        steps: iterations that were made.
        members: of a population.
        generated: tokens of all members.
        tokens_per_second: of the generation.
        noise_share: of the iterations' seconds, in [0, 1], that passes over the weights took.
        dropped: members whose reward was not finite.
        skipped: iterations that moved nothing.
        interrupted: whether the run was stopped.
        train_seconds: of all iterations, without the judging.
        seconds: of the process that ended the run.
        peak_mib: the most memory that was in use, MiB: of the device, or of the process on a CPU.
        out: the folder.
        load: the line of Python that loads the model.
    """

    model: str
    method: str
    optimizer: str
    data: str
    rewards: tuple[str, ...]
    train_rows: int
    held_out_rows: int
    trained_parameters: int
    parameters: int
    before: dict[str, float]
    after: dict[str, float]
    best: dict[str, Any] | None
    kept: str
    steps: int
    members: int
    generated: int
    tokens_per_second: float
    noise_share: float
    dropped: int
    skipped: int
    interrupted: bool
    train_seconds: float
    seconds: float
    peak_mib: float
    out: str
    load: str

    def facts(self) -> list[tuple[str, str]]:
        """What there is to know beside the numbers, each with its name."""
        lost = f", {self.dropped} members dropped for want of a finite reward" if self.dropped else ""
        skipped = f", {self.skipped} iterations skipped" if self.skipped else ""
        metrics = "" if self.interrupted else ", metrics.json"
        return [
            *([("stopped", "early: what follows is of the iterations done")] if self.interrupted else []),
            ("model", f"{self.model}, {self.method}: {self.trained_parameters:,} of {self.parameters:,} parameters trained"),
            ("data", f"{self.data}: {self.train_rows} training prompts, {self.held_out_rows} held out"),
            *self._best(),
            (
                "time",
                f"{self.train_seconds:.0f} s in iterations, {self.seconds:.0f} s in all of this process; {self.steps} iterations of "
                f"{self.members} members, {self.generated:,} tokens, {self.tokens_per_second:.0f} tokens/s, {self.noise_share:.1%} of the "
                f"time in the noise{lost}{skipped}",
            ),
            ("memory", f"{self.peak_mib:,.0f} MiB at most"),
            ("saved", f"{self.out} (model, tokenizer, curve.png, log.jsonl, trajectory.jsonl{metrics})"),
            ("load with", self.load),
        ]

    def numbers(self) -> dict[str, dict[str, str]]:
        """Rewards and tokens a completion: rows by column."""
        columns: dict[str, dict[str, Any]] = {"before": self.before, "after": self.after}
        if self.best and self._best():
            columns[f"best, iteration {self.best['step']}"] = self.best
        return {
            column: {name: f"{found[name]:.1f}" if name == "tokens" else f"{found[name]:.3f}" for name in self.after if name in found}
            for column, found in columns.items()
        }

    def lines(self) -> list[str]:
        """The summary, to be read."""
        facts = self.facts()
        numbers = [
            *((name, f"{self.before[name]:.3f} -> {self.after[name]:.3f} on held-out rows") for name in self.after if name != "tokens"),
            ("tokens", f"{self.before['tokens']:.1f} -> {self.after['tokens']:.1f} a completion"),
        ]
        behind = [name for name, _ in facts].index("data") + 1
        return [f"{name:<10} {text}" for name, text in (*facts[:behind], *numbers, *facts[behind:])]

    def _best(self) -> list[tuple[str, str]]:
        """Where an evaluation on the way was better than the last one."""
        if not self.best or self.best["step"] == self.steps or (self.kept == "last" and self.best[METRIC] <= self.after[METRIC]):
            return []
        how = ", which is saved" if self.kept == "best" else f": zokern replay {self.out} --step best --out FOLDER"
        return [("best", f"reward {self.best[METRIC]:.3f} on held-out rows after iteration {self.best['step']}{how}")]


def report(run: Run, training: Training) -> Result:
    """Write model, curve and metrics into the folder of a run whose iterations are made. -> the run in numbers."""
    settings, path, best = run.settings, run.path, training.best
    if run.pool:
        run.pool.pull(training.optimizer)
    then = best if settings.keep == "best" and best and best["step"] != training.steps else None
    if then:
        saved = weights_at(path, then["step"], trust_remote_code=settings.trust_remote_code).model
        with torch.no_grad():
            for p, q in zip(run.loaded.model.parameters(), saved.parameters(), strict=True):
                p.copy_(q)
    loaded = run.loaded
    trained = sum(p.numel() for _, p in loaded.trained())  # of the adapter, which becomes part of the weights as the model is saved
    with output.whole(path) as draft:
        loaded.save(draft)
        run.generator.model = loaded.model
        after = run.judge() if then is None or not run.pool else _judged(then)  # engines are at the last iteration
        title = (f"{loaded.name} on {run.data}", f"{settings.optimizer}, {run.method}, rewards {', '.join(run.rewards.functions)}")
        draw(training.history, title, training.members, draft / output.CURVE)
    generating = training.total("seconds") - training.total("noise_seconds")
    result = Result(
        model=loaded.name,
        method=run.method,
        optimizer=settings.optimizer,
        data=run.data,
        rewards=tuple(run.rewards.functions),
        train_rows=len(run.train),
        held_out_rows=len(run.held_out),
        trained_parameters=trained,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        before=run.before,
        after=after,
        best=best,
        kept=settings.keep,
        steps=training.steps,
        members=training.members,
        generated=int(training.total("tokens")),
        tokens_per_second=training.total("tokens") / generating if generating else 0.0,
        noise_share=noise_share(training.history),
        dropped=int(training.total("dropped")),
        skipped=training.optimizer.skipped,
        interrupted=training.interrupted,
        train_seconds=training.total("seconds"),
        seconds=time.perf_counter() - run.began,
        peak_mib=peak_mib(loaded.device),
        out=str(settings.out),
        load=loaded.load(str(settings.out)),
    )
    if not training.interrupted:
        output.write(path / output.METRICS, json.dumps(asdict(result) | {"after": of_json(after)}, indent=1))
    return result


def _judged(entry: dict[str, Any]) -> dict[str, float]:
    """What an evaluation said, as it was logged."""
    prefix = "eval_"
    return {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}


def draw(history: list[dict[str, Any]], title: Sequence[str], members: int, path: Path) -> Any:
    """Rewards over the iterations, of what was logged, as a PNG: mean, spread and best of the populations, and held-out rows. -> the
    figure.

    Args:
        title: its lines.
        members: of a population.
    """
    figure, (panel,) = curves.figure_of(title, f"iteration ({members} members each)", ["mean reward"])
    made = [entry for entry in history if entry.get("best") is not None]
    steps = [entry["step"] for entry in made]
    low, high = ([entry["reward"] + side * entry["spread"] for entry in made] for side in (-1, 1))
    panel.axes.fill_between(steps, low, high, color=curves.BLUE, alpha=0.15, linewidth=0, label="spread of the population")
    panel.line((steps, [entry["best"] for entry in made]), "best member", curves.GREEN, linewidth=1)
    panel.line((steps, [entry["reward"] for entry in made]), "mean of members", curves.BLUE)
    panel.without([entry["step"] for entry in history if "best" in entry and entry["best"] is None])
    held_out = curves.series(history, f"eval_{METRIC}")
    panel.before(held_out)
    panel.held_out(held_out)
    if best := best_of(history, METRIC):
        panel.best(best["step"], best[METRIC], "iteration")
    panel.finish()
    curves.save(figure, path)
    return figure
