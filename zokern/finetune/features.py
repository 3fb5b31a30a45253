"""The vectors that a head is given, one a row: the same at every step while nothing below the head is trained."""

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import linear

from ..tasks import HeadReader, Reader
from ..tasks.reader import Batch, Features, with_labels
from .model import LoadedModel

EVALUATED_AT_ONCE = 64  # rows, where no step is made of them


def by_length(features: Sequence[Features]) -> Iterator[list[int]]:
    """The numbers of all rows, in batches of rows that are about as long, so that little is padded."""
    order = sorted(range(len(features)), key=lambda i: len(features[i].get("tokens", {}).get("input_ids", ())))
    return (order[i : i + EVALUATED_AT_ONCE] for i in range(0, len(order), EVALUATED_AT_ONCE))


def head_of(model: torch.nn.Module, classes: int) -> torch.nn.Linear | None:
    """The linear layer that makes the logits of so many classes, if it is trained."""
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight.requires_grad and m.out_features == classes]
    return linear[-1] if linear else None


@torch.no_grad()
def seen_by(head: torch.nn.Linear, loaded: LoadedModel, features: Sequence[Features]) -> torch.Tensor | None:
    """The head's input of each row: [rows, width], in its dtype; None where that is not one vector a row."""
    seen: list[torch.Tensor] = []
    order: list[int] = []
    with head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0])):
        for rows in by_length(features):
            with loaded.computing():
                loaded.reader.scores(loaded.model, loaded.reader.collate([features[i] for i in rows]))
            if seen[-1].dim() != 2 or len(seen[-1]) != len(rows):
                return None
            order += rows
    return torch.cat(seen)[torch.tensor(order).argsort()]


class FrozenBody(Reader):
    """Evaluates the head alone, where nothing else is trained: what lies below it is computed once for each row, not in every step.

    Args:
        reader: evaluates the whole model.
        head: the linear layer, which sees one vector a row.
    """

    kind = "head"

    def __init__(self, reader: HeadReader, head: torch.nn.Linear):
        super().__init__(reader.task, reader.tokenizer, reader.max_length, reader.objective, reader.prompt)
        self.head, self._order = head, reader.order

    def features(self, vectors: torch.Tensor, features: Sequence[Features]) -> list[Features]:
        """Features of rows, of the head's inputs."""
        return [dict(vector=vector, label=feature["label"]) for vector, feature in zip(vectors, features, strict=True)]

    def collate(self, features: Sequence[Features]) -> Batch:
        return with_labels(dict(vectors=torch.stack([feature["vector"] for feature in features])), features)

    def scores(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits = linear(batch["vectors"].to(self.head.weight), self.head.weight, self.head.bias).float()
        return self._order(model, logits)
