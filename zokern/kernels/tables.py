"""What kernels are told of memory: which tensors lie where, and which elements and coefficients are theirs."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

KEEP_ALL = 0xFFFFFFFF  # the keep_threshold of a tensor all of whose elements keep their noise

T = TypeVar("T")


@dataclass(eq=False, kw_only=True)
class Cache:
    """Remembers what is made of an object, for as long as the object lives: backends keep their device copies here."""

    made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def cached(self, name: Hashable, make: Callable[[], T]) -> T:
        """``make()``, or what it gave the first time under this name."""
        if name not in self.made:
            self.made[name] = make()
        made: T = self.made[name]
        return made


@dataclass(eq=False)
class Table(Cache):
    """Contiguous tensors of one dtype on one device, as kernels see them.

    ``rows`` is an int64 CPU tensor [tensors, 5]: address, number of elements, first element, coefficient group, and keep_threshold (an
    element keeps its noise where its mask word is at most this). ``groups``: how many coefficient groups there are. ``members``: the
    tensors' indices in ``layout.params``.
    """

    dtype: torch.dtype
    device: torch.device
    groups: int
    rows: torch.Tensor
    members: tuple[int, ...] = ()

    @property
    def masked(self) -> bool:
        """Whether some tensor keeps only a part of its noise."""
        return self.cached("masked", lambda: bool((self.rows[:, 4] != KEEP_ALL).any()))


@dataclass(eq=False)
class State(Cache):
    """What a rule keeps beside the tensors of a table: an int64 CPU tensor [tensors, slots] of addresses, and the dtype of it all."""

    dtype: torch.dtype
    addresses: torch.Tensor
