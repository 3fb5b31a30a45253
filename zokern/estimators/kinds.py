"""The kinds of perturbation, by the names that settings and logs have for them."""

from collections.abc import MutableMapping
from typing import Any, Protocol, TypeAlias

from torch import nn

from ..layout import Layout
from ..shards import is_sharded
from .copied import Copied
from .in_place import InPlace
from .perturbation import PerturbedWeights, StreamedWeights
from .streamed import Streamed


class Kind(Protocol):
    """A kind of perturbation: ``Copied()``, ``Streamed(model)``."""

    @property
    def name(self) -> str: ...

    def weights(self, layout: Layout, state: MutableMapping[Any, Any]) -> PerturbedWeights: ...


Perturbation: TypeAlias = str | Kind | None  # what optimizers take
"""What optimizers take as ``perturbation``: a name, ``Copied()``, ``Streamed(model)``, or None, by which each chooses."""


class _InPlace:
    name = "in-place"

    def weights(self, layout: Layout, state: MutableMapping[Any, Any]) -> PerturbedWeights:
        return InPlace(layout)


class _Streamed:
    name = "streamed"

    def weights(self, layout: Layout, state: MutableMapping[Any, Any]) -> PerturbedWeights:
        return StreamedWeights(layout, None)


NAMED: dict[str, Kind] = {kind.name: kind for kind in (_InPlace(), _Streamed(), Copied(), Copied(dtype=None))}


def perturbation_of(model: nn.Module, perturbation: Perturbation, perturbs: bool) -> Perturbation:
    """What an optimizer of a model's parameters is made with by who knows the model.

    Args:
        model: whose parameters are trained.
        perturbation: as it was asked for.
        perturbs: whether that optimizer perturbs weights at all.

    Returns:
        ``Streamed(model)`` for "streamed", and for None where weights in 16 bits are to be perturbed; of a sharded model ``Copied()`` then.
            Else what was asked for.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if perturbation is None and perturbs and any(p.itemsize == 2 for p in trained):
        return Copied() if any(map(is_sharded, trained)) else Streamed(model)
    return Streamed(model) if perturbation == "streamed" else perturbation


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
