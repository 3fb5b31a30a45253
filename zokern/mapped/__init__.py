"""Weights that live in safetensors files: read where they lie, updated where they lie."""

from .file import write
from .weights import MappedWeights

__all__ = ["MappedWeights", "write"]
