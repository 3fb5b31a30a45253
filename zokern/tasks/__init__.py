"""Data sets, and how they become inputs and losses of a language model.

``get("sst2")`` is a Task: it loads examples and scores predictions. ``reader(task, "masked", tokenizer)`` makes batches of rows, and
losses and scores of batches, with a masked model. ``lean_loss`` is a causal model's loss without its full logits.
"""

from ..errors import BadInput
from .catalogue import TASKS, get
from .causal import CausalReader
from .head import HeadReader
from .kinds import reader
from .lean import lean_loss
from .masked import MaskedReader
from .prompts import Prompt
from .reader import Reader
from .rows import Example
from .splits import Split, few_shot, split
from .task import Task

__all__ = [
    "TASKS",
    "BadInput",
    "CausalReader",
    "Example",
    "HeadReader",
    "MaskedReader",
    "Prompt",
    "Reader",
    "Split",
    "Task",
    "few_shot",
    "get",
    "lean_loss",
    "reader",
    "split",
]
