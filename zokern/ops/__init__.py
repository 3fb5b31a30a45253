"""The operations on parameters: they check once and hand over to a backend."""

from .accumulate import add_noise_, make_noise, noise_like
from .moments import update_
from .retrace import retrace_

__all__ = ["add_noise_", "make_noise", "noise_like", "retrace_", "update_"]
