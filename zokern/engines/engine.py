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
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature). Default 0.0.
        stops: texts where a completion ends, of which they are no part. Default ().
        ends: tokens that end a text, beside those of the model itself. Default ().
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
        """Learn which elements are which, at the weights of the checkpoint.

        Of a run that the engine knows already, nothing is learnt: then ``applied`` says how many passes theta has had.

        Args:
            plan: what is trained, a ``zokern.engines.messages.Plan``.

        Returns:
            ``checksums``.

        Raises:
            BadInput: the model cannot be perturbed, lacks elements, or has had updates of another run; or the versions differ.
        """

    @abstractmethod
    def go(self, updates: Updates, terms: Sequence[Term]) -> None:
        """Bring theta through all passes up to the last of ``updates``; the weights are theta plus the terms.

        Args:
            updates: passes over theta that follow those it has had.
            terms: sequence of (NoiseKey, coefficient), in units of theta.

        Raises:
            BadInput: the passes do not follow those that theta has had.
        """

    @abstractmethod
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seed: Sequence[int] = ()) -> Completions:
        """Completions of prompts.

        Args:
            prompts: the tokens of each.
            sampling: how they are written.
            seed: integers from 0, on which completions depend where there is a temperature. Default ().
        """

    @abstractmethod
    def score(self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        """For each prompt the log-probability, a natural logarithm, of each of its options.

        Args:
            prompts: the tokens of each.
            options: of each prompt, tokens that may follow it.
        """

    @abstractmethod
    def checksums(self) -> dict[str, int]:
        """Return name -> a 64-bit number of theta's elements, the same however an engine has cut the tensor into pieces."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """A trained tensor of the checkpoint, by its ``name``, on the host, as the model computes with it."""

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
        """``function(engine, *args)`` at theta plus terms; where the engine is elsewhere, there.

        Args:
            function: what is measured; whatever it returns is returned.
            updates: as of ``go``.
            terms: as of ``go``.
            *args: for the function.
        """
        began = time.perf_counter()
        self.go(updates, terms)
        self.moving = time.perf_counter() - began
        return function(self, *args)
