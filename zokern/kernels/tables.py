"""What kernels are told of memory: which tensors lie where, and which elements and coefficients are theirs."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch

KEEP_ALL = 0xFFFFFFFF  # the keep_threshold of a tensor all of whose elements keep their noise

T = TypeVar("T")


class Row(NamedTuple):
    """One tensor: ``numel`` elements in lines of ``columns``. Element j lies in line r = j // columns at column c = j % columns: its memory
    is element r * pitch + c after ``address``, its index first + r * step + c. A contiguous tensor is one line.

    ``out``, ``out_pitch``: where ``add_noise_`` writes; the same as address and pitch in place. ``group``: of coefficients. An element
    keeps its noise where its mask word is at most ``keep_threshold``.
    """

    address: int
    pitch: int
    out: int
    out_pitch: int
    numel: int
    columns: int
    first: int
    step: int
    group: int
    keep_threshold: int


COLUMN = {name: i for i, name in enumerate(Row._fields)}


def contiguous(address: int, numel: int, first: int, group: int = 0, keep_threshold: int = KEEP_ALL) -> Row:
    """A contiguous tensor, in place."""
    line = max(numel, 1)
    return Row(address, line, address, line, numel, line, first, line, group, keep_threshold)


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
    """Tensors of one dtype on one device, as kernels see them.

    ``rows`` is an int64 CPU tensor [tensors, 10], a ``Row`` each. ``groups``: how many coefficient groups there are. ``members``: the
    tensors' indices in ``layout.params``. ``out_dtype``: of what ``add_noise_`` writes; None in place, where every row's out is its own
    address.
    """

    dtype: torch.dtype
    device: torch.device
    groups: int
    rows: torch.Tensor
    members: tuple[int, ...] = ()
    out_dtype: torch.dtype | None = None

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device, groups: int, rows: Iterable[Row], **more: Any) -> "Table":
        return cls(dtype, device, groups, torch.tensor([*rows], dtype=torch.int64).view(-1, len(COLUMN)), **more)

    def column(self, name: str) -> torch.Tensor:
        """A column of ``rows`` by its name, int64 [tensors]."""
        return self.rows[:, COLUMN[name]]

    @property
    def stored(self) -> torch.dtype:
        """The dtype that ``add_noise_`` writes."""
        return self.out_dtype or self.dtype

    @property
    def masked(self) -> bool:
        """Whether some tensor keeps only a part of its noise."""
        return self.cached("masked", lambda: bool((self.column("keep_threshold") != KEEP_ALL).any()))

    @property
    def pitched(self) -> bool:
        """Whether some tensor is more than one line."""
        return self.cached("pitched", lambda: bool((self.column("columns") < self.column("numel")).any()))


@dataclass(eq=False)
class State(Cache):
    """What a rule keeps beside the tensors of a table: an int64 CPU tensor [tensors, slots] of addresses, and the dtype of it all. State is
    contiguous whatever the lines of its tensor: element j lies j elements after its address."""

    dtype: torch.dtype
    addresses: torch.Tensor


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's memory as a copy that the host does not wait for: torch keeps the pinned source until the copy is done."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
