"""Who answers an optimizer that asks for rewards: each point is a member, which writes completions that are judged."""

import math
import time
from collections.abc import Sequence
from statistics import fmean

import torch

from ..engines import Completions, Generator
from ..estimators import Driver
from ..estimators.losses import Request
from .prompts import Row
from .rewards import Rewards, Scores, mean


class Members(Driver):
    """Answers each point of a request with the mean reward of some prompts' completions, written by the model as it is there.

    ``optimizer.step(Members(...))`` of an optimizer with maximize=True is an iteration; another driver may send the points of a request
    elsewhere, since none depends on another.

    Args:
        generator: that writes; its model has the parameters of the optimizer.
        rewards: that judge.
        rows: what is answered.
        prompts: the tokens of each row's prompt.
        seed: with a temperature, member n draws by (*seed, n).

    Attributes:
        means: the mean reward at each point so far; NaN where a function gave NaN.
        tokens: generated.
        generating: seconds in generation and rewards.
        noise: other seconds, which are of passes over the weights.
    """

    def __init__(self, generator: Generator, rewards: Rewards, rows: Sequence[Row], prompts: Sequence[list[int]], seed: Sequence[int]):
        self.generator, self.rewards, self.rows, self.prompts, self.seed = generator, rewards, rows, prompts, tuple(seed)
        self.means, self.tokens, self.generating, self.noise = list[float](), 0, 0.0, 0.0
        self._each: list[Scores] = []
        self._since = self._now()

    def functions(self, counted: slice = slice(None)) -> dict[str, float]:
        """Name -> mean reward by that function over the rows of some points.

        Args:
            counted: which points, by their numbers so far. Default: all.
        """
        each = self._each[counted]
        return {name: mean([scores.means[name] for scores in each]) for name in each[0].means} if each else {}

    def answer(self, request: Request) -> list[torch.Tensor]:
        """The mean reward at each point of a ``request``, 0-dim float64 tensors."""
        return request.measure(self._member)

    def stop(self) -> None:
        """Count the passes since the last member, which are over."""
        now = self._now()
        self.noise, self._since = self.noise + now - self._since, now

    def _member(self) -> float:
        self.stop()
        written, scores = judged(self.generator, self.rewards, self.rows, self.prompts, (*self.seed, len(self.means)))
        reward = fmean(scores.values)
        self.look(reward)
        self.means.append(reward)
        self._each.append(scores)
        self.tokens += written.tokens
        now = self._now()
        self.generating, self._since = self.generating + now - self._since, now
        return reward

    def _now(self) -> float:
        device = next(self.generator.model.parameters()).device
        if device.type == "cuda":  # passes over the weights are asynchronous, and would be counted as generation
            torch.cuda.synchronize(device)
        return time.perf_counter()


def judged(
    generator: Generator, rewards: Rewards, rows: Sequence[Row], prompts: Sequence[list[int]], seed: Sequence[int]
) -> tuple[Completions, Scores]:
    """What the model writes, and what that is worth."""
    written = generator(prompts, seed)
    return written, rewards(rows, written.texts)


def by_function(means: dict[str, float]) -> dict[str, float]:
    """The mean of each function, by the name under which it is logged, where there are several."""
    return {f"rewards/{name}": mean for name, mean in means.items()} if len(means) > 1 else {}


def spread(means: Sequence[float]) -> tuple[float, float, float, int]:
    """-> (mean, best, population standard deviation, how many there are) of the finite ones; NaN where there is none."""
    good = [mean for mean in means if math.isfinite(mean)]
    if not good:
        return math.nan, math.nan, math.nan, 0
    mean = fmean(good)
    return mean, max(good), math.sqrt(fmean((x - mean) ** 2 for x in good)), len(good)
