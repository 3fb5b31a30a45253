"""Which element of a checkpoint lies where in an engine's model: read from the engine's own loader.

Engines stack weights, cut them over processes, pad and transpose them, for every architecture in their own way. So each tensor of the
checkpoint is loaded once more with the numbers of its elements in place of their values, into integers in place of the model's weights.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import BadInput, refusing
from .shard import Piece

MOST = 1 << 16  # lines of elements in a parameter, where they are not all alike
Found = list[tuple[Piece, torch.Tensor]]  # pieces, and the model's memory of each, its elements in the piece's order


def places(model: Any, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> Found:
    """Where the elements of tensors are, as far as this process has them.

    Takes 8 bytes of host memory for each element of the model meanwhile. Afterwards the parameters have the memory that they had.

    Args:
        model: an engine's, with ``load_weights([(name, tensor)])``.
        tensors: (name, shape) of those of the checkpoint.

    Raises:
        BadInput: the loader makes something of them that is no copy of elements.
    """
    numels = [torch.Size(shape).numel() for _, shape in tensors]
    # From 1 on, since loaders fill padding with 0; with one left out after each tensor, so that no element follows that of another.
    firsts = torch.tensor([1, *numels]).cumsum(0) + torch.arange(len(numels) + 1)
    parameters, seen = dict(model.named_parameters()), dict[str, torch.Tensor]()
    kept = {name: (p.data, p.requires_grad) for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.requires_grad_(False)
            seen[name] = p.data = torch.full(p.shape, -1, dtype=torch.int64)
        with refusing(f"{type(model).__name__}'s loader cannot place elements", "take an engine of another version, or another model"):
            model.load_weights(
                (name, torch.arange(first, first + n).view(shape)) for (name, shape), n, first in zip(tensors, numels, firsts.tolist())
            )
    finally:
        for name, p in parameters.items():
            p.data, grad = kept[name]
            p.requires_grad_(grad)
    found: Found = []
    for name, numbers in seen.items():
        if numbers.numel() and (int(numbers.max()) >= firsts[-1] or int(numbers.min()) < -1):
            raise BadInput(
                f"{type(model).__name__}'s loader computes {name!r} from the checkpoint, and noise could not follow: take another"
            )
        found += _found(name, parameters[name].data, numbers, [name for name, _ in tensors], firsts)
    return found


def _found(title: str, data: torch.Tensor, numbers: torch.Tensor, names: Sequence[str], firsts: torch.Tensor) -> Found:
    """The pieces of one parameter of the engine's."""
    lines = _lines(numbers.reshape(-1))
    if numbers.dim() == 2 and len(lines[0]) > len(numbers):  # more than one a row: it may be transposed
        turned = _lines(numbers.t().reshape(-1))
        if len(turned[0]) < len(lines[0]):
            lines, data = turned, data.t()
    return [(piece, _view(title, data, piece, begin, pitch)) for piece, begin, pitch in _pieces(*lines, names, firsts)]


def _lines(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(where each begins, its length, the number of its first element) of the lines of consecutive elements in a list of numbers."""
    follows = (flat[1:] == flat[:-1] + 1) & (flat[:-1] > 0) | (flat[1:] < 1) & (flat[:-1] < 1)
    begins = torch.cat([torch.zeros(min(len(flat), 1), dtype=torch.int64), (~follows).nonzero().flatten() + 1])
    lengths = torch.cat([begins[1:], torch.tensor([len(flat)])]) - begins if len(flat) else begins
    known = flat[begins] > 0
    return begins[known], lengths[known], flat[begins[known]]


def _pieces(
    begins: torch.Tensor, lengths: torch.Tensor, values: torch.Tensor, names: Sequence[str], firsts: torch.Tensor
) -> list[tuple[Piece, int, int]]:
    """[(piece, where it begins, the distance of its lines)] of lines."""
    owners = torch.searchsorted(firsts, values, right=True) - 1
    alike = (lengths[1:] == lengths[:-1]) & (owners[1:] == owners[:-1])
    blocks = torch.cat([torch.zeros(min(len(begins), 1), dtype=torch.int64), (~alike).nonzero().flatten() + 1]).tolist()
    found = []
    for first, last in zip(blocks, [*blocks[1:], len(begins)]):
        steps, pitches = values[first:last].diff().unique().tolist(), begins[first:last].diff().unique().tolist()
        even = len(steps) <= 1 and len(pitches) <= 1 and (not steps or steps[0] >= int(lengths[first]))
        if not even and last - first > MOST:
            raise BadInput(
                f"the engine keeps {names[int(owners[first])]!r} in an order of its own: take another engine, or train another part"
            )
        for line in [first] if even else range(first, last):
            rows, length, owner = last - first if even else 1, int(lengths[line]), int(owners[line])
            step, pitch = (steps[0], pitches[0]) if rows > 1 else (length, length)
            piece = Piece(names[owner], int(values[line] - firsts[owner]), rows, length, step)
            found.append((piece, int(begins[line]), pitch))
    return found


def _view(title: str, data: torch.Tensor, piece: Piece, begin: int, pitch: int) -> torch.Tensor:
    """The memory of a piece that begins at an element of ``data``, in row-major order of its shape."""
    if data.is_contiguous():
        return data.as_strided((piece.rows, piece.columns), (pitch, 1), data.storage_offset() + begin)
    if data.dim() == 2 and piece.rows == 1 and not begin % data.shape[1] and not piece.columns % data.shape[1]:
        return data[begin // data.shape[1] :][: piece.columns // data.shape[1]]
    raise BadInput(f"the engine keeps {title!r} transposed and in parts, whose lines kernels do not know: start it with one worker")
