"""Fine-tune a language model of transformers by forward passes: what is behind ``zokern finetune``."""

from ..errors import BadInput
from .job import finetune, resume
from .report import Result
from .settings import Settings

__all__ = ["BadInput", "Result", "Settings", "finetune", "resume"]
