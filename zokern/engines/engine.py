"""What an engine is: forward passes of a model whose weights are theta plus noise, wherever they are."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ops.arguments import Term
from .generate import Completions
from .messages import Plan, Updates


class EngineDied(RuntimeError):
    """An engine is not there any more; ``restart`` may bring it back, with the weights that its checkpoint has."""


@dataclass(frozen=True)
class Sampling:
    """How completions are written.

    Args:
        max_new_tokens: of a completion, at most.
        temperature: 0, the default, takes the likeliest token.
        stops: texts where a completion ends, of which they are no part.
        ends: tokens that end a text, beside those of the model itself.
    """

    max_new_tokens: int
    temperature: float = 0.0
    stops: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()


class Engine(ABC):
    """A model that generates and scores at theta plus noise.

    Its weights are theta, which ``go`` moves by the passes of updates, one after the other, plus the terms that ``go`` was given last.
    Nobody else may change them. A call that raises ``BadInput`` has changed nothing; after another error the engine counts as dead.

    Attributes:
        name: for messages.
        applied: how many passes theta has had since the checkpoint.
        moving: seconds that the newest ``measure`` took to be at its point.
    """

    name = "engine"
    applied = 0
    moving = 0.0

    @abstractmethod
    def begin(self, plan: Plan) -> dict[str, int]:
        """Learn which elements are which, at the weights of the checkpoint; or, of a run that the engine knows already, nothing: then
        ``applied`` says how many passes theta has had. -> ``checksums``.

        Raises:
            BadInput: the model cannot be perturbed, lacks elements, or has had updates of another run; or the versions differ.
        """

    @abstractmethod
    def go(self, updates: Updates, terms: Sequence[Term]) -> None:
        """Theta has had all passes up to the last of ``updates``; the weights are theta plus the terms."""

    @abstractmethod
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seed: Sequence[int] = ()) -> Completions:
        """Completions of prompts, given as tokens. With a temperature they depend on the seed, integers from 0."""

    @abstractmethod
    def score(self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        """For each prompt the log-probability, a natural logarithm, of each of its options: tokens that may follow it."""

    @abstractmethod
    def checksums(self) -> dict[str, int]:
        """name -> a 64-bit number of theta's elements, the same however an engine has cut the tensor into pieces."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """A trained tensor of the checkpoint, on the host, as the model computes with it."""

    def restart(self) -> None:
        """Bring an engine that died back, at its checkpoint.

        Raises:
            EngineDied: it cannot be.
        """
        raise EngineDied(f"{self.name} died, and cannot be started again from here")

    @abstractmethod
    def close(self) -> None:
        """Free what it holds. No other call may follow."""

    def measure(self, function: Callable[..., Any], updates: Updates, terms: Sequence[Term], *args: Any) -> Any:
        """``function(engine, *args)`` at theta plus terms; where the engine is elsewhere, there."""
        began = time.perf_counter()
        self.go(updates, terms)
        self.moving = time.perf_counter() - began
        return function(self, *args)
