"""Hybrid: zeroth-order steps on one part of a model, first-order steps on the rest."""

from . import splits
from .optimizer import Hybrid, HybridStep

__all__ = ["Hybrid", "HybridStep", "splits"]
