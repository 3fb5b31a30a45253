"""Gradient estimates from forward passes: who asks for losses where, and what follows from them."""

from .copied import Copied
from .estimate import Estimate, average
from .finite_difference import finite_difference, one_sided, two_point
from .in_place import InPlace
from .kinds import Perturbation, perturbation_of
from .layers import Layers, layers
from .losses import Closure, Driver, Estimator, Log, LossClosure, Losses, Point
from .perturbation import PerturbedWeights
from .population import SHAPINGS, normalised, population
from .streamed import Streamed

__all__ = [
    "SHAPINGS",
    "Closure",
    "Copied",
    "Driver",
    "Estimate",
    "Estimator",
    "InPlace",
    "Layers",
    "Log",
    "LossClosure",
    "Losses",
    "PerturbedWeights",
    "Perturbation",
    "Point",
    "Streamed",
    "average",
    "finite_difference",
    "layers",
    "normalised",
    "one_sided",
    "perturbation_of",
    "population",
    "two_point",
]
