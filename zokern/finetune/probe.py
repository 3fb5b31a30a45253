"""A linear probe: a head fitted to what the model already knows, with forward passes alone."""

import torch

from ..errors import BadInput, need
from ..tasks import HeadReader
from ..tasks.reader import Features
from .features import head_of, seen_by
from .model import LoadedModel

SAMPLE = 4096  # rows, at most, in equal parts from the classes


@torch.no_grad()
def probe(loaded: LoadedModel, features: list[Features]) -> None:
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
