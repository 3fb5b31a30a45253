"""The kinds of readers by name."""

from typing import Any

from ..errors import BadInput
from .causal import CausalReader
from .head import HeadReader
from .masked import MaskedReader
from .reader import Reader, Tokenizer
from .task import Task

READERS = {reader.kind: reader for reader in (MaskedReader, CausalReader, HeadReader)}


def reader(task: Task, kind: str, tokenizer: Tokenizer, **options: Any) -> Reader:
    """What turns rows of a task into batches, losses and scores of a kind of model.

    Args:
        task: what is asked.
        kind: "masked", "causal" or "head".
        tokenizer: the model's.
        **options: of that reader, as max_length, objective, prompt.

    Raises:
        BadInput: there is no such kind, or the task, the tokenizer or the options do not fit it.
    """
    if kind not in READERS:
        raise BadInput(f"reader {kind!r} is not known: pass one of {', '.join(READERS)}")
    return READERS[kind](task, tokenizer, **options)
