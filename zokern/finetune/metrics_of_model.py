"""How good a model is at its task, and when in a run it was best."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ..errors import BadInput, refusing
from ..tasks import Example, Reader
from ..tasks.reader import Features
from .features import by_length
from .model import LoadedModel


@torch.no_grad()
def metrics_of(
    loaded: LoadedModel, examples: Sequence[Example], features: Sequence[Features], reader: Reader | None = None
) -> dict[str, float]:
    """-> {"loss": mean cross-entropy over the candidates, and the task's metrics}; of written answers the metrics alone.

    Args:
        examples: with labels. features: theirs.
        reader: what evaluates the model. Default None: ``loaded.reader``.

    Raises:
        BadInput: the loss is not finite: the weights are broken, or too large for their dtype; or the model fails over its inputs, as one
            does whose tokenizer is another's.
    """
    reader, task = reader or loaded.reader, loaded.reader.task
    found: dict[int, Any] = {}  # number of a row -> its prediction
    total = 0.0
    cure = "check that its tokenizer and its configuration are its own, or pass another --model or --task-type"
    for rows in by_length(features):
        batch = reader.collate([features[i] for i in rows])
        with loaded.computing(), refusing(f"{loaded.name} ({type(loaded.model).__name__}) fails over its inputs", cure):
            if task.writes:
                predictions = reader.predictions(loaded.model, batch)
            else:
                scores = reader.scores(loaded.model, batch)
                predictions = scores.argmax(-1).tolist()
                total += float(cross_entropy(scores.double(), reader.answers(batch).to(scores.device), reduction="sum"))
        found |= zip(rows, predictions, strict=True)
    metrics = task.metrics([found[i] for i in range(len(found))], examples)
    if task.writes:
        return metrics
    loss = total / len(found)
    if not math.isfinite(loss):
        raise BadInput(f"the model's loss on held-out rows is {loss}: pass a smaller --lr (of hybrid, or --fo-lr), or --dtype float32")
    return {"loss": loss, **metrics}


def best_of(history: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The best evaluation after a step or more: {"step", "loss", metrics}. Of equal ones that with the least loss, then the first; None
    where nothing was judged.

    Args:
        history: what Trainer logged: dicts with "step" and "eval_...".
    """
    judged = [entry for entry in history if entry["step"] and isinstance(entry.get(f"eval_{metric}"), int | float)]
    best = max(judged, key=lambda entry: (entry[f"eval_{metric}"], -(entry.get("eval_loss") or 0.0)), default=None)
    return best and {name.removeprefix("eval_"): value for name, value in best.items() if name == "step" or name.startswith("eval_")}
