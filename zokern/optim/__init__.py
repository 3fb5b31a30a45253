"""The optimizers."""

from .adam import ZOAdam
from .adamezo import AdaMeZO
from .base import ZerothOrder
from .check import Check
from .conservative import ZOConservative
from .contract import ClosureOptimizer, logged_as, named, optimizers, register
from .forward_gradient import ForwardGradient
from .hybrid import Hybrid, HybridStep, splits
from .mezo import MeZO
from .momentum import ZOMomentum
from .settings import Setting
from .sign import ZOSign
from .stateful import Stateful
from .svrg import Annealing, MeZOSVRG

__all__ = [
    "AdaMeZO",
    "Annealing",
    "Check",
    "ClosureOptimizer",
    "ForwardGradient",
    "Hybrid",
    "HybridStep",
    "MeZO",
    "MeZOSVRG",
    "Setting",
    "Stateful",
    "ZOAdam",
    "ZOConservative",
    "ZOMomentum",
    "ZOSign",
    "ZerothOrder",
    "logged_as",
    "named",
    "optimizers",
    "register",
    "splits",
]
