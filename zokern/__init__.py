"""Zeroth-order fine-tuning of language models, on noise that is never stored."""

from . import noise, ops, optim, trajectory
from .distributed import DistributedClosure
from .estimators import Copied, Estimate, Layers, Streamed, layers
from .kernels import backends, use_backend
from .layout import Layout
from .noise import NoiseKey
from .optim import (
    FZOO,
    MEAZO,
    AdaMeZO,
    Annealing,
    Check,
    EvolutionStrategies,
    ForwardGradient,
    Hybrid,
    MeZO,
    MeZOSVRG,
    ZerothOrder,
    ZOAdam,
    ZOConservative,
    ZOMomentum,
    ZOSign,
    splits,
)
from .optim.cuda_graph import graph
from .trajectory import Trajectory, record
from .version import __version__

__all__ = [
    "FZOO",
    "MEAZO",
    "AdaMeZO",
    "Annealing",
    "Check",
    "Copied",
    "DistributedClosure",
    "Estimate",
    "EvolutionStrategies",
    "ForwardGradient",
    "Hybrid",
    "Layers",
    "Layout",
    "MeZO",
    "MeZOSVRG",
    "NoiseKey",
    "Streamed",
    "Trajectory",
    "ZOAdam",
    "ZOConservative",
    "ZOMomentum",
    "ZOSign",
    "ZerothOrder",
    "__version__",
    "backends",
    "graph",
    "layers",
    "noise",
    "ops",
    "optim",
    "record",
    "splits",
    "trajectory",
    "use_backend",
]
