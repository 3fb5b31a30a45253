"""One evaluation of a model whose parts have perturbed weights while they run, and only then."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from ..ops.arguments import Term
from ..ops.staging import tell_autograd
from .parts import Part
from .scratch import Piece, Scratch

Filled: TypeAlias = list[tuple[Piece, Sequence[Term]]]


@dataclass(eq=False)
class Window:
    """A part that runs: the parameters that were exchanged, and what was theirs before."""

    part: Part
    homes: list[tuple[nn.Parameter, torch.Tensor]] = field(default_factory=list)


class Windows:
    """
    Args:
        contents: what each part is to be filled with.
        scratch: the memory.
    Attributes:
        seen: parameters that were exchanged at some time.
        exchanging: whether a part's parameters are just being made or put back.
    """

    def __init__(self, contents: dict[Part, Filled], scratch: Scratch) -> None:
        self.contents, self.scratch = contents, scratch
        self.open: list[Window] = []  # each called by the one before
        self.shown: set[nn.Parameter] = set()
        self.seen: set[nn.Parameter] = set()
        self.exchanging = False

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

    def _before(self, part: Part, *_: Any) -> None:
        _check_eager(part)
        with self._exchange():
            filled = self.contents[part]
            if self.shown:  # a parameter that has its noise by a part around this one keeps it
                filled = [(rest, terms) for piece, terms in filled if (rest := piece.without(self.shown)).params]
            made = self._fill((len(self.open), 0), filled)
            self.open.append(window := Window(part))
            for piece, views in made:
                for p, view in zip(piece.params, views):
                    window.homes.append((p, p.data))
                    p.data = view
                self.shown.update(piece.params)
                self.seen.update(piece.params)
            torch.clear_autocast_cache()  # it keeps 16-bit copies of weights, and cannot see that they are others now

    def _after(self, part: Part, *_: Any) -> None:
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

    def _fill(self, slot: tuple[int, int], filled: Filled) -> list[tuple[Piece, list[torch.Tensor]]]:
        made = self.scratch.views(slot, [piece for piece, _ in filled])
        for (piece, terms), place in zip(filled, made):
            self.scratch.fill(piece, place, terms)
        return [(piece, views) for (piece, _), (_, views) in zip(filled, made)]

    def _close(self) -> Part:
        window = self.open[-1]
        for p, home in window.homes:
            p.data = home
        self.shown.difference_update(p for p, _ in window.homes)
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
