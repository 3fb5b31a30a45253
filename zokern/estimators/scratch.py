"""The memory in which parts of a model get their weights, one after the other."""

from collections.abc import Callable, Sequence, Set
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .. import ops
from ..layout import Layout
from ..ops.arguments import Term

Slot: TypeAlias = tuple[int, int]  # how many parts are open around this one, and which of the two buffers there
Made: TypeAlias = tuple[Layout | None, list[torch.Tensor]]
Filled: TypeAlias = list[tuple["Piece", Sequence[Term]]]

ALIGNMENT = 512  # bytes: as torch's own tensors on a GPU, or cuBLAS might multiply in another way than with these


class Piece:
    """Some parameters of one part, all of one block and on one device.

    Args:
        params: of the model.
        theta: a layout over the tensors that hold theta of these, which may be they themselves; None where they have no noise.
    """

    def __init__(self, params: Sequence[nn.Parameter], theta: Layout | None) -> None:
        self.params, self.theta = list(params), theta
        self.ids = frozenset(map(id, self.params))  # which hash faster than parameters
        self._rest: dict[tuple[int, ...], Piece] = {}

    @property
    def bytes(self) -> int:
        return sum(_bytes(p) for p in self.params)

    def without(self, ids: Set[int]) -> "Piece":
        """Those of the parameters that are not among some."""
        if self.ids.isdisjoint(ids):
            return self
        left = tuple(i for i, p in enumerate(self.params) if id(p) not in ids)
        if left not in self._rest:
            self._rest[left] = Piece([self.params[i] for i in left], None if self.theta is None else self.theta.only(left))
        return self._rest[left]


class Scratch:
    """One buffer a slot, as large as the largest that is made there. What is made of a piece in a slot lies at the same place each time.

    Args:
        device: where the buffers are. None: where the parameters are.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self.buffers: dict[tuple[Slot, torch.device], torch.Tensor] = {}
        self._made: WeakKeyDictionary[Piece, dict[tuple[Any, ...], Made]] = WeakKeyDictionary()

    def views(self, slot: Slot, filled: Filled, least: Callable[[], int]) -> list[Made]:
        """For each piece tensors like its parameters, one behind the other in a slot, and the layout by which they are filled.

        A buffer that is made has at least so many bytes: one that grew step by step would leave holes in the memory.
        """
        used: dict[torch.device, int] = {}
        offsets = []
        for piece, _ in filled:
            device = self.device or piece.params[0].device
            offsets.append((piece, device, used.get(device, 0)))
            used[device] = used.get(device, 0) + piece.bytes
        for device, size in used.items():
            if (slot, device) not in self.buffers or self.buffers[slot, device].numel() < size:
                self._grow(slot, device, max(size, least()))
        return [self._view(piece, slot, device, offset) for piece, device, offset in offsets]

    def _grow(self, slot: Slot, device: torch.device, size: int) -> None:
        for made in self._made.values():  # first, or both buffers would be there at once
            for key in [key for key in made if key[0] == slot]:
                del made[key]
        self.buffers.pop((slot, device), None)
        with torch.inference_mode(False):
            self.buffers[slot, device] = torch.empty(size, dtype=torch.uint8, device=device)

    def _view(self, piece: Piece, slot: Slot, device: torch.device, offset: int) -> Made:
        made = self._made.setdefault(piece, {})
        place = slot, offset, device, *(p.dtype for p in piece.params)  # a model may have been converted since
        if place not in made:
            theta, views, at = piece.theta, [], offset
            with torch.inference_mode(False), torch.no_grad():
                for p in piece.params:
                    here = self.buffers[slot, device][at : at + _bytes(p)].view(p.dtype)
                    views.append(here.as_strided(p.shape, torch.empty_like(p, device="meta").stride()))
                    at += _bytes(p)
            # A layout of its own for each place, whose tables stay.
            made[place] = theta and theta.over(theta.params if self.device is None else views), views
        return made[place]

    def fill(self, filled: Filled, made: list[Made]) -> None:
        """theta + sum_k c_k z(key_k). Elsewhere than theta is, it is copied there first: the same bits."""
        for (piece, terms), (layout, views) in zip(filled, made):
            if self.device is not None:
                for view, theta in zip(views, piece.params if piece.theta is None else piece.theta.params):
                    view.copy_(theta.detach(), non_blocking=True)
                if layout is not None and terms:
                    ops.add_noise_(layout, terms)
            elif layout is not None:
                ops.add_noise_(layout, terms, out=views)


def _bytes(p: torch.Tensor) -> int:
    return -(-p.nbytes // ALIGNMENT) * ALIGNMENT
