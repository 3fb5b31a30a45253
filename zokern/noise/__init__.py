"""What the noise is: its specification, its keys and its oracle. NumPy is loaded only by ``zokern.noise.reference``."""

from .key import NoiseKey
from .spec import SPEC_VERSION

__all__ = ["SPEC_VERSION", "NoiseKey"]
