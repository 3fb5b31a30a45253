"""What a backend is handed: numbers on the device, and parameters that are not contiguous piece by piece."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch

from ..kernels.tables import Table, to_device
from ..layout import Layout
from ..shards import local
from .arguments import Number

Pieces: TypeAlias = Iterator[tuple[list[torch.Tensor], int]]

FEW = 2  # numbers that are written on the device one by one; more are gathered on the host and copied
PIECE = 1 << 17  # elements of a strided parameter gathered at a time: 512 KiB, never a copy of the parameter


def stage(values: Sequence[Number], groups: int, device: torch.device) -> torch.Tensor:
    """Numbers -> float32 [len(values), groups] on the device, without waiting for it; in the host's memory where it knows them all."""
    tensors = {k: v for k, v in enumerate(values) if isinstance(v, torch.Tensor) and (v.dim() or v.device.type != "cpu")}
    known = all(v.device.type == "cpu" for v in tensors.values())
    if not known and len(values) <= FEW:
        staged = torch.empty(len(values), groups, device=device)
        for k, row in enumerate(staged):
            if k in tensors:
                row.copy_(tensors[k], non_blocking=True)
            else:
                row.fill_(float(values[k]))
        return staged
    if values and len(tensors) == len(values) and len({(v.device, v.dtype) for v in tensors.values()}) == 1:
        stacked = torch.stack([v.expand(groups) for v in tensors.values()])
        return stacked.float() if known else stacked.to(device, torch.float32, non_blocking=device.type == "cuda")
    plain = [0.0 if k in tensors else float(v.item() if isinstance(v, torch.Tensor) else v) for k, v in enumerate(values)]
    host = torch.tensor(plain, dtype=torch.float32).view(-1, 1)  # at once: one by one they cost several microseconds each
    if groups > 1:
        host = host.repeat(1, groups)
    for k, value in tensors.items():
        if value.device.type == "cpu":
            host[k] = value
    if known:
        return host
    staged = to_device(host, device)
    for k, value in tensors.items():
        if value.device.type != "cpu":
            staged[k] = value.to(device, non_blocking=device.type == "cuda")
    return staged


def each_table(layout: Layout, out: list[torch.Tensor] | None = None) -> Iterator[Table]:
    """The tables of all parameters, those that are no lines piece by piece. Autograd is told at the end."""
    written = None if out is None else [local(tensor) for tensor in out]
    tables, strided = layout.tables(written)
    yield from tables
    for i in strided:
        theta = [layout.tensors[i]]
        for (part, *to), start in gathered([] if written is None else theta, theta if written is None else [written[i]]):
            yield layout.table_of(i, part, start, *to)
    tell(layout, written)


def gathered(read: list[torch.Tensor], written: list[torch.Tensor]) -> Pieces:
    """Covers tensors of one shape piece by piece, in row-major order of the logical shape.

    Yields (contiguous copies of a piece of each, the number of the piece's first element); what the copies of ``written`` then hold is put
    back.
    """
    for parts, start in pieces([*read, *written]):
        copies = [part.contiguous() for part in parts]
        yield copies, start
        for part, copy in [*zip(parts, copies)][len(read) :]:
            if copy is not part:
                part.copy_(copy)


def pieces(tensors: list[torch.Tensor], first: int = 0) -> Pieces:
    """Views of at most PIECE elements of each tensor, with the number of their first element."""
    shape = tensors[0].shape
    if tensors[0].numel() <= PIECE:
        yield tensors, first
        return
    row = shape[1:].numel()
    if row > PIECE:
        for i in range(shape[0]):
            yield from pieces([tensor[i] for tensor in tensors], first + i * row)
    else:
        for i in range(0, shape[0], PIECE // row):
            yield [tensor[i : i + PIECE // row] for tensor in tensors], first + i * row


def tell(layout: Layout, out: list[torch.Tensor] | None = None) -> None:
    """A layout's parameters, or tensors in their place, have changed: tell who keeps something that was made of them."""
    tell_autograd(layout.tensors if out is None else out)
    layout.drop_gathered()


def tell_autograd(params: list[torch.Tensor]) -> None:
    """Or a graph that saved the old weights would silently go on with the new ones."""
    bump = torch.autograd.graph.increment_version
    try:
        bump(params)
    except TypeError:  # older torch takes one tensor at a time
        for p in params:
            bump(p)
