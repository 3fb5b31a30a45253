"""Forward passes by engines: a model generates and scores elsewhere, at theta plus noise that it makes itself.

An engine is asked to be at theta plus some terms, and then to write or to score; updates of theta are lists of terms as well. Weights
never travel: every process of an engine makes the noise of the elements that it holds.
"""

from .engine import Engine, EngineDied, Sampling
from .generate import Completions, Generator
from .local import Local
from .losses import OptionLoss
from .pool import Pool, PoolDriver

__all__ = ["Completions", "Engine", "EngineDied", "Generator", "Local", "OptionLoss", "Pool", "PoolDriver", "Sampling"]
