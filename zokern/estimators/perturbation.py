"""Where the weights are while a loss is measured: at theta plus noise. ``in_place``, ``copied`` and ``streamed`` have the kinds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch

from .. import ops
from ..layout import Layout
from ..noise import NoiseKey
from ..ops.arguments import Number, Term
from ..ops.staging import tell


class Pass(NamedTuple):
    """theta <- decay * theta + sum_k c_k z(key_k). ``rounding``: the key by which 16-bit weights are rounded stochastically as they are
    stored; None: to nearest."""

    terms: list[Term]
    decay: Number = 1.0
    rounding: NoiseKey | None = None

    @property
    def moves(self) -> bool:
        return bool(self.terms) or isinstance(self.decay, torch.Tensor) or self.decay != 1

    def then(self, terms: Iterable[Term], decay: Number = 1.0, rounding: NoiseKey | None = None) -> "Pass":
        """Both in one pass, this one first."""
        before = [(key, decay * c) for key, c in self.terms]
        return Pass(_merged([*before, *terms]), decay * self.decay, rounding or self.rounding)


NOTHING = Pass([])


class PerturbedWeights:
    """Weights that losses are measured around: where theta is, what is to be added to it, and what the model computes with.

    This class keeps theta and the passes over it. A kind of perturbation adds how the model comes to compute with theta plus noise.

    Args:
        layout: the model's parameters. Where they are in several blocks, each moves by itself, and has its own pending terms.
        theta: the same layout over the tensors that hold theta. Default None: the parameters themselves.

    Attributes:
        parts: one layout for each block; the layout itself where there is one block.
        theta: for each part the layout over what holds theta.
        pending: for each part the ``Pass`` that brings what is stored to theta.
        passes: for each part, passes over the model's parameters so far.
        rounding: by which key updates that come now are rounded into 16-bit weights; None: to nearest.
        passes_per_sweep: None; or in a replay, where all passes are known, how many of them are made in one read and write of the weights.
            Each rounds as it would by itself, so that the bits are the same; ``finish`` makes those that wait.
        in_place: whether a measurement moves what is stored, and so rounds it.
    """

    in_place = False

    def __init__(self, layout: Layout, theta: Layout | None = None) -> None:
        self.layout = layout
        self.parts = _parts(layout)
        self.pending = [NOTHING] * len(self.parts)
        self.passes = [0] * len(self.parts)
        self.rounding: NoiseKey | None = None
        self.passes_per_sweep: int | None = None
        self._waiting: list[list[tuple[list[Term], Number]]] = [[] for _ in self.parts]
        self._theta = None if theta is None else _parts(theta)
        self._away: list[Term] = []

    @property
    def theta(self) -> list[Layout]:
        """For each part the layout over what holds theta."""
        return self.parts if self._theta is None else self._theta

    @property
    def displaced(self) -> bool:
        """Whether the model's parameters are not at theta."""
        return any(waiting.terms for waiting in self.pending)

    @contextmanager
    def at(self, terms: Iterable[Term], part: int | None = None) -> Iterator[None]:
        """Inside, the model computes with theta + sum_k c_k z(key_k).

        An exception inside brings the weights to theta before it goes on.

        Args:
            terms: sequence of (NoiseKey, coefficient).
            part: the block that is moved, by its number; the others are at theta. Default None: all.
        """
        terms = list(terms)
        try:
            self.visit(terms, part)
            with self._showing([[*self._away, *(terms if part in (None, i) else [])] for i in range(len(self.parts))]):
                yield
        except BaseException:
            self.apply_pending()
            raise

    def visit(self, terms: Iterable[Term], part: int | None = None) -> None:
        """The passes over theta that a measurement there makes, where its result is known: for a replay.

        The arguments are those of ``at``.
        """
        self._apply_updates()

    def pass_by(self, terms: Iterable[Term], part: int | None = None) -> None:
        """The passes of a measurement that is made elsewhere, within ``passing_by``. The arguments are those of ``at``."""
        self.visit(terms, part)

    def passing_by(self) -> AbstractContextManager[None]:
        """Around measurements, some of which are made elsewhere."""
        return nullcontext()

    @contextmanager
    def away(self, terms: Iterable[Term]) -> Iterator[None]:
        """Inside, theta counts as theta + sum_k c_k z(key_k), by these ``terms``."""
        before, self._away = self._away, [*self._away, *terms]
        try:
            yield
        finally:
            self._away = before

    @contextmanager
    def undisturbed(self) -> Iterator[list[list[torch.Tensor]]]:
        """Inside, measure what is not to be seen afterwards: the weights and what is pending are then as before, bit for bit.

        Yields:
            For each part what this process holds of theta, tensors that stay.
        """
        try:
            yield [layout.tensors for layout in self.theta]
        finally:
            self.apply_pending()

    def over(self, tensors: list[torch.Tensor]) -> "PerturbedWeights":
        """The same model around another theta: ``tensors`` of the shapes and dtypes of theta's, one a parameter of ``layout``."""
        raise NotImplementedError

    def _showing(self, terms: list[list[Term]]) -> AbstractContextManager[None]:
        """Inside, the model computes with theta + sum_k c_k z(key_k), by these terms of each part."""
        raise NotImplementedError

    def add_pending(self, terms: Iterable[Term], decay: Number = 1.0) -> None:
        """theta <- decay * theta + sum_k c_k z(key_k), in the next pass: an update.

        Args:
            terms: sequence of (NoiseKey, coefficient).
            decay: a number or a 0-dim or [coefficient groups] tensor. Default 1.0.
        """
        terms = list(terms)
        self.pending = [waiting.then(terms, decay, self.rounding) for waiting in self.pending]

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
            state: parameters -> for each state of the rule, that of each parameter. Default: none.

        All other arguments are those of ``zokern.ops.update_``.
        """
        slots = [state(layout.params) for layout in self.parts]  # all of them before anything moves
        self._update(
            decay, lambda i, theta, **own: ops.update_(theta, rule, terms, numbers, slots[i], state_rounding=state_rounding, **own)
        )

    def windowed_adam(
        self, window: Sequence[Sequence[Term]], weights: tuple[Sequence[Number], Sequence[Number]], numbers: Sequence[Number],
        decay: Number = 1.0,
    ) -> None:  # fmt: skip
        """theta <- Adam's step from decay * theta, by moments of the terms of several steps, with what is pending in the same pass.

        The arguments are those of ``zokern.ops.windowed_adam_``.
        """
        self._update(decay, lambda i, theta, **own: ops.windowed_adam_(theta, window, weights, numbers, **own))

    def _update(self, decay: Number, make: Callable[..., None]) -> None:
        """make(number of a part, its theta, pending, decay and rounding of the op): a pass over each part."""
        for i, theta in enumerate(self.theta):
            self._sweep(i)
            before = self.pending[i].then([], decay)
            own = dict(pending=before.terms, decay=before.decay, rounding=self.rounding or "nearest")
            self._made(i, NOTHING, lambda: make(i, theta, **own))  # noqa: B023

    def apply_pending(self) -> None:
        """Bring the model's weights to theta; in place, up to one rounding for each pass since they last were there."""
        self._apply_updates()

    def finish(self) -> None:
        """Make the passes that wait, before anything else touches the weights."""
        for i in range(len(self.parts)):
            self._sweep(i)

    def drop_pending(self) -> None:
        """Take what is stored for theta."""
        self.pending = [NOTHING] * len(self.parts)

    def check_loaded(self, state_dict: dict[str, Any]) -> None:
        """Refuse a ``state_dict`` of an optimizer to which these weights cannot be brought."""

    def look(self) -> None:
        """See what somebody else wrote to the model's parameters since the last pass."""

    def moved_by_graph(self) -> None:
        """A CUDA graph has made passes again that begin and end with the model's parameters at theta."""
        tell(self.layout)

    def _apply_updates(self) -> None:
        for i, waiting in enumerate(self.pending):
            self._move(i, waiting, NOTHING)

    def _move(self, i: int, move: Pass, pending: Pass) -> None:
        """One pass over a part's theta, or none where that is nothing to do, after which this is pending."""
        if move.moves:
            self._made(i, pending, lambda: self._add_noise(i, move))
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
        self._moved(i)

    def _moved(self, i: int) -> None:
        """A pass over theta of a part was made."""
        self.passes[i] += 1
        torch.clear_autocast_cache()  # it keeps 16-bit copies of weights, and cannot see that they have changed

    def _add_noise(self, i: int, move: Pass) -> None:
        if move.rounding is not None or self.passes_per_sweep is None and not self._waiting[i]:
            self._sweep(i)
            self._add_noise_now(i, move)
        else:
            self._waiting[i].append((move.terms, move.decay))
            if len(self._waiting[i]) >= (self.passes_per_sweep or 1):
                self._sweep(i)

    def _add_noise_now(self, i: int, move: Pass) -> None:
        ops.add_noise_(self.theta[i], move.terms, move.decay, rounding=move.rounding or "nearest")

    def _sweep(self, i: int) -> None:
        if passes := self._waiting[i]:
            self._waiting[i] = []
            ops.replay_(self.theta[i], passes)
            for _ in passes[1:]:
                tell(self.theta[i])  # a write each, as one by one


class Shower(Protocol):
    """A model whose parts can be shown other weights while they run: ``Streamed``."""

    def showing(
        self, layouts: Sequence[Layout], theta: Sequence[Layout], terms: Sequence[Sequence[Term] | None]
    ) -> AbstractContextManager[None]: ...


class StreamedWeights(PerturbedWeights):
    """Weights that no measurement writes: each part of the model is shown theta plus noise while it runs.

    Args:
        shower: the model; None in a replay, which needs none.
        writing: () -> a context, around each whole update of theta. Default: none is needed.
    """

    def __init__(
        self, layout: Layout, shower: Shower | None, theta: Layout | None = None,
        writing: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:  # fmt: skip
        super().__init__(layout, theta)
        self.shower, self.writing = shower, writing

    def over(self, tensors: list[torch.Tensor]) -> "StreamedWeights":
        return StreamedWeights(self.layout, self.shower, self.layout.over(tensors))

    def _update(self, decay: Number, make: Callable[..., None]) -> None:
        with self._whole_update():
            super()._update(decay, make)

    def _apply_updates(self) -> None:
        if any(waiting.moves for waiting in self.pending):
            with self._whole_update():
                super()._apply_updates()

    @contextmanager
    def _whole_update(self) -> Iterator[None]:
        before, refused = list(self.passes), None
        with self.writing():
            try:
                yield
            except (TypeError, ValueError) as error:  # an op's, which refuses its arguments before it writes anything
                if self.passes != before:
                    raise
                refused = error
        if refused is not None:
            raise refused

    def _showing(self, terms: list[list[Term]]) -> AbstractContextManager[None]:
        if self.shower is None:
            raise RuntimeError('perturbation="streamed" names no model whose parts could be perturbed: pass zokern.Streamed(model)')
        return self.shower.showing(self.parts, self.theta, [_merged(own) for own in terms])


def _parts(layout: Layout) -> list[Layout]:
    return [layout] if len(layout.blocks) == 1 else [layout.part(block) for block in layout.blocks]


def _merged(terms: Iterable[Term]) -> list[Term]:
    """One term a key: noise is linear in its coefficient, and two terms of one key would make the same z twice."""
    merged: dict[NoiseKey, Number] = {}
    for key, c in terms:
        before = merged.get(key)
        merged[key] = c if before is None else before + c
    return [(key, c) for key, c in merged.items() if isinstance(c, torch.Tensor) or c != 0]
