"""Gradient estimates from forward passes: who asks for losses where, and what follows from them."""

from .estimate import Estimate, average
from .finite_difference import finite_difference, one_sided, two_point
from .layers import Layers, layers
from .losses import Closure, Driver, Estimator, Log, LossClosure, Losses, Point
from .perturbation import PerturbedWeights, ReplayedWeights
from .streamed import Streamed

__all__ = [
    "Closure",
    "Driver",
    "Estimate",
    "Estimator",
    "Layers",
    "Log",
    "LossClosure",
    "Losses",
    "PerturbedWeights",
    "Point",
    "ReplayedWeights",
    "Streamed",
    "average",
    "finite_difference",
    "layers",
    "one_sided",
    "two_point",
]
