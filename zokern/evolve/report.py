"""After a run: its model is saved, judged on the held-out rows, and described."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import need
from ..finetune import output
from ..finetune.report import peak_mib
from .prepare import Run
from .restore import weights_at
from .train import METRIC, Training, noise_share, of_json


@dataclass(frozen=True)
class Result:
    """A run in numbers. ``before`` and ``after`` (of the model as saved) are mean rewards on the held-out rows, by function where there are
    several, and the mean number of tokens; ``best`` the best evaluation on the way. ``generated`` is all tokens of all members;
    ``noise_share`` the part of the iterations' seconds that passes over the weights took; ``dropped`` members without a finite reward."""

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

    def lines(self) -> list[str]:
        """The summary, to be read."""
        lost = f", {self.dropped} members dropped for want of a finite reward" if self.dropped else ""
        skipped = f", {self.skipped} iterations skipped" if self.skipped else ""
        metrics = "" if self.interrupted else ", metrics.json"
        return [
            *(["stopped early: what follows is of the iterations done"] if self.interrupted else []),
            f"model      {self.model}, {self.method}: {self.trained_parameters:,} of {self.parameters:,} parameters trained",
            f"data       {self.data}: {self.train_rows} training prompts, {self.held_out_rows} held out",
            *(f"{name:<10} {self.before[name]:.3f} -> {self.after[name]:.3f} on held-out rows" for name in self.after if name != "tokens"),
            f"tokens     {self.before['tokens']:.1f} -> {self.after['tokens']:.1f} a completion",
            *self._best(),
            f"time       {self.train_seconds:.0f} s in iterations, {self.seconds:.0f} s in all of this process; {self.steps} iterations of "
            f"{self.members} members, {self.generated:,} tokens, {self.tokens_per_second:.0f} tokens/s, {self.noise_share:.1%} of the time "
            f"in the noise{lost}{skipped}",
            f"memory     {self.peak_mib:,.0f} MiB at most",
            f"saved      {self.out} (model, tokenizer, curve.png, log.jsonl, trajectory.jsonl{metrics})",
            f"load with  {self.load}",
        ]

    def _best(self) -> list[str]:
        """Where an evaluation on the way was better than the last one."""
        if not self.best or self.best["step"] == self.steps or (self.kept == "last" and self.best[METRIC] <= self.after[METRIC]):
            return []
        how = ", which is saved" if self.kept == "best" else f": zokern replay {self.out} --step best --out FOLDER"
        return [f"best       reward {self.best[METRIC]:.3f} on held-out rows after iteration {self.best['step']}{how}"]


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
        draw(training.history, f"{loaded.name}, {settings.optimizer}, {run.method}", draft / output.CURVE)
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


def draw(history: list[dict[str, Any]], title: str, path: Path) -> Any:
    """Rewards over the iterations, of what was logged, as a PNG: mean, spread and best of the populations, and held-out rows. -> the
    figure."""
    figure = need("matplotlib.figure").Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="iteration", ylabel="reward")
    made = [entry for entry in history if entry.get("best") is not None]
    steps = [entry["step"] for entry in made]
    low, high = ([entry["reward"] + side * entry["spread"] for entry in made] for side in (-1, 1))
    axes.fill_between(steps, low, high, color="C0", alpha=0.2, linewidth=0, label="spread of the population")
    axes.plot(steps, [entry["reward"] for entry in made], "C0-" if len(steps) > 1 else "C0.", label="mean of the population")
    axes.plot(steps, [entry["best"] for entry in made], "C0:", label="best member")
    judged = [entry for entry in history if entry.get(f"eval_{METRIC}") is not None]
    axes.plot([entry["step"] for entry in judged], [entry[f"eval_{METRIC}"] for entry in judged], "C1o-", label="held-out rows")
    axes.xaxis.set_major_locator(need("matplotlib.ticker").MaxNLocator(integer=True))  # there is no half an iteration
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=150)
    return figure
