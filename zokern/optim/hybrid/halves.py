"""The two halves of a Hybrid's parameters, and what cannot be divided."""

from collections import defaultdict
from itertools import combinations

from .splits import Cut, rows_of


def divide(trainable, rows):
    """-> (cuts, [(name, zeroth-order parameter)], [first-order parameter]); a cut parameter is in both with its rows.

    Args:
        trainable: {parameter: name}.
        rows: {parameter: its first-order rows}, of those with any.
    """
    cuts, zeroth, first = [], [], []
    for p, name in trainable.items():
        leading = rows.get(p, 0)
        if leading == 0:
            zeroth.append((name, p))
        elif leading == rows_of(p):
            first.append(p)
        else:
            cuts.append(cut := Cut.of(p, leading))
            zeroth.append((f"{name}[{leading}:]", cut.zeroth))
            first.append(cut.first)
    return cuts, zeroth, first


def check_both(split, layers, zeroth, first, frozen) -> None:
    """
    Raises:
        ValueError: a half is left without a parameter, the zeroth-order one where it is not frozen.
    """
    counts = {"zo": sum(p.numel() for _, p in zeroth), "fo": sum(p.numel() for p in first)}
    for half, other in (("zo", "fo"), ("fo", "zo")):
        if not counts[half] and not (half == "zo" and frozen):
            raise ValueError(
                f"split={split} leaves no parameter to {half}: all {counts[other]:,} trainable elements, in "
                f"{len(layers.params)} blocks, embeddings and head, go to {other}; pass a split that leaves some to both"
            )


def check_memory(split, layers, trainable, rows) -> None:
    """
    Raises:
        ValueError: two parameters are over the same memory, where one may move by zo and the other by fo.
    """
    if split.every:
        side = {p: i for i, block in enumerate(layers.params) for p in block}
    else:
        side = {p: "whole" if n == rows_of(p) else "cut" for p, n in rows.items()}
    storages = defaultdict(list)
    for p in trainable:
        storages[p.device, p.untyped_storage().data_ptr()].append(p)
    for sharers in storages.values():
        for a, b in combinations(sharers, 2):
            if _overlap(a, b) and (side.get(a) != side.get(b) or side.get(a) == "cut"):
                raise ValueError(
                    f"{trainable[a]!r} and {trainable[b]!r} share memory, which split={split} would put in both "
                    "halves: tie them as one Parameter, or pass a split that keeps them together"
                )


def _overlap(a, b):
    """Whether two tensors of one storage share memory, as far as their first and last elements tell."""
    ends = [p.data_ptr() + p.element_size() * (1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride()))) for p in (a, b)]
    return a.numel() and b.numel() and a.data_ptr() < ends[1] and b.data_ptr() < ends[0]
