"""The kinds of perturbation, by the names that settings and logs have for them."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from ..layout import Layout
from ..ops.arguments import Term
from .copied import Copied
from .perturbation import InPlace, PerturbedWeights


class Kind(Protocol):
    """A kind of perturbation: ``Copied()``, ``Streamed(model)``."""

    @property
    def name(self) -> str: ...

    def weights(self, layout: Layout, state: MutableMapping[Any, Any]) -> PerturbedWeights: ...


Perturbation: TypeAlias = str | Kind | None  # what optimizers take


class _InPlace:
    name = "in-place"

    def weights(self, layout: Layout, state: MutableMapping[Any, Any]) -> PerturbedWeights:
        return InPlace(layout)


class _Unseen:
    """Streamed weights without a model: a replay needs none."""

    name = "streamed"

    def weights(self, layout: Layout, state: MutableMapping[Any, Any]) -> PerturbedWeights:
        return _UnseenWeights(layout)


class _UnseenWeights(PerturbedWeights):
    @contextmanager
    def _showing(self, terms: list[list[Term]]) -> Iterator[None]:
        raise RuntimeError('perturbation="streamed" names no model whose parts could be perturbed: pass zokern.Streamed(model)')
        yield

    def over(self, tensors: list[torch.Tensor]) -> "_UnseenWeights":
        return _UnseenWeights(self.layout, self.layout.over(tensors))


NAMED: dict[str, Kind] = {kind.name: kind for kind in (_InPlace(), _Unseen(), Copied(), Copied(dtype=None))}


def perturbation_of(model: nn.Module, perturbation: Perturbation = None) -> Perturbation:
    """What an optimizer of a model's parameters is made with by who knows the model: ``Streamed(model)`` for "streamed", and where nothing
    is said and weights that are trained are in 16 bits."""
    unsaid = perturbation is None and any(p.itemsize == 2 for p in model.parameters() if p.requires_grad)
    return None if unsaid or perturbation == "streamed" else perturbation


def kind_of(perturbation: str | Kind) -> Kind:
    """
    Raises:
        ValueError: there is no such kind.
    """
    if isinstance(perturbation, str):
        if perturbation not in NAMED:
            names = ", ".join(f'"{name}"' for name in NAMED if name != "streamed")
            raise ValueError(f"perturbation={perturbation!r}: pass {names}, zokern.Streamed(model), or None")
        return NAMED[perturbation]
    if isinstance(perturbation, type) or not (hasattr(perturbation, "weights") and hasattr(perturbation, "name")):
        raise TypeError(f"perturbation is {perturbation!r}: pass zokern.Copied(), zokern.Streamed(model), a name, or None")
    return perturbation
