"""The optimizers."""

from .base import ZerothOrder
from .mezo import MeZO

__all__ = ["MeZO", "ZerothOrder"]
