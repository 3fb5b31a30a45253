"""The vectors that a head is given, one a row: it is fitted to them, or trained on them alone while nothing below it moves."""

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import linear

from ..errors import BadInput, need
from ..tasks import HeadReader, Reader
from ..tasks.reader import Batch, Features, with_labels
from .model import LoadedModel

EVALUATED_AT_ONCE = 64  # rows, where no step is made of them
SAMPLE = 4096  # rows that a probe is fitted to at most, in equal parts from the classes


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


@torch.no_grad()
def probe(loaded: LoadedModel, features: list[Features]) -> None:
    """A linear probe: make the head the linear discriminant of the vectors that it sees, by forward passes alone.

    Where the head is random, two losses a step tell what lies below it little about its task; where it is fitted first, the loss of
    every row depends on its class from the start. Logits are log posteriors of Gaussian classes with one covariance, shrunk towards a
    multiple of the identity.

    Args:
        features: of training rows.

    Raises:
        BadInput: the head sees one vector a token, or there are too few rows to tell how they vary within a class.

    Reference:
        Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (LP-FT); Ledoit and Wolf 2004,
        "A well-conditioned estimator for large-dimensional covariance matrices", equation 14.
    """
    model, classes = loaded.model, len(loaded.reader.task.labels)
    by_class = [[row for row in features if row["label"] == c] for c in range(classes)]
    rows = [row for of_class in by_class for row in of_class[: max(2, SAMPLE // classes)]]
    head, reader = head_of(model, classes), loaded.reader
    x = None if head is None else seen_by(head, loaded, rows)
    if head is None or x is None or not isinstance(reader, HeadReader):
        raise BadInput("--head probe needs a trained head that sees one vector a row, not one a token: pass --head loaded")
    x, labels = x.double(), torch.tensor([row["label"] for row in rows], device=x.device)
    means = torch.stack([x[labels == c].mean(0) for c in range(classes)])
    within = x - means[labels]
    if len(x) <= classes or not within.square().sum() > 0:
        raise BadInput(f"--head probe cannot tell how the rows of a class vary, from {len(x)} rows: give more data, or pass --head loaded")
    # One for all classes: LinearDiscriminantAnalysis(shrinkage="auto") shrinks that of each class by itself, its features scaled to one.
    covariance, _ = need("sklearn.covariance").ledoit_wolf(within.cpu().numpy(), assume_centered=True)
    weight = torch.linalg.solve(torch.from_numpy(covariance).to(x.device), means, left=False)
    prior = torch.tensor([len(of_class) for of_class in by_class], device=x.device).double().log()
    bias = prior - (weight * means).sum(1) / 2
    mine = reader.order(model, torch.arange(classes)[None])[0]  # of the model's own order, which class is the c-th of the task
    own = mine.argsort()
    head.weight.copy_((weight - weight.mean(0))[own])  # the shared part changes no difference of logits; without it they are small
    if head.bias is not None:
        head.bias.copy_((bias - bias.mean())[own])


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
