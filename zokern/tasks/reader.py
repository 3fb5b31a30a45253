"""One interface for the ways of asking a model: rows become features, features a batch, a batch scores, a loss, or predictions."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch.nn.functional import cross_entropy

from ..errors import BadInput
from .rows import Example
from .task import Task

Tokenizer: TypeAlias = Any  # of transformers, which need not be installed
Features: TypeAlias = dict[str, Any]  # of one row, as a reader encodes it
Batch: TypeAlias = dict[str, torch.Tensor]
LONGEST = 2048  # tokens, where the tokenizer knows no limit of its own
OBJECTIVES = ("cross-entropy", "option", "accuracy", "f1")


class Reader:
    """How a task becomes the inputs and losses of one kind of model.

    Args:
        task: what is asked.
        tokenizer: the model's.
        max_length: tokens of a row at most. Default None: the tokenizer's limit, at most 2048.
        objective: what ``loss`` is. "cross-entropy": over the candidates; of the answer's tokens where the task writes. "option": that of
            the right candidate's tokens alone, for causal models. "accuracy", "f1": 1 minus that of the batch, which has no gradient; F1 as
            the task's metric has it. Default "cross-entropy".
        prompt: a Prompt, or templates for a classification head, in place of the task's. Default None: the task's.

    Raises:
        BadInput: the task has no prompt for such a model, or the objective does not fit.
    """

    kind: ClassVar[str]

    def __init__(
        self, task: Task, tokenizer: Tokenizer, max_length: int | None = None, objective: str = "cross-entropy", prompt: Any = None
    ):
        prompt = prompt or getattr(task, self.kind)
        if not prompt:
            raise BadInput(f"task {task.name!r} has no prompt for {self.kind!r} models: pass 'causal', or a prompt")
        if objective not in OBJECTIVES:
            raise BadInput(f"objective {objective!r} is not known: pass one of {', '.join(OBJECTIVES)}")
        if objective == "option" and self.kind != "causal":
            raise BadInput(f"objective 'option' needs options of several tokens, but {self.kind!r} has none: pass 'cross-entropy'")
        if objective == "accuracy" and task.writes:
            raise BadInput(f"objective 'accuracy' does not fit {task.name!r}, whose answers are written: pass 'f1' or 'cross-entropy'")
        if objective == "f1" and task.metric != "f1":
            raise BadInput(f"objective 'f1' does not fit {task.name!r}, which is judged by {task.metric}: pass 'accuracy'")
        if max_length is not None and max_length < 1:
            raise BadInput(f"max_length={max_length} tokens hold nothing: pass 1 or more")
        self.task, self.tokenizer, self.objective, self.prompt = task, tokenizer, objective, prompt
        self.max_length = max_length or min(tokenizer.model_max_length, LONGEST)
        self._check()

    def _check(self) -> None:
        """Refuse a tokenizer or a prompt that does not fit this kind of model, with BadInput."""

    @property
    def smooth(self) -> bool:
        """Whether ``loss`` is a smooth function of the weights, and not a count."""
        return self.objective not in ("accuracy", "f1")

    def encode(self, example: Example) -> Features:
        """Features of a row, an ``example``: what ``collate`` takes. Needs no model, and may run in a loader's workers.

        Raises:
            BadInput: the row does not fit the prompt, by its location.
        """
        raise NotImplementedError

    def collate(self, features: Sequence[Features]) -> Batch:
        """A batch of ``features``: tensors by name. Its "labels", int64 [rows], are missing where a row has none."""
        raise NotImplementedError

    def scores(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """How likely each candidate is.

        Args:
            model: that is asked.
            batch: of ``collate``.

        Returns:
            float32 [rows, candidates]: log-probabilities or logits, higher is likelier; -inf where a row has fewer candidates.

        Raises:
            BadInput: the model does not fit the task, or the task's answers are written.
        """
        raise NotImplementedError

    def answers(self, batch: Batch) -> torch.Tensor:
        """What is right in a ``batch``: int64 [rows].

        Raises:
            BadInput: a row has no label.
        """
        if "labels" not in batch:
            raise BadInput("a row of this batch has no label, as in test splits: it has predictions, but no loss")
        return batch["labels"]

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The objective, to be minimised. The arguments, and errors, are those of ``Reader.scores`` and ``Reader.answers``.

        Returns:
            A 0-dim float32 tensor on the model's device.
        """
        return self._objective(self.scores(model, batch), self.answers(batch))

    def predictions(self, model: torch.nn.Module, batch: Batch) -> list:
        """The id of the likeliest candidate of each row; the text where the task writes. The arguments are those of ``Reader.scores``."""
        return self.scores(model, batch).argmax(-1).tolist()

    @torch.no_grad()
    def evaluate(self, model: torch.nn.Module, examples: Sequence[Example], batch_size: int = 32) -> dict[str, float]:
        """The task's metrics on examples, with the model in the mode that it is in.

        Args:
            model: that is asked.
            examples: one or more, with their labels.
            batch_size: examples at a time. Default 32.

        Returns:
            As ``Task.metrics``, in fractions of 1.
        """
        found: list = []
        for i in range(0, len(examples), batch_size):
            batch = self.collate([self.encode(example) for example in examples[i : i + batch_size]])
            found += self.predictions(model, batch)
        return self.task.metrics(found, examples)

    def _objective(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        labels = labels.to(scores.device)
        if self.objective == "cross-entropy":
            return cross_entropy(scores, labels)
        found = scores.argmax(-1)
        if self.objective == "accuracy":
            return 1 - found.eq(labels).float().mean()
        return 1 - f1(found, labels, scores.shape[-1], self.task.positive)


def f1(found: torch.Tensor, right: torch.Tensor, classes: int, positive: int | None = None) -> torch.Tensor:
    """F1 of one class, or the mean over those that occur, as scikit-learn has it; nothing waits for the device.

    Args:
        found, right: int64 tensors [rows].
    """
    ids = torch.arange(classes, device=right.device)
    found, right = found[:, None] == ids, right[:, None] == ids
    hits, all_found, all_right = (found & right).sum(0), found.sum(0), right.sum(0)
    each = 2 * hits / (all_found + all_right).clamp(min=1)
    if positive is not None:
        return each[positive]
    return each.sum() / (all_found + all_right).gt(0).sum()


def fitting(texts: list[str], tokens_of: Callable[[list[str]], int], most: int) -> list[str]:
    """Texts cut at their ends, all to the same number of characters at most, as many as ``tokens_of`` lets fit into ``most`` tokens."""
    if tokens_of(texts) <= most:
        return texts
    low, high = 0, max(map(len, texts), default=0)  # low fits if anything does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tokens_of([text[:middle] for text in texts]) <= most else (low, middle)
    return [text[:low] for text in texts]


def padded(lists: Sequence[list[int]], value: int, left: bool = False) -> torch.Tensor:
    """int64 [len(lists), longest]."""
    longest = max(map(len, lists))
    return torch.tensor([[value] * (longest - len(x)) + x if left else x + [value] * (longest - len(x)) for x in lists])


def padded_tokens(tokenizer: Tokenizer, features: Sequence[Features]) -> Batch:
    """What the tokenizer made of each row, padded on the right: "input_ids", "attention_mask", ..."""
    fill_with = {"input_ids": tokenizer.pad_token_id or 0}
    return {name: padded([f["tokens"][name] for f in features], fill_with.get(name, 0)) for name in features[0]["tokens"]}


def with_labels(batch: Batch, features: Sequence[Features]) -> Batch:
    """The batch with its labels, if all rows have one."""
    labels = [feature["label"] for feature in features]
    return batch if None in labels else {**batch, "labels": torch.tensor(labels)}


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model computes: where its weights are, unless its ``computes_on`` says otherwise."""
    return getattr(model, "computes_on", None) or next(model.parameters()).device
