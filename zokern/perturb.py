"""Where the model is evaluated: at theta plus noise, without a copy of theta."""

from contextlib import contextmanager

import torch

from . import ops
from .layout import Layout


class InPlace:
    """Moves the weights themselves, and owes the way back.

    Leaving a place does not restore the weights at once: the next move pays what is owed in the same pass. Going to +eps z,
    then to -eps z, then to an updated theta is three passes; restoring in between would make it four.

    Args:
        layout: the parameters.
    Attributes:
        displacement: terms (NoiseKey, coefficient) by which the weights stand off theta now.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.displacement = []

    @contextmanager
    def at(self, terms):
        """Inside, the weights are theta + sum_k c_k z(key_k). An exception inside restores them before it goes on."""
        terms = list(terms)
        self._move(self._owed(1.0) + terms, 1.0)
        self.displacement = terms
        try:
            # Autocast keeps 16-bit copies of weights; it cannot see that they have changed.
            torch.clear_autocast_cache()
            yield
        except BaseException:
            self.settle()
            raise

    def add(self, terms, decay=1.0):
        """theta <- decay * theta + sum_k c_k z(key_k), wherever the weights stand, with what is owed in the same pass."""
        self._move(self._owed(decay) + list(terms), decay)
        self.displacement = []
        torch.clear_autocast_cache()

    def settle(self):
        """Pay what is owed: the weights are theta again, up to one rounding for each move away and back."""
        self.add([])

    def _owed(self, decay):
        return [(key, -decay * c) for key, c in self.displacement]

    def _move(self, terms, decay):
        terms = _merged(terms)
        if terms or isinstance(decay, torch.Tensor) or decay != 1:
            ops.add_noise_(self.layout, terms, decay)


def _merged(terms):
    """One term a key: noise is linear in its coefficient, and two terms of one key would make the same z twice."""
    merged = {}
    for key, c in terms:
        merged[key] = merged[key] + c if key in merged else c
    return [(key, c) for key, c in merged.items() if isinstance(c, torch.Tensor) or c != 0]
