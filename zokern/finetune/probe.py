"""A linear probe: a head fitted to what the model already knows, with forward passes alone."""

from collections import defaultdict

import torch

from ..errors import BadInput
from .features import head_of, seen_by
from .model import LoadedModel

SAMPLE = 4096  # rows, at most, in equal parts from the classes


@torch.no_grad()
def probe(loaded: LoadedModel, features: list[dict]) -> None:
    """Make the head the linear discriminant of the vectors that it sees, one a row.

    Where the head is random, two losses a step tell what lies below it little about its task; where it is fitted first, the loss of
    every row depends on its class from the start. Logits are log posteriors of Gaussian classes with one covariance, shrunk towards a
    multiple of the identity.

    Args:
        features: of training rows.
    Raises:
        BadInput: the head sees one vector a token, or there are too few rows to tell how they vary within a class.
    Reference: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (LP-FT); Ledoit
        and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", equation 14.
    """
    model, classes = loaded.model, len(loaded.reader.task.labels)
    by_class = defaultdict(list)
    for row in features:
        by_class[row["label"]].append(row)
    rows = [row for c in range(classes) for row in by_class[c][: max(2, SAMPLE // classes)]]
    head = head_of(model, classes)
    x = None if head is None else seen_by(head, loaded, rows)
    if x is None:
        raise BadInput("--head probe needs a trained head that sees one vector a row, not one a token: pass --head loaded")
    x, labels = x.double(), torch.tensor([row["label"] for row in rows], device=x.device)
    means = torch.stack([x[labels == c].mean(0) for c in range(classes)])
    inverse = torch.linalg.inv(_covariance(x - means[labels], classes))
    weight = means @ inverse
    prior = torch.tensor([len(by_class[c]) for c in range(classes)], device=x.device).double().log()
    bias = prior - (weight * means).sum(1) / 2
    mine = loaded.reader.order(model, torch.arange(classes)[None])[0]  # of the model's own order, which class is the c-th of the task
    own = mine.argsort()
    head.weight.copy_((weight - weight.mean(0))[own])  # the shared part changes no difference of logits; without it they are small
    if head.bias is not None:
        head.bias.copy_((bias - bias.mean())[own])


def _covariance(x, classes):
    """Ledoit and Wolf's shrunk covariance of centred rows: float64 [features, features]."""
    n, d = x.shape
    sample = x.T @ x / n
    scale = sample.trace() / d
    if n <= classes or not scale > 0:
        raise BadInput(f"--head probe cannot tell how the rows of a class vary, from {n} rows: give more data, or pass --head loaded")
    target = scale * torch.eye(d, dtype=x.dtype, device=x.device)
    distance = (sample - target).square().sum()
    noise = ((x.square().sum(1).square().sum() / n - sample.square().sum()) / n).clamp(max=distance)
    shrink = noise / distance if distance > 0 else 1.0
    return shrink * target + (1 - shrink) * sample
