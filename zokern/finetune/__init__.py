"""Fine-tune a sequence classifier of transformers with MeZO: the job behind ``python -m zokern finetune``."""

from ..errors import BadInput
from .job import finetune
from .report import Result
from .settings import Settings

__all__ = ["BadInput", "Result", "Settings", "finetune"]
