"""The weights perturbed in place: theta plus noise, without a copy of theta."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

from .. import ops
from ..layout import Layout
from ..noise import NoiseKey
from ..ops.arguments import Number, Term

Pass: TypeAlias = tuple[list[Term], Number]  # (terms, decay)
NOTHING: Pass = ([], 1.0)


class PerturbedWeights:
    """Perturbs weights in place; the restoring terms are pending until the next pass, which applies them with its own.

    Going to theta + eps z, then to theta - eps z, then to an updated theta is three passes; restoring in between would make it four. An
    update may be pending as well: then the next perturbation applies it, and a step is two passes.

    Args:
        layout: the parameters. Where they are in several blocks, each moves by itself, and has its own pending terms.
    Attributes:
        parts: one layout for each block; the layout itself where there is one block.
        pending: for each part (terms, decay): theta is decay * (the weights as they are) + sum_k c_k z(key_k).
        passes: for each part, passes over its weights so far.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.parts = [layout] if len(layout.blocks) == 1 else [layout.part(block) for block in layout.blocks]
        self.pending = [NOTHING] * len(self.parts)
        self.passes = [0] * len(self.parts)

    @property
    def displaced(self) -> bool:
        """Whether the weights are not at theta."""
        return any(terms for terms, _ in self.pending)

    @contextmanager
    def at(self, terms: Iterable[Term], part: int | None = None) -> Iterator[None]:
        """Inside, the weights are theta + sum_k c_k z(key_k), of one part or of all; other parts are at theta.

        An exception inside restores them before it goes on.
        """
        terms = list(terms)
        back = [(key, -c) for key, c in terms]
        try:
            for i, (waiting, decay) in enumerate(self.pending):
                if part is None or part == i:
                    self._move(i, waiting + terms, decay, (back, 1.0))
                elif waiting:
                    self._move(i, waiting, decay, NOTHING)
            yield
        except BaseException:
            self.apply_pending()
            raise

    def add_pending(self, terms: Iterable[Term], decay: Number = 1.0) -> None:
        """theta <- decay * theta + sum_k c_k z(key_k), in the next pass."""
        terms = list(terms)
        self.pending = [(_decayed(waiting, decay) + terms, decay * before) for waiting, before in self.pending]

    def update(
        self,
        rule: str,
        terms: Sequence[Term],
        numbers: Sequence[Number],
        state: Callable[[list[torch.Tensor]], Sequence[Sequence[torch.Tensor]]] = lambda params: (),
        decay: Number = 1.0,
        state_rounding: NoiseKey | None = None,
    ) -> None:
        """theta, state <- rule(decay * theta, sum_k c_k z(key_k), state), with what is pending in the same pass.

        Args:
            rule, terms, numbers, state_rounding: as ``zokern.ops.update_`` takes them.
            state: parameters -> for each state of the rule, that of each parameter. Default: none.
        """
        slots = [state(layout.params) for layout in self.parts]  # all of them before anything moves
        for i, (layout, (waiting, before)) in enumerate(zip(self.parts, self.pending)):
            own = _decayed(waiting, decay), decay * before
            self._made(i, NOTHING, lambda: ops.update_(layout, rule, terms, numbers, slots[i], *own, state_rounding))  # noqa: B023

    def apply_pending(self) -> None:
        """Bring the weights to theta, up to one rounding for each pass since they last were there."""
        for i, (terms, decay) in enumerate(self.pending):
            self._move(i, terms, decay, NOTHING)

    def finish(self) -> None:
        """Make the passes that wait, before anything else touches the weights; here, none does."""

    def drop_pending(self) -> None:
        """Take the weights as they are for theta."""
        self.pending = [NOTHING] * len(self.parts)

    def _move(self, i: int, terms: list[Term], decay: Number, pending: Pass) -> None:
        """One pass over a part, or none where that is nothing to do, after which this is pending."""
        terms = _merged(terms)
        if terms or isinstance(decay, torch.Tensor) or decay != 1:
            self._made(i, pending, lambda: self._add_noise(i, terms, decay))
        else:
            self.pending[i] = pending

    def _made(self, i: int, pending: Pass, make: Callable[[], None]) -> None:
        """Make a pass over a part, after which this is pending. What is wrong with its arguments is raised before anything has moved."""
        before, self.pending[i] = self.pending[i], pending
        try:
            make()
        except BaseException:
            self.pending[i] = before
            raise
        self.passes[i] += 1
        torch.clear_autocast_cache()  # it keeps 16-bit copies of weights, and cannot see that they have changed

    def _add_noise(self, i: int, terms: list[Term], decay: Number) -> None:
        ops.add_noise_(self.parts[i], terms, decay)


class ReplayedWeights(PerturbedWeights):
    """``PerturbedWeights`` for passes that are known: they wait, and ``passes_per_sweep`` >= 1 of them are made in one read and write of
    the weights. Each rounds as it would by itself, so that the bits are the same."""

    def __init__(self, layout: Layout, passes_per_sweep: int) -> None:
        super().__init__(layout)
        self.passes_per_sweep = passes_per_sweep
        self.waiting: list[list[Pass]] = [[] for _ in self.parts]

    def update(self, *arguments: Any, **named: Any) -> None:
        self.finish()
        super().update(*arguments, **named)

    def finish(self) -> None:
        for i in range(len(self.parts)):
            self._sweep(i)

    def _add_noise(self, i: int, terms: list[Term], decay: Number) -> None:
        self.waiting[i].append((terms, decay))
        if len(self.waiting[i]) >= self.passes_per_sweep:
            self._sweep(i)

    def _sweep(self, i: int) -> None:
        passes, self.waiting[i] = self.waiting[i], []
        ops.replay_(self.parts[i], passes)


def _decayed(terms: list[Term], decay: Number) -> list[Term]:
    return [(key, decay * c) for key, c in terms]


def _merged(terms: list[Term]) -> list[Term]:
    """One term a key: noise is linear in its coefficient, and two terms of one key would make the same z twice."""
    merged: dict[NoiseKey, Number] = {}
    for key, c in terms:
        before = merged.get(key)
        merged[key] = c if before is None else before + c
    return [(key, c) for key, c in merged.items() if isinstance(c, torch.Tensor) or c != 0]
