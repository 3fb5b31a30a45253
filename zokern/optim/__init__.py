"""The optimizers."""

from . import splits
from .base import ZerothOrder
from .check import Check
from .forward_gradient import ForwardGradient
from .hybrid import Hybrid, HybridStep
from .mezo import MeZO, ZOConservative, ZOSign
from .moments import ZOAdam, ZOMomentum
from .svrg import Annealing, MeZOSVRG

__all__ = [
    "Annealing",
    "Check",
    "ForwardGradient",
    "Hybrid",
    "HybridStep",
    "MeZO",
    "MeZOSVRG",
    "ZOAdam",
    "ZOConservative",
    "ZOMomentum",
    "ZOSign",
    "ZerothOrder",
    "splits",
]
