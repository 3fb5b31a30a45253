"""Zeroth-order fine-tuning in the Hugging Face Trainer, of whole models or of peft's adapters. Needs zokern[hf]."""

from ..tasks.virtual_tokens import both_names
from .adapters import STARTING_POINTS, StartingPoint, adapt, lora_plus
from .trainer import ZOTrainer

__all__ = ["STARTING_POINTS", "StartingPoint", "ZOTrainer", "adapt", "both_names", "lora_plus"]
