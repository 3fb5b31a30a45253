"""Weights perturbed where they are, and what stands in for them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from ..ops.arguments import Term
from .perturbation import NOTHING, Pass, PerturbedWeights

TOGETHER = 64  # passes that are made in one read and write of the weights, where they pass by points that are measured elsewhere


class InPlace(PerturbedWeights):
    """Perturbs the parameters themselves; the restoring terms are pending until the next pass, which applies them with its own.

    Going to theta + eps z, then to theta - eps z, then to an updated theta is three passes; restoring in between would make it four. An
    update may be pending as well: then the next perturbation applies it, and a step is two passes. No memory; each pass rounds, which
    float32 weights hardly notice and 16-bit weights do (docs/precision.md). The arguments are those of ``PerturbedWeights``.
    """

    in_place = True

    @contextmanager
    def _showing(self, terms: list[list[Term]]) -> Iterator[None]:
        self.finish()  # what waits of another part, too
        yield  # ``visit`` has moved the weights there

    def visit(self, terms: Iterable[Term], part: int | None = None) -> None:
        """Move the weights there. The arguments are those of ``PerturbedWeights.visit``."""
        terms = list(terms)
        back = Pass([(key, -c) for key, c in terms])
        for i, waiting in enumerate(self.pending):
            if part is None or part == i:
                self._move(i, waiting.then(terms), back)
            elif waiting.terms:
                self._move(i, waiting, NOTHING)

    def pass_by(self, terms: Iterable[Term], part: int | None = None) -> None:
        """The passes of a measurement elsewhere, many in one read and write. The arguments are those of ``PerturbedWeights.pass_by``."""
        before = self.passes_per_sweep
        self.passes_per_sweep = before or TOGETHER
        try:
            self.visit(terms, part)
        finally:
            self.passes_per_sweep = before

    @contextmanager
    def passing_by(self) -> Iterator[None]:
        """Around measurements, some of which are made elsewhere: the passes that wait are made at the end."""
        try:
            yield
        finally:
            self.finish()

    def over(self, tensors: list[torch.Tensor]) -> "StandIn":
        """The same model around other ``tensors``, which stand in for its parameters while a loss is measured.

        Raises:
            ValueError: the parameters are sharded.
        """
        if self.layout.sharded:
            raise ValueError(
                "sharded parameters (DTensor) cannot be exchanged for others, of which who gathers them knows nothing: of MeZOSVRG pass "
                'anchor="replay", or perturbation=zokern.Copied()'
            )
        return StandIn(self.layout, self.layout.over(tensors))

    @contextmanager
    def away(self, terms: Iterable[Term]) -> Iterator[None]:
        """The weights go there with the next pass, by these ``terms``; the way back is pending afterwards."""
        terms = list(terms)
        self.pending = [waiting.then([(key, c) for key, c in terms]) for waiting in self.pending]
        try:
            yield
        finally:
            self.pending = [waiting.then([(key, -c) for key, c in terms]) for waiting in self.pending]

    @contextmanager
    def undisturbed(self) -> Iterator[list[list[torch.Tensor]]]:
        """As of ``PerturbedWeights.undisturbed``; the host's memory holds a copy of the parameters meanwhile."""
        held = [[p.detach().to("cpu", copy=True) for p in part.tensors] for part in self.parts]  # restoring in place would round them once
        pending = list(self.pending)
        try:
            yield held
        finally:
            with torch.no_grad():
                for part, copies in zip(self.parts, held):
                    for p, saved in zip(part.tensors, copies):
                        p.copy_(saved)
                    part.drop_gathered()
            self.pending = pending
            self.passes = [passes + 1 for passes in self.passes]  # or a log would take it for somebody else's
            torch.clear_autocast_cache()


class StandIn(InPlace):
    """In place on tensors that stand in for the model's parameters while a loss is measured."""

    @contextmanager
    def _showing(self, terms: list[list[Term]]) -> Iterator[None]:
        self.finish()
        params = [p for layout in self.parts for p in layout.params]
        weights = [p.data for p in params]
        try:
            for p, tensor in zip(params, (tensor for layout in self.theta for tensor in layout.params)):
                p.data = tensor
            torch.clear_autocast_cache()
            yield
        finally:
            for p, data in zip(params, weights):
                p.data = data
            torch.clear_autocast_cache()
