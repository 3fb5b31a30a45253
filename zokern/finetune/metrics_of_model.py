"""How good a model is at its task, and when in a run it was best."""

import math
from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy

from ..errors import BadInput, first_line
from .features import EVALUATED_AT_ONCE
from .model import LoadedModel


@torch.no_grad()
def metrics_of(loaded: LoadedModel, examples, features, reader=None) -> dict[str, float]:
    """-> {"loss": mean cross-entropy over the candidates, and the task's metrics}; of written answers the metrics alone.

    Args:
        examples: of ``tasks``, with labels.
        features: theirs.
        reader: what evaluates the model. Default None: ``loaded.reader``.
    Raises:
        BadInput: the loss is not finite: the weights are broken, or too large for their dtype; or the model fails over its inputs, as one
            does whose tokenizer is another's.
    """
    reader, task = reader or loaded.reader, loaded.reader.task
    order = sorted(range(len(features)), key=lambda i: _length(features[i]))  # so that little is padded
    found, total = [None] * len(order), 0.0
    for i in range(0, len(order), EVALUATED_AT_ONCE):
        places = order[i : i + EVALUATED_AT_ONCE]
        batch = reader.collate([features[j] for j in places])
        with loaded.computing(), _of_the_model(loaded):
            if task.writes:
                answers = reader.predictions(loaded.model, batch)
            else:
                scores = reader.scores(loaded.model, batch)
                answers = scores.argmax(-1).tolist()
                labels = reader.answers(batch).to(scores.device)
                total += float(cross_entropy(scores.double(), labels, reduction="sum"))
        for j, answer in zip(places, answers, strict=True):
            found[j] = answer
    metrics = task.metrics(found, examples)
    if task.writes:
        return metrics
    loss = total / len(order)
    if not math.isfinite(loss):
        raise BadInput(f"the model's loss on held-out rows is {loss}: pass a smaller --lr (of hybrid, or --fo-lr), or --dtype float32")
    return {"loss": loss, **metrics}


@contextmanager
def _of_the_model(loaded):
    try:
        yield
    except (BadInput, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever is inside
        what = f"{loaded.name} ({type(loaded.model).__name__}) fails over its inputs ({first_line(error)})"
        raise BadInput(
            f"{what}: check that its tokenizer and its configuration are its own, or pass another --model or --task-type"
        ) from error


def _length(feature):
    return len(feature["tokens"]["input_ids"]) if "tokens" in feature else 0


def best_of(history: list[dict], metric: str) -> dict | None:
    """The best evaluation after a step or more: {"step", "loss", metrics}. Of equal ones that with the least loss, then the first; None
    where nothing was judged.

    Args:
        history: what Trainer logged: dicts with "step" and "eval_...".
    """
    judged = [entry for entry in history if entry["step"] and isinstance(entry.get(f"eval_{metric}"), int | float)]
    best = max(judged, key=lambda entry: (entry[f"eval_{metric}"], -(entry.get("eval_loss") or 0.0)), default=None)
    return best and {name.removeprefix("eval_"): value for name, value in best.items() if name == "step" or name.startswith("eval_")}
