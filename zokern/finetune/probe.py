"""A linear probe: a head fitted to what the model already knows, with forward passes alone."""

from collections import defaultdict

import torch

from ..errors import BadInput
from .model import Classifier, loader

SAMPLE = 4096  # rows, at most, in equal parts from the classes


@torch.no_grad()
def probe(classifier: Classifier, rows: list[dict]) -> None:
    """Make the head the linear discriminant of the vectors that it sees, one a row.

    Where the head is random, two losses a step tell what lies below it little about its task; where it is fitted first, the loss of
    every row depends on its class from the start. Logits are log posteriors of Gaussian classes with one covariance, shrunk towards a
    multiple of the identity.

    Args:
        rows: tokenized training rows.
    Raises:
        BadInput: the head sees one vector a token, or there are too few rows to tell how they vary within a class.
    Reference: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (LP-FT); Ledoit
        and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", equation 14.
    """
    classes = classifier.model.config.num_labels
    by_class = defaultdict(list)
    for row in rows:
        by_class[row["labels"]].append(row)
    rows = [row for c in range(classes) for row in by_class[c][: max(2, SAMPLE // classes)]]
    linear = [m for m in classifier.model.modules() if isinstance(m, torch.nn.Linear) and m.weight.requires_grad]
    head = [m for m in linear if m.out_features == classes][-1]
    x, labels = _inputs(classifier, head, rows)
    means = torch.stack([x[labels == c].mean(0) for c in range(classes)])
    inverse = torch.linalg.inv(_covariance(x - means[labels], classes))
    weight = means @ inverse
    prior = torch.tensor([len(by_class[c]) for c in range(classes)], device=x.device).double().log()
    shared = weight.mean(0)  # changes no difference of logits; without it they are small
    head.weight.copy_(weight - shared)
    if head.bias is not None:
        bias = prior - (weight * means).sum(1) / 2
        head.bias.copy_(bias - bias.mean())


def _inputs(classifier, head, rows):
    """What the head sees, one vector a row, and the rows' classes: float64 [rows, features], int64 [rows]."""
    (batch,) = loader(classifier, rows, len(rows))
    seen = []
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].flatten(0, -2).double()))
    try:
        for piece in batch:
            classifier.logits(piece)
    finally:
        hook.remove()
    x = torch.cat(seen)
    if len(x) != len(rows):
        raise BadInput("--head probe needs a model whose head sees one vector a row, not one a token: pass --head loaded")
    return x, torch.cat([piece["labels"] for piece in batch]).to(x.device)


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
