"""Where the model is evaluated: at theta plus noise, without a copy of theta."""

from contextlib import ExitStack, contextmanager

import torch

from . import ops
from .layout import Layout


class InPlace:
    """Moves the weights themselves, and owes the way back.

    Leaving a place does not restore the weights at once: the next move pays what is owed in the same pass. Going to +eps z,
    then to -eps z, then to an updated theta is three passes; restoring in between would make it four. An update may be owed as
    well: then the next move away takes it along, and a step is two passes.

    Args:
        layout: the parameters.
    Attributes:
        owed: (terms, decay): theta is decay * (the weights as they stand) + sum_k c_k z(key_k).
        parts: what can move by itself: here, all at once.
        passes: passes over the weights so far.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.parts = [self]
        self.owed = [], 1.0
        self.passes = 0

    @property
    def owes(self) -> bool:
        return bool(self.owed[0])

    @contextmanager
    def at(self, terms):
        """Inside, the weights are theta + sum_k c_k z(key_k). An exception inside restores them before it goes on."""
        terms = list(terms)
        owed, decay = self.owed
        try:
            self._move(owed + terms, decay, ([(key, -c) for key, c in terms], 1.0))
            # Autocast keeps 16-bit copies of weights; it cannot see that they have changed.
            torch.clear_autocast_cache()
            yield
        except BaseException:
            self.settle()
            raise

    def owe(self, terms, decay=1.0):
        """theta <- decay * theta + sum_k c_k z(key_k), without a pass: the weights are to follow with the next move."""
        owed, before = self.owed
        self.owed = [(key, decay * c) for key, c in owed] + list(terms), decay * before

    def add(self, terms, decay=1.0):
        """theta <- decay * theta + sum_k c_k z(key_k), wherever the weights stand, with what is owed in the same pass."""
        self.owe(terms, decay)
        self.settle()

    def update(self, rule, terms, numbers, state, decay=1.0, rounding=None):
        """theta, state <- rule(decay * theta, sum_k c_k z(key_k), state), with what is owed in the same pass.

        Args:
            rule, terms, numbers, rounding: as ``zokern.ops.update_`` takes them.
            state: for each state of the rule a function that gives it for a parameter.
        """
        owed, before = self.owed
        slots = [[of(p) for p in self.layout.params] for of in state]
        owed = [(key, decay * c) for key, c in owed]
        with self._owing(([], 1.0)):
            ops.update_(self.layout, rule, terms, numbers, slots, owed, decay * before, rounding)
            self.passes += 1
        torch.clear_autocast_cache()

    def settle(self):
        """Pay what is owed: the weights are theta, up to one rounding for each move since they last were."""
        self._move(*self.owed, ([], 1.0))
        torch.clear_autocast_cache()

    def _move(self, terms, decay, owed):
        """One pass, after which this is owed."""
        terms = _merged(terms)
        with self._owing(owed):
            if terms or isinstance(decay, torch.Tensor) or decay != 1:
                self._pass(terms, decay)
                self.passes += 1

    def _pass(self, terms, decay):
        ops.add_noise_(self.layout, terms, decay)

    @contextmanager
    def _owing(self, owed):
        """What is owed after the pass inside. Signals wait for its end; an error is raised before anything has moved."""
        before, self.owed = self.owed, owed
        try:
            yield
        except BaseException:
            self.owed = before
            raise


class Retracing(InPlace):
    """As ``InPlace``, for a way that is known: passes wait until there are ``together`` of them, and are made in one.

    Each rounds as it would by itself, so that the bits are the same. ``drain`` before anything looks at the weights.

    Args:
        layout: the parameters.
        together: passes, >= 1.
    """

    def __init__(self, layout: Layout, together: int):
        super().__init__(layout)
        self.together, self.waiting = together, []

    def update(self, *arguments, **named):
        self.drain()
        super().update(*arguments, **named)

    def drain(self):
        """Make the passes that wait."""
        passes, self.waiting = self.waiting, []
        ops.replay_(self.layout, passes)

    def _pass(self, terms, decay):
        self.waiting.append((terms, decay))
        if len(self.waiting) >= self.together:
            self.drain()


class BlockByBlock:
    """As ``InPlace``, but made of blocks that can move one at a time, each owing its own way back.

    Args:
        layout: the parameters, in blocks.
        part: layout of a block -> what moves it. Default: an InPlace.
    Attributes:
        parts: one a block, in the order of ``layout.blocks``.
    """

    def __init__(self, layout: Layout, part=InPlace):
        self.layout = layout
        self.parts = [part(layout.part(block)) for block in layout.blocks]

    @property
    def owes(self) -> bool:
        return any(part.owes for part in self.parts)

    @property
    def passes(self) -> int:
        return sum(part.passes for part in self.parts)

    @contextmanager
    def at(self, terms):
        terms = list(terms)
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.at(terms))
            yield

    def owe(self, terms, decay=1.0):
        for part in self.parts:
            part.owe(terms, decay)

    def add(self, terms, decay=1.0):
        for part in self.parts:
            part.add(terms, decay)

    def update(self, *arguments, **named):
        for part in self.parts:
            part.update(*arguments, **named)

    def settle(self):
        for part in self.parts:
            part.settle()


def over(layout: Layout, part=InPlace):
    """-> what moves all parameters of a layout: one ``part``, or one a block where there are several."""
    return part(layout) if len(layout.blocks) == 1 else BlockByBlock(layout, part)


def _merged(terms):
    """One term a key: noise is linear in its coefficient, and two terms of one key would make the same z twice."""
    merged = {}
    for key, c in terms:
        merged[key] = merged[key] + c if key in merged else c
    return [(key, c) for key, c in merged.items() if isinstance(c, torch.Tensor) or c != 0]
