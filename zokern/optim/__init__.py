"""The optimizers."""

from . import splits
from .base import ZerothOrder
from .forward_gradient import ForwardGradient
from .hybrid import Hybrid, HybridStep
from .mezo import MeZO

__all__ = ["ForwardGradient", "Hybrid", "HybridStep", "MeZO", "ZerothOrder", "splits"]
