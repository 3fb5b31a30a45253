"""Which block a parameter belongs to, and which share of it is perturbed: found at construction, kept in the groups."""

from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import nn

from ..layout import Layout
from ..ops.staging import pieces
from ..shards import local, total
from .layers import Layers, layers

Groups: TypeAlias = list[dict[str, Any]]  # as torch.optim has them
Blocks: TypeAlias = nn.Module | Layers | Iterable[nn.Module | Iterable[torch.Tensor]]


def layout_of(groups: Groups) -> Layout:
    """The layout of all parameters of groups, with the blocks and shares that they keep."""
    listed = {name: [x for g in groups for x in g[name]] for name in ("keep", "block") if name in groups[0]}
    return Layout(groups, listed.get("keep"), listed.get("block"))


def numbers_of_blocks(groups: Groups, blocks: Blocks) -> list[list[int]]:
    """For each group the number of the block of each of its parameters.

    Args:
        blocks: list of lists of parameters, or of modules, whose parameters they then are (of one that two modules share, the first
            has it); a model, whose layers they then are, or its ``Layers``.

    Raises:
        ValueError: a block that is empty, or a parameter in none or in two of them; a model whose layers are not found.
    """
    if isinstance(blocks, nn.Module):
        blocks = layers(blocks)
    if isinstance(blocks, Layers):
        blocks = blocks.blocks()
    number: dict[int, int] = {}
    for b, block in enumerate(blocks):
        if isinstance(block, nn.Module):
            block = [p for p in block.parameters() if p.requires_grad and number.get(id(p), b) == b]
        elif isinstance(block, torch.Tensor):
            raise TypeError(f"blocks[{b}] is a tensor of shape {tuple(block.shape)}: pass a list of parameters, or a module")
        block = list(block)
        if not block:
            raise ValueError(f"blocks[{b}] is empty, or holds no parameter with requires_grad=True that is in no earlier one: leave it out")
        for p in block:
            if not isinstance(p, torch.Tensor):
                raise TypeError(f"blocks[{b}] holds a {type(p).__name__}: pass lists of parameters, modules, or zokern.layers(model)")
            if number.setdefault(id(p), b) != b:
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is in blocks[{number[id(p)]}] and in blocks[{b}]: pass it in one")
    for g, group in enumerate(groups):
        for i, p in enumerate(group["params"]):
            if id(p) not in number:
                name, count = f" ({group['param_names'][i]!r})" if "param_names" in group else "", 1 + max(number.values(), default=-1)
                raise ValueError(
                    f"param_groups[{g}]['params'][{i}]{name} of shape {tuple(p.shape)} is in none of the {count} blocks: add it, or "
                    "pass zokern.layers(model, blocks=[...]), which has blocks for what is before and behind them"
                )
    return [[number[id(p)] for p in group["params"]] for group in groups]


@torch.no_grad()
def kept_by_magnitude(groups: Groups, sparsity: float) -> list[list[float]]:
    """For each group the share of each of its parameters that is left when the smallest ``sparsity`` of all elements go.

    A tensor of which nothing would be left keeps one element on average.

    Raises:
        ValueError: sparsity outside [0, 1).

    Reference:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", section 5, "sparsity-induced
        gradient estimation".
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity!r}: pass a number in [0, 1), the share of elements that z leaves alone")
    params = [p for group in groups for p in group["params"] if p.numel()]
    # The bits of |x| as an integer are in the order of |x|: the threshold's upper half first, then its lower half.
    rank = int(sparsity * sum(p.numel() for p in params))
    high = _bin(params, lambda u: u >> 16, 1 << 15, rank)
    before = sum(_count(p, lambda u: u >> 16 < high) for p in params)
    low = _bin(params, lambda u: (u & 0xFFFF)[u >> 16 == high], 1 << 16, rank - before)
    least = high << 16 | low
    # Of the elements of exactly this size, zeros for one, as many are left as the sparsity asks for: every tensor the same part of its own.
    above = {id(p): _count(p, lambda u: u > least) for p in params}
    ties = {id(p): _count(p, lambda u: u == least) for p in params}
    part = (sum(p.numel() for p in params) - rank - sum(above.values())) / sum(ties.values())
    share = lambda p: max(above[id(p)] + part * ties[id(p)], 1) / p.numel() if p.numel() else 1.0  # noqa: E731
    return [[share(p) for p in group["params"]] for group in groups]


def _count(p: torch.Tensor, which: Callable[[torch.Tensor], torch.Tensor]) -> int:
    return int(total(torch.tensor(sum(int(which(u).sum()) for u in _magnitudes(p))), p))


def _bin(params: list[torch.Tensor], digit: Callable[[torch.Tensor], torch.Tensor], digits: int, rank: int) -> int:
    """The digit of the element of this rank, in ascending order."""
    count = torch.zeros(digits, dtype=torch.int64)
    for p in params:
        held = torch.zeros_like(count)
        for u in _magnitudes(p):
            held += torch.bincount(digit(u), minlength=digits).cpu()
        count += total(held, p)
    return int((count.cumsum(0) <= rank).sum())


def _magnitudes(p: torch.Tensor) -> Iterator[torch.Tensor]:
    """|x| as integers in the order of |x|, of what this process holds, piece by piece: never a copy of the parameter."""
    for (part,), _ in pieces([local(p).detach()], 0):
        yield part.float().contiguous().view(-1).view(torch.int32) & 0x7FFFFFFF
