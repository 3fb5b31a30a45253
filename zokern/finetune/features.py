"""The vectors that a head is given, one a row: the same at every step while nothing below the head is trained."""

import torch
from torch.nn.functional import linear

from ..tasks import Reader
from ..tasks.reader import with_labels

EVALUATED_AT_ONCE = 64  # rows, where no step is made of them


def head_of(model, classes: int) -> torch.nn.Linear | None:
    """The linear layer that makes the logits of so many classes, if it is trained."""
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight.requires_grad and m.out_features == classes]
    return linear[-1] if linear else None


@torch.no_grad()
def seen_by(head, loaded, features: list[dict]) -> torch.Tensor | None:
    """The head's input of each row: [rows, width], in its dtype; None where that is not one vector a row."""
    seen = []
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    order = sorted(range(len(features)), key=lambda i: len(features[i]["tokens"]["input_ids"]))  # so that little is padded
    try:
        for i in range(0, len(order), EVALUATED_AT_ONCE):
            batch = [features[j] for j in order[i : i + EVALUATED_AT_ONCE]]
            with loaded.computing():
                loaded.reader.scores(loaded.model, loaded.reader.collate(batch))
            if seen[-1].dim() != 2 or len(seen[-1]) != len(batch):
                return None
    finally:
        hook.remove()
    return torch.cat(seen)[torch.tensor(order).argsort()]


class FrozenBody(Reader):
    """Evaluates the head alone, where nothing else is trained: what lies below it is computed once for each row, not in every step.

    Args:
        reader: a HeadReader, which evaluates the whole model.
        head: the linear layer, which sees one vector a row.
    """

    kind = "head"

    def __init__(self, reader: Reader, head):
        super().__init__(reader.task, reader.tokenizer, reader.max_length, reader.objective, reader.prompt)
        self.head, self._order = head, reader.order

    def features(self, vectors, features) -> list[dict]:
        """Features of rows, of the head's inputs."""
        return [dict(vector=vector, label=feature["label"]) for vector, feature in zip(vectors, features, strict=True)]

    def collate(self, features):
        return with_labels(dict(vectors=torch.stack([feature["vector"] for feature in features])), features)

    def scores(self, model, batch):
        logits = linear(batch["vectors"].to(self.head.weight), self.head.weight, self.head.bias).float()
        return self._order(model, logits)
