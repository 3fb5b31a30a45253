"""Theta beside the model: the model's tensors are outputs, whose addresses stay."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from .. import ops
from ..layout import Layout
from ..ops.arguments import Term
from ..shards import as_part, local
from .perturbation import NOTHING, PerturbedWeights


class Copied:
    """Theta is kept beside the model, and the model's tensors are written from it: ``perturbation=zokern.Copied()``.

    A point that is measured is one pass, theta + eps z into the model's tensors, and nothing restores: theta does not move but by updates,
    so that weights in 16 bits do not drift, and in float32 an update is not lost. Nothing is exchanged, so that CUDA graphs, torch.compile
    and inference engines may hold the model's addresses. ``state_dict`` holds theta, as "theta" of each parameter.

    What is written to the model's parameters between steps becomes theta, element by element: those that still are what theta is in their
    dtype keep it. (Not through ``p.data``, where torch counts no writes: write under torch.no_grad().) A state that is loaded has its own
    theta, which the model then shows, whichever of the two is loaded first. A model that is moved or cast takes theta along.

    Args:
        dtype: of theta. torch.float32, 4 bytes a weight: a model in 16 bits trains as one in float32 does, but for the rounding of what it
            computes with. None: each parameter's own, 2 bytes a weight in 16 bits. Default torch.float32.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, dtype: torch.dtype | None = torch.float32) -> None:
        if dtype not in (torch.float32, None):
            raise ValueError(f"Copied(dtype={dtype!r}): pass torch.float32, or None for each parameter's own")
        self.dtype = dtype

    @property
    def name(self) -> str:
        """The kind of perturbation, in settings and logs: "copied", or "copied-own" with dtype=None."""
        return "copied" if self.dtype else "copied-own"

    def __repr__(self) -> str:
        return f"zokern.Copied({'' if self.dtype else 'dtype=None'})"

    def weights(self, layout: Layout, state: MutableMapping[Any, Any]) -> "CopiedWeights":
        """The weights that an optimizer moves.

        Args:
            layout: of the model's parameters.
            state: the optimizer's, which keeps theta.
        """
        return CopiedWeights(layout, self, state)


class CopiedWeights(PerturbedWeights):
    """The weights of ``Copied``.

    Args:
        layout: the model's parameters.
        copied: how theta is kept.
        state: an optimizer's state: parameter -> dict, which holds theta under "theta". Made at the first need.
    """

    def __init__(self, layout: Layout, copied: Copied, state: MutableMapping[Any, Any]) -> None:
        super().__init__(layout)
        self.copied, self.state = copied, state
        self._shown = _Shown(self.parts)
        if self._kept:
            self.theta  # noqa: B018  from here on what is written to the model is seen

    @property
    def theta(self) -> list[Layout]:
        if self._theta is None:
            held = [[self._theta_of(p, i) for p in part.params] for i, part in enumerate(self.parts)]
            self._theta = [part.over(tensors) for part, tensors in zip(self.parts, held)]
        return self._theta

    def _theta_of(self, p: torch.Tensor, i: int) -> torch.Tensor:
        """What holds theta of a parameter of a part: that of the state, of a run that goes on, or what the model has."""
        dtype = self.copied.dtype or p.dtype
        if "theta" in self.state[p]:
            theta: torch.Tensor = self.state[p]["theta"].to(p.device, dtype)
            self._shown.stale[i] |= not torch.equal(local(theta).to(p.dtype), local(p))
        else:
            theta = p.detach().to(dtype, copy=True)
        self.state[p]["theta"] = theta
        return theta

    @property
    def _kept(self) -> bool:
        """Whether the state holds a theta: else the model's parameters are it."""
        return any("theta" in self.state.get(p, ()) for p in self.layout.params)

    @property
    def displaced(self) -> bool:
        return self.passes_per_sweep is None and any(self._shown.stale) or super().displaced

    @contextmanager
    def _showing(self, terms: list[list[Term]]) -> Iterator[None]:
        for i, own in enumerate(terms):
            self._show(i, own)
        yield

    def apply_pending(self) -> None:
        self._apply_updates()
        if self.passes_per_sweep is None and self._kept:
            self._show_theta()

    def finish(self) -> None:
        super().finish()
        if self.passes_per_sweep is not None:
            self._show_theta()

    def over(self, tensors: list[torch.Tensor]) -> "CopiedWeights":
        return _Anchor(self, tensors)

    @contextmanager
    def undisturbed(self) -> Iterator[list[list[torch.Tensor]]]:
        made, displaced = self._kept, self.displaced
        held = [[p.detach().to("cpu", copy=True) for p in part.tensors] for part in self.parts] if displaced else []
        with super().undisturbed() as theta:
            yield theta
        for i, copies in enumerate(held):  # where the model is between the halves of a step
            for p, saved in zip(self.parts[i].tensors, copies):
                p.copy_(saved)
            self.parts[i].drop_gathered()
            self._shown.stale[i], self.passes[i] = True, self.passes[i] + 1
        if not made:  # a run may begin from here, as one without state
            self._theta = None
            for p in self.layout.params:
                del self.state[p]["theta"]
                if not self.state[p]:
                    del self.state[p]

    def moved_by_graph(self) -> None:
        super().moved_by_graph()
        self._shown.places = [_places(part) for part in self.parts]

    def look(self) -> None:
        """What was written to elements of the model's parameters is theta now; elsewhere theta stays, and goes along where these moved."""
        if self._theta is None or self.displaced:
            return
        for i, part in enumerate(self.parts):
            before, seen = self._shown.places[i], _places(part)
            if before != seen:
                part.tables()  # refuses parameters of another shape
                changed = [(p, old.dtype) for p, old, now in zip(part.params, before, seen) if old != now]
                for p, dtype in changed:
                    self._take_over(p, dtype)
                self._shown.places[i] = seen
                if any(p.dtype != dtype for p, dtype in changed):
                    self._shown.stale[i] = True
                    self._show(i, [])

    def _take_over(self, p: torch.Tensor, shown_as: torch.dtype) -> None:
        held, theta, dtype = local(p).detach(), local(self.state[p]["theta"]), self.copied.dtype or p.dtype
        shown = theta.to(held.device, shown_as).to(held.dtype)
        if theta.device != held.device or theta.dtype != dtype:
            theta, self._theta = theta.to(held.device, dtype), None
            self.state[p]["theta"] = as_part(theta, p)
        theta.copy_(torch.where(shown == held, theta, held))

    def _show_theta(self) -> None:
        for i in range(len(self.parts)):
            self._show(i, [])

    def _show(self, i: int, terms: list[Term]) -> None:
        """The model's tensors of a part <- theta + sum_k c_k z(key_k)."""
        theta = self.theta[i]
        if terms or self._shown.stale[i]:
            self._shown.stale[i] = True
            ops.add_noise_(theta, NOTHING.then(terms).terms, out=self.parts[i].params)
            self._shown.stale[i] = bool(terms)
            self._shown.places[i] = _places(self.parts[i])
            self.passes[i] += 1
            torch.clear_autocast_cache()

    def _moved(self, i: int) -> None:
        self._shown.stale[i] = True


class _Shown:
    """What the model's tensors hold: for each part whether it is something else than theta, and where they were when it was written."""

    def __init__(self, parts: list[Layout]) -> None:
        self.stale = [False] * len(parts)
        self.places = [_places(part) for part in parts]


class _Anchor(CopiedWeights):
    """Another theta that is shown by the same model; the ``CopiedWeights`` that it is made of bring that back to theirs."""

    def __init__(self, weights: CopiedWeights, tensors: list[torch.Tensor]) -> None:
        super().__init__(weights.layout, weights.copied, {})
        self._shown = weights._shown
        held = dict(zip(weights.layout.params, tensors))
        self._theta = [part.over([held[p] for p in part.params]) for part in self.parts]
        self._main = weights

    def apply_pending(self) -> None:
        pass

    def _show(self, i: int, terms: list[Term]) -> None:
        self._shown.stale[i] = True
        super()._show(i, terms)
        self._shown.stale[i] = True
        self._main.passes[i] += 1


class _Place(NamedTuple):
    version: int
    address: int
    dtype: torch.dtype


def _places(part: Layout) -> list[_Place]:
    return [_Place(p._version, p.data_ptr(), p.dtype) for p in part.tensors]
