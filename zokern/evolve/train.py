"""The iterations of a run: a population answers, one update follows, held-out rows are judged now and then. It can be stopped and gone on
with: the log of its steps, and the model that it began with, are all of it."""

import json
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .. import Trajectory, record
from ..errors import BadInput
from ..finetune import output
from ..finetune.metrics_of_model import best_of
from ..finetune.options import title
from ..finetune.progress import Progress
from ..finetune.runs import interruptible
from ..optim import ZerothOrder, named
from .members import by_function, spread
from .prepare import Run, optimizer_of

METRIC = "reward"
PATIENCE = 10  # skipped iterations on end after which a run is given up


class Training:
    """Makes the iterations of a run, and writes its logs.

    Attributes:
        optimizer: at the iteration that was made last.
        history: what is logged: a dict an iteration, and one an evaluation.
        stopped: whether the user has asked for the end, which comes after a whole iteration.
        interrupted: whether that was before the last one.
    """

    def __init__(self, run: Run):
        self.run, self.settings = run, run.settings
        self.optimizer: ZerothOrder
        self.history: list[dict[str, Any]] = []
        self.stopped = self.interrupted = False

    @property
    def steps(self) -> int:
        return int(self.optimizer.param_groups[0]["step"])

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation after an iteration or more."""
        return best_of(self.history, METRIC)

    @property
    def members(self) -> int:
        """Of an iteration."""
        return len(range(self.optimizer.forwards)[self.optimizer.members_in(self.optimizer.param_groups[0])])

    def total(self, name: str) -> float:
        """Of what iterations logged under a name."""
        return math.fsum(entry[name] for entry in self.history if name in entry)

    def train(self, say: Callable[[str], None], progress: Progress) -> None:
        """To the last iteration. Ctrl-C stops between two of them; a second one interrupts as ever."""
        with interruptible(self.stop), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "step .* was skipped", RuntimeWarning)  # they are counted in the summary
            warnings.filterwarnings("ignore", "step .* had members", RuntimeWarning)
            self._iterate(say, progress)
        if self.interrupted:
            say(f"stopped after iteration {self.steps} of {self.settings.steps}: zokern evolve --resume {self.run.path}")

    def stop(self) -> None:
        """After the iteration that runs."""
        self.stopped = True

    def _iterate(self, say: Callable[[str], None], progress: Progress) -> None:
        run, settings = self.run, self.settings
        log = run.path / output.TRAJECTORY
        logged = self._logged() if run.resumed else []
        self.optimizer = self._replayed(log, logged, progress) if run.resumed else optimizer_of(settings, run.loaded.model, run.pool)
        notes = {"model": run.loaded.name, "rows a step": settings.rows}
        with record(self.optimizer, log, notes, resume=run.resumed is not None, model=run.loaded.model):
            self.history = [entry for entry in logged if entry["step"] <= self.steps]
            if self.steps and not logged:
                say(f"{str(run.path / output.LOG)!r} is gone: log and curve begin again at iteration {self.steps}")
            output.write(run.path / output.LOG, "".join(f"{json.dumps(entry)}\n" for entry in self.history))
            if not self.history:
                self._log({"step": 0} | {f"eval_{name}": value for name, value in run.before.items()})
            self._judge_if_due()
            progress("iteration", self.steps, settings.steps, self._measured())
            while self.steps < settings.steps and not self.stopped:
                entry = self._iteration()
                run.steps_made += 1
                self._log(entry)
                self._give_up()
                self._judge_if_due()
                progress("iteration", self.steps, settings.steps, self._measured())
            self.interrupted = self.steps < settings.steps

    def _measured(self) -> dict[str, float]:
        """What is logged of the last iteration and of the model after it, as far as a user follows it."""
        entries = [entry for entry in self.history[-2:] if entry["step"] == self.steps]
        found = {name: value for entry in entries for name, value in entry.items() if value is not None}
        return {name: value for name, value in found.items() if name in ("reward", "best") or name.startswith("eval_")}

    def _iteration(self) -> dict[str, Any]:
        """One update. -> what there is to log of it."""
        began, dropped, skipped = time.perf_counter(), self._dropped, self.optimizer.skipped
        members = self.run.members(self.steps)
        with self.run.loaded.computing():
            self.optimizer.step(members)
        members.stop()
        perturbed = self.optimizer.members_in(self.optimizer.param_groups[0])
        mean, best, deviation, _ = spread(members.means[perturbed])
        return {
            "step": self.steps,
            "reward": mean,
            "best": best,
            "spread": deviation,
            **by_function(members.functions(perturbed)),
            "dropped": self._dropped - dropped,
            "skipped": self.optimizer.skipped - skipped,
            "tokens": members.tokens,
            "tokens_per_second": members.tokens / members.generating,
            "seconds": time.perf_counter() - began,
            "noise_seconds": members.noise,
        }

    @property
    def _dropped(self) -> int:
        return int(self.optimizer.param_groups[0].get("dropped", 0))

    def _judge_if_due(self) -> None:
        """Now and then, and at the end, unless that is what was logged last."""
        due = self.steps % self.settings.eval_every == 0 or self.steps == self.settings.steps
        if due and f"eval_{METRIC}" not in self.history[-1]:
            self._log({"step": self.steps} | {f"eval_{name}": value for name, value in self.run.judge().items()})

    def _give_up(self) -> None:
        last = [entry["skipped"] for entry in self.history if "skipped" in entry][-min(PATIENCE, self.run.steps_made) :]
        if sum(last) == PATIENCE:
            radius = title(named(self.settings.optimizer).radius)
            cure = f"look at the rewards, or begin again with a smaller --lr than {self.settings.lr:g}, or a smaller {radius}"
            raise BadInput(f"{PATIENCE} iterations running, up to {self.steps}, were skipped for want of finite rewards: {cure}")

    def _replayed(self, log: Path, logged: list[dict[str, Any]], progress: Progress) -> ZerothOrder:
        """The optimizer of a run that goes on, and the model's weights where it was: after the last iteration that both logs have."""
        model = self.run.loaded.model
        if not log.exists() or b"\n" not in log.read_bytes():
            log.unlink(missing_ok=True)
            return optimizer_of(self.settings, model, self.run.pool)
        trajectory = Trajectory.read(log)
        theirs = {"optimizer": trajectory.header["optimizer"], **trajectory.header["groups"][0]}
        ours = {"optimizer": named(self.settings.optimizer).__name__, "seed": self.settings.seed, "lr": self.settings.lr}
        for name, own in ours.items():
            if theirs[name] != own:
                raise BadInput(f"{str(log)!r} is of another run ({name} {theirs[name]}, here {own}): restore it, or begin the run again")
        steps = min([len(trajectory), self.settings.steps, *(entry["step"] for entry in logged[-1:])])
        again = partial(progress, "replayed")
        return trajectory.replay(model, steps, progress=lambda done: again(done, steps, {}), perturbation=self.run.pool)

    def _logged(self) -> list[dict[str, Any]]:
        """What a run that goes on has logged, without a line that was cut off."""
        path = self.run.path / output.LOG
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
            found: list[dict[str, Any]] = [json.loads(line) for line in lines]
            if all(isinstance(entry["step"], int) for entry in found):
                return found
        except (ValueError, LookupError, TypeError):
            pass
        raise BadInput(f"{str(path)!r} is damaged: restore it, or remove it")

    def _log(self, entry: dict[str, Any]) -> None:
        self.history.append(finite := of_json(entry))
        output.append(self.run.path / output.LOG, f"{json.dumps(finite)}\n")


def of_json(entry: dict[str, Any]) -> dict[str, Any]:
    """With None for numbers that JSON does not have."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()}


def noise_share(history: list[dict[str, Any]]) -> float:
    """Of iterations: seconds in passes over the weights, of all seconds."""
    made = [entry for entry in history if "noise_seconds" in entry]
    seconds = math.fsum(entry["seconds"] for entry in made)
    return math.fsum(entry["noise_seconds"] for entry in made) / seconds if seconds else 0.0
