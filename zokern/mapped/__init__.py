"""Weights that live in safetensors files: read where they lie, updated where they lie."""

from .file import write
from .match import matched
from .weights import MappedWeights

__all__ = ["MappedWeights", "matched", "write"]
