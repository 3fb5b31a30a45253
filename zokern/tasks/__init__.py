"""Data sets, and how they become inputs and losses of a language model.

``get("sst2")`` is a Task: it loads examples and scores predictions. ``reader(task, "masked", tokenizer)`` makes batches of rows, and
losses and scores of batches, with a masked model. ``lean_loss`` is a causal model's loss without its full logits.
"""

from typing import Any

from ..errors import BadInput
from .catalogue import TASKS, get
from .causal import CausalReader
from .head import HeadReader
from .lean import lean_loss
from .masked import MaskedReader
from .prompts import Prompt
from .reader import Reader, Tokenizer
from .rows import Example
from .splits import Split, few_shot, split
from .task import Task

READERS = {reader.kind: reader for reader in (MaskedReader, CausalReader, HeadReader)}


def reader(task: Task, kind: str, tokenizer: Tokenizer, **options: Any) -> Reader:
    """What turns rows of a task into batches, losses and scores of a kind of model.

    Args:
        kind: "masked", "causal" or "head".
        options: of that reader, as max_length, objective, prompt.
    Raises:
        BadInput: there is no such kind, or the task, the tokenizer or the options do not fit it.
    """
    if kind not in READERS:
        raise BadInput(f"reader {kind!r} is not known: pass one of {', '.join(READERS)}")
    return READERS[kind](task, tokenizer, **options)


__all__ = [
    "TASKS",
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
