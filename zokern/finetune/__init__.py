"""Fine-tune a language model of transformers by forward passes: what is behind ``zokern finetune``.

Everything in here raises ``BadInput`` for what a user can cause: one line with the thing, its value and the cure.
"""

from ..errors import BadInput
from .job import finetune, resume
from .model import convert
from .processes import leads
from .report import Result
from .settings import Settings

__all__ = ["BadInput", "Result", "Settings", "convert", "finetune", "leads", "resume"]
