"""The optimizers."""

from .base import ZerothOrder
from .forward_gradient import ForwardGradient
from .mezo import MeZO

__all__ = ["ForwardGradient", "MeZO", "ZerothOrder"]
