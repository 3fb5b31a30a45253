"""Zeroth-order fine-tuning of language models, on noise that is never stored."""

from . import noise, ops
from .capture import graph
from .estimate import Estimate
from .kernels import backends, use_backend
from .layers import Layers, layers
from .layout import Layout
from .noise import NoiseKey
from .optim import Annealing, ForwardGradient, Hybrid, MeZO, MeZOSVRG, ZOAdam, ZOConservative, ZOMomentum, ZOSign, splits
from .version import __version__

__all__ = [
    "Annealing",
    "Estimate",
    "ForwardGradient",
    "Hybrid",
    "Layers",
    "Layout",
    "MeZO",
    "MeZOSVRG",
    "NoiseKey",
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
    "splits",
    "use_backend",
]
