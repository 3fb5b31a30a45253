"""Which block a parameter belongs to, and which share of it is perturbed: settled at construction, kept in the groups."""

from numbers import Real

import torch

from ..layout import Layout
from ..ops.staging import pieces
from .layers import Layers, layers


def layout_of(groups) -> Layout:
    """The layout of all parameters of groups, with the blocks and shares that they keep."""
    listed = {name: [x for g in groups for x in g[name]] for name in ("keep", "block") if name in groups[0]}
    return Layout(groups, listed.get("keep"), listed.get("block"))


def numbers_of_blocks(groups, blocks) -> list[list[int]]:
    """For each group the number of the block of each of its parameters.

    Args:
        groups: as in ``torch.optim``.
        blocks: list of lists of parameters, or of modules, whose parameters they then are (of one that two modules share, the first
            has it); a model, whose layers they then are, or its ``Layers``.
    Raises:
        ValueError: a block that is empty, or a parameter in none or in two of them; a model whose layers are not found.
    """
    if isinstance(blocks, torch.nn.Module):
        blocks = layers(blocks)
    if isinstance(blocks, Layers):
        blocks = blocks.blocks()
    number = {}
    for b, block in enumerate(blocks):
        if isinstance(block, torch.nn.Module):
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
                name = f" ({group['param_names'][i]!r})" if "param_names" in group else ""
                raise ValueError(
                    f"param_groups[{g}]['params'][{i}]{name} of shape {tuple(p.shape)} is in none of the {len(blocks)} blocks: add it, or "
                    "pass zokern.layers(model, blocks=[...]), which has blocks for what is before and behind them"
                )
    return [[number[id(p)] for p in group["params"]] for group in groups]


@torch.no_grad()
def kept_by_magnitude(groups, sparsity) -> list[list[float]]:
    """For each group the share of each of its parameters that is left when the smallest ``sparsity`` of all elements go.

    A tensor of which nothing would be left keeps one element on average.

    Raises:
        ValueError: sparsity outside [0, 1).
    Reference: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", section 5, "sparsity-induced
        gradient estimation".
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity!r}: pass a number in [0, 1), the share of elements that z leaves alone")
    params = [p for group in groups for p in group["params"] if p.numel()]
    # The bits of |x| as an integer are in the order of |x|: the threshold's upper half first, then its lower half.
    rank = int(sparsity * sum(p.numel() for p in params))
    high = _bin(params, lambda u: u >> 16, 1 << 15, rank)
    before = sum(int((u >> 16 < high).sum()) for p in params for u in _magnitudes(p))
    low = _bin(params, lambda u: (u & 0xFFFF)[u >> 16 == high], 1 << 16, rank - before)
    least = high << 16 | low
    # Of the elements of exactly this size, zeros for one, as many are left as the sparsity asks for: every tensor the same part of its own.
    counts = {id(p): _counts(p, least) for p in params}
    above, ties = (sum(count[i] for count in counts.values()) for i in (0, 1))
    part = (sum(p.numel() for p in params) - rank - above) / ties
    share = lambda p: max(counts[id(p)][0] + part * counts[id(p)][1], 1) / p.numel() if p.numel() else 1.0  # noqa: E731
    return [[share(p) for p in group["params"]] for group in groups]


def _counts(p, least) -> tuple[int, int]:
    """How many elements are larger, and how many of just this size."""
    pairs = [(int((u > least).sum()), int((u == least).sum())) for u in _magnitudes(p)]
    return tuple(map(sum, zip(*pairs)))


def _bin(params, digit, digits, rank) -> int:
    """The digit of the element of this rank, in ascending order."""
    count = sum(torch.bincount(digit(u), minlength=digits).cpu() for p in params for u in _magnitudes(p))
    return int((count.cumsum(0) <= rank).sum())


def _magnitudes(p):
    """|x| as integers in the order of |x|, piece by piece: never a copy of the parameter."""
    for (part,), _ in pieces([p.detach()], 0):
        yield part.float().contiguous().view(-1).view(torch.int32) & 0x7FFFFFFF
