"""The optimizers."""

from .adam import ZOAdam
from .adamezo import AdaMeZO
from .base import ZerothOrder
from .check import Check
from .conservative import ZOConservative
from .contract import ClosureOptimizer, logged_as, named, optimizers, register
from .evolution_strategies import EvolutionStrategies
from .forward_gradient import ForwardGradient
from .fzoo import FZOO
from .hybrid import Hybrid, HybridStep, splits
from .meazo import MEAZO
from .mezo import MeZO
from .momentum import ZOMomentum
from .settings import Setting
from .sign import ZOSign
from .stateful import Stateful
from .svrg import Annealing, MeZOSVRG

__all__ = [
    "FZOO",
    "MEAZO",
    "AdaMeZO",
    "Annealing",
    "Check",
    "ClosureOptimizer",
    "EvolutionStrategies",
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
