"""The two halves of a model's parameters, and parameters that are cut in two."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import nn

from ...estimators import Layers
from .splits import Rows, Split, rows_of


class Cut:
    """A parameter in two: its leading rows first-order, the others zeroth-order, both views of its memory."""

    def __init__(self, whole: nn.Parameter, rows: int) -> None:
        self.whole, self.rows = whole, rows
        self.first, self.zeroth = nn.Parameter(whole.detach()[:rows]), nn.Parameter(whole.detach()[rows:])

    def follow(self) -> None:
        """Be views of the memory where the parameter is now: model.to() moves it."""
        facts = [(p.data_ptr(), p.dtype, p.stride(), p.shape[1:]) for p in (self.first, self.whole)]
        if facts[0] != facts[1] or len(self.first) + len(self.zeroth) != len(self.whole):
            self.first.data, self.zeroth.data = self.whole.detach()[: self.rows], self.whole.detach()[self.rows :]

    def keep(self, whole: torch.Tensor) -> None:
        """Keep the gradient of the leading rows, and free that of the whole."""
        assert whole.grad is not None
        grad = whole.grad[: self.rows]
        # Checkpointed segments run backward apart, so that a parameter that two of them share comes here twice.
        self.first.grad = grad.clone() if self.first.grad is None else self.first.grad.add_(grad)
        whole.grad = None


class Halves:
    """Which of a model's trainable parameters are first-order, by a split, and which of their rows.

    Args:
        frozen: the zeroth-order half is left as it is.

    Attributes:
        trainable, frozen: {parameter: its name}, as they are at construction.
        first: {parameter: its first-order rows} of those with any, at the newest draw.
        cuts: the parameters that both halves have a part of.
        zeroth_order, first_order: [(name, parameter)] and [parameter]: what each half may come to hold.

    Raises: as ``Hybrid``, of parameters and memory.
    """

    def __init__(self, layers: Layers, split: Split, frozen: bool) -> None:
        self.layers, self.split = layers, split
        self.trainable = {p: name for p, name in layers.titles.items() if p.requires_grad}
        self.frozen = {p: name for p, name in layers.titles.items() if not p.requires_grad}
        self.first, self.cuts = self.rows(0), []
        self._check_memory()
        self.zeroth_order: list[tuple[str, nn.Parameter]] = []
        self.first_order: list[nn.Parameter] = []
        for p, name in self.trainable.items():
            rows = self.first.get(p, 0)
            if rows == 0:
                self.zeroth_order.append((name, p))
            elif rows == rows_of(p):
                self.first_order.append(p)
            else:
                self.cuts.append(cut := Cut(p, rows))
                self.zeroth_order.append((f"{name}[{rows}:]", cut.zeroth))
                self.first_order.append(cut.first)
        counts = {"zo": sum(p.numel() for _, p in self.zeroth_order), "fo": sum(p.numel() for p in self.first_order)}
        for half, other in (("zo", "fo"), ("fo", "zo")):
            if not counts[half] and not (half == "zo" and frozen):
                raise ValueError(
                    f"split={split} leaves no parameter to {half}: all {counts[other]:,} trainable elements, in {len(layers.params)} "
                    f"blocks, embeddings and head, go to {other}; pass a split that leaves some to both"
                )
        if split.every:
            self.zeroth_order, self.first_order = [(name, p) for p, name in self.trainable.items()], list(self.trainable)

    def rows(self, step: int) -> Rows:
        """{parameter: its first-order rows} at a step, of trainable parameters with any."""
        return {p: rows for p, rows in self.split.first_order(self.layers, step).items() if rows and p in self.trainable}

    def named(self, rows: Rows) -> dict[str, int]:
        return {self.trainable[p]: n for p, n in rows.items()}

    @contextmanager
    def first_order_alone(self) -> Iterator[None]:
        """Inside, no parameter but the first-order ones requires a gradient, and cut ones keep that of their rows."""
        others = [p for p in self.trainable if p not in self.first and p.requires_grad]
        hooks = [cut.whole.register_post_accumulate_grad_hook(cut.keep) for cut in self.cuts]  # type: ignore[no-untyped-call]
        try:
            for p in others:
                p.requires_grad_(False)
            yield
        finally:
            for p in others:
                p.requires_grad_(True)
            for hook in hooks:
                hook.remove()

    def follow(self) -> None:
        for cut in self.cuts:
            cut.follow()

    def drop_gradients(self) -> None:
        for p in (*self.trainable, *(cut.first for cut in self.cuts)):
            p.grad = None

    def _check_memory(self) -> None:
        if self.split.every:
            side: dict[nn.Parameter, int | str] = {p: i for i, block in enumerate(self.layers.params) for p in block}
        else:
            side = {p: "whole" if rows == rows_of(p) else "cut" for p, rows in self.first.items()}
        storages = defaultdict(list)
        for p in self.trainable:
            storages[p.device, p.untyped_storage().data_ptr()].append(p)
        for sharers in storages.values():
            for a, b in combinations(sharers, 2):
                if _overlap(a, b) and (side.get(a) != side.get(b) or side.get(a) == "cut"):
                    raise ValueError(
                        f"{self.trainable[a]!r} and {self.trainable[b]!r} share memory, which split={self.split} would put in both halves: "
                        "tie them as one Parameter, or pass a split that keeps them together"
                    )


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one storage share memory, as far as their first and last elements tell."""
    ends = [p.data_ptr() + p.element_size() * (1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride()))) for p in (a, b)]
    return bool(a.numel() and b.numel()) and a.data_ptr() < ends[1] and b.data_ptr() < ends[0]
