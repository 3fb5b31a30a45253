"""One evaluation of a model whose parts have perturbed weights while they run, and only then."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..ops.staging import tell_autograd
from .ahead import Ahead
from .parts import Part
from .scratch import Filled, Made, Scratch, Slot


@dataclass(eq=False)
class Window:
    """A part that runs: the parameters that were exchanged, and what was theirs before."""

    part: Part
    ids: frozenset[int]
    homes: list[tuple[nn.Parameter, torch.Tensor]] = field(default_factory=list)


class Windows:
    """

    Args:
        contents: what each part is to be filled with.
        scratch: the memory.
        ahead: what lets parts be made ahead; None: each is made when it runs.

    Attributes:
        shown, seen: ids of the parameters that are exchanged now, and at some time.
        exchanging: whether a part's parameters are just being made or put back.
    """

    def __init__(self, contents: dict[Part, Filled], scratch: Scratch, ahead: Ahead | None) -> None:
        self.contents, self.scratch, self.ahead = contents, scratch, ahead
        self.open: list[Window] = []  # each called by the one before
        self.shown: set[int] = set()
        self.seen: set[int] = set()
        self.exchanging = False
        self.holds: dict[Slot, Filled] = {}  # what was made there last

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside, a part that is called opens its window. At the end nothing is left of any."""
        handles = []
        try:
            for part in self.contents:
                handles.append(part.module.register_forward_pre_hook(partial(self._before, part), prepend=True))
                handles.append(part.module.register_forward_hook(partial(self._after, part), always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            while self.open:
                self._close()
            if self.ahead:
                self.ahead.wait()

    def _before(self, part: Part, *called: Any) -> None:
        _check_eager(part)
        with self._exchange():
            filled = self.contents[part]
            if self.shown:  # a parameter that has its noise by a part around this one keeps it
                filled = [(rest, terms) for piece, terms in filled if (rest := piece.without(self.shown)).params]
            depth = len(self.open)
            slot = self.ahead.place(part, depth) if self.ahead else (depth, 0)
            made = self.scratch.views(slot, filled, lambda: self._largest(depth))
            self._fill(slot, filled, made)
            window = Window(part, frozenset().union(*(piece.ids for piece, _ in filled)))
            self.open.append(window)
            self.shown |= window.ids
            self.seen |= window.ids
            for (piece, _), (_, views) in zip(filled, made):
                for p, view in zip(piece.params, views):
                    window.homes.append((p, p.data))
                    p.data = view
            if self.ahead:
                self._make_following(self.ahead, depth)
            torch.clear_autocast_cache()  # it keeps 16-bit copies of weights, and cannot see that they are others now

    def _after(self, part: Part, *called: Any) -> None:
        if any(window.part is part for window in self.open):  # not where its opening failed
            with self._exchange():
                while self._close() is not part:  # those inside which an exception left open
                    pass

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        self.exchanging = True
        try:
            with torch._C.DisableTorchFunction():  # or modes that others have set would see, and change, what is done
                yield
        finally:
            self.exchanging = False

    def _make_following(self, ahead: Ahead, depth: int) -> None:
        part, slot = ahead.following(depth)
        filled = self.contents.get(part, []) if part else []
        if filled and all(piece.ids.isdisjoint(self.shown) for piece, _ in filled):
            made = self.scratch.views(slot, filled, lambda: self._largest(depth))
            with ahead.aside():
                self._fill(slot, filled, made)

    def _largest(self, depth: int) -> int:
        return max((sum(piece.bytes for piece, _ in self.contents[part]) for part in self.contents if part.depth == depth), default=0)

    def _fill(self, slot: Slot, filled: Filled, made: list[Made]) -> None:
        if self.holds.get(slot) != filled:  # made ahead; or made before, of a block that is called again and again
            self.holds.pop(slot, None)
            self.scratch.fill(filled, made)
            self.holds[slot] = filled

    def _close(self) -> Part:
        window = self.open[-1]
        for p, home in window.homes:
            p.data = home
        self.shown -= window.ids
        if torch.is_grad_enabled():  # a graph that saved these parameters would go on with other values
            tell_autograd([p for p, _ in window.homes])
        torch.clear_autocast_cache()
        self.open.pop()
        return window.part


def _check_eager(part: Part) -> None:
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if torch.compiler.is_compiling() or on_gpu and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{part} is called in a model that is compiled or captured, and zokern.Streamed moves its parameters while it runs: call the "
            "model as it was before torch.compile or torch.cuda.graph, or pass perturbation=zokern.Copied()"
        )
