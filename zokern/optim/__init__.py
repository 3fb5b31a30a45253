"""The optimizers."""

from .base import ZerothOrder
from .mezo import MeZO, ZOConservative, ZOSign
from .moments import ZOAdam, ZOMomentum
from .svrg import Annealing, MeZOSVRG

__all__ = ["Annealing", "MeZO", "MeZOSVRG", "ZOAdam", "ZOConservative", "ZOMomentum", "ZOSign", "ZerothOrder"]
