"""Zeroth-order fine-tuning of language models, on noise that is never stored."""

from . import noise, ops, trajectory
from .capture import graph
from .estimate import Estimate
from .kernels import backends, use_backend
from .layers import Layers, layers
from .layout import Layout
from .noise import NoiseKey
from .optim import Annealing, Check, ForwardGradient, Hybrid, MeZO, MeZOSVRG, ZOAdam, ZOConservative, ZOMomentum, ZOSign, splits
from .trajectory import Trajectory, record
from .version import __version__

__all__ = [
    "Annealing",
    "Check",
    "Estimate",
    "ForwardGradient",
    "Hybrid",
    "Layers",
    "Layout",
    "MeZO",
    "MeZOSVRG",
    "NoiseKey",
    "Trajectory",
    "ZOAdam",
    "ZOConservative",
    "ZOMomentum",
    "ZOSign",
    "__version__",
    "backends",
    "graph",
    "layers",
    "noise",
    "ops",
    "record",
    "splits",
    "trajectory",
    "use_backend",
]
