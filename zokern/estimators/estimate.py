"""A gradient estimate: a list of terms (key, coefficient), never a tensor of the model's size."""

from dataclasses import dataclass, replace

import torch

from ..noise import NoiseKey
from ..ops.arguments import Term

LARGEST = 1e18  # directional derivative: the square of a larger one, times that of an element of z, is more than float32 holds; or loss


@dataclass(frozen=True)
class Estimate:
    """g = sum_k coefficient_k z(key_k), and the losses it comes from. Nothing here waits for the device until it is read.

    Attributes:
        terms: list of (NoiseKey, coefficient): a float, a 0-dim float64 tensor or a float64 tensor [coefficient groups], in units of loss
            per unit of theta. All 0 when skipped.
        losses: 0-dim float64 tensors in the order of evaluation: plus and minus of each query, or L(theta) and the plus of each.
        projected_grad: the directional derivative as measured: float64, 0-dim, [coefficient groups] where eps differs between groups or
            there are blocks, with a leading dimension of queries where there are several; None for an estimate made from terms alone.
        skipped: 0-dim bool tensor: a loss was not finite, or the derivative beyond 1e18, so the estimate moves nothing.
        dropped: of a population, whose estimate does without members whose loss is not finite: how many these are, a 0-dim tensor. None:
            one such loss skips the estimate.
    """

    terms: list[Term]
    losses: tuple[torch.Tensor, ...] = ()
    projected_grad: torch.Tensor | None = None
    skipped: torch.Tensor = torch.tensor(False)
    dropped: torch.Tensor | None = None

    @classmethod
    def along(cls, key: NoiseKey, grad: torch.Tensor, losses: tuple[torch.Tensor, ...], failed: torch.Tensor | None = None) -> "Estimate":
        """Return the estimate of one direction.

        Args:
            key: of the direction.
            grad: the derivative along z(key): float64, 0-dim or [coefficient groups].
            losses: that it comes from, 0-dim float64 tensors.
            failed: a 0-dim bool tensor: skip it, however it looks. Default None: where ``grad`` is not finite, or beyond 1e18.
        """
        good = grad.abs() < LARGEST
        skipped = ~(good.all() if good.dim() else good)
        skipped = skipped if failed is None else skipped | failed
        return cls([(key, torch.where(skipped, 0.0, grad))], losses, grad, skipped)

    @property
    def loss(self) -> torch.Tensor | None:
        """Mean of the losses, those of dropped members left out, 0-dim float64; None for an estimate made from terms alone."""
        if not self.losses:
            return None
        losses = torch.stack(self.losses)
        return losses.mean() if self.dropped is None else torch.where(torch.isfinite(losses), losses, torch.nan).nanmean()

    def opposite(self) -> "Estimate":
        """The same with every term the other way: up where it was down."""
        return replace(self, terms=[(key, -c) for key, c in self.terms])


def average(estimates: list[Estimate]) -> Estimate:
    """Mean of several estimates: q-query averaging (q-SPSA). One loss that is not finite skips them all.

    Args:
        estimates: of single directions, one or more, each with a ``projected_grad``.
    """
    if len(estimates) == 1:
        return estimates[0]
    skipped = torch.stack([e.skipped for e in estimates]).any()
    return Estimate(
        [(key, torch.where(skipped, 0.0, c * (1 / len(estimates)))) for e in estimates for key, c in e.terms],
        tuple(loss for e in estimates for loss in e.losses),
        torch.stack([e.projected_grad for e in estimates if e.projected_grad is not None]),
        skipped,
    )
