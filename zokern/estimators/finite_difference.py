"""From differences of losses to gradient estimates."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..layout import Layout
from ..noise import NoiseKey
from ..ops.arguments import Number
from .estimate import Estimate, average
from .losses import Estimator, Losses, Point
from .perturbation import PerturbedWeights


def two_point(key: NoiseKey, plus: torch.Tensor, minus: torch.Tensor, eps: Number) -> Estimate:
    """Central difference of the loss along z(key).

        g = (L(theta + eps z) - L(theta - eps z)) / (2 eps)

    Args:
        key: of the direction.
        plus: L(theta + eps z), a 0-dim float64 tensor.
        minus: L(theta - eps z), likewise.
        eps: perturbation radius in units of theta: a number, or a tensor [coefficient groups]. Each group's estimate divides by its own.

    Reference:
        Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Definition 1.
    """
    # Times a reciprocal, here and wherever a tensor would be divided by a number of the host: that is how a GPU divides by one.
    return Estimate.along(key, (plus - minus) * (1 / (2 * eps)), (plus, minus))


def one_sided(key: NoiseKey, plus: torch.Tensor, base: torch.Tensor, eps: Number) -> Estimate:
    """Forward difference of the loss along z(key).

        g = (L(theta + eps z) - L(theta)) / eps

    Args:
        key: of the direction.
        plus: L(theta + eps z), a 0-dim float64 tensor.
        base: L(theta), likewise; shared by all directions of a step, and not among the estimate's losses.
        eps: perturbation radius in units of theta: a number, or a tensor [coefficient groups].
    """
    return Estimate.along(key, (plus - base) * (1 / eps), (plus,))


def finite_difference(weights: PerturbedWeights, keys: Sequence[NoiseKey], eps: Number, estimator: str = "two-point") -> Estimator:
    """The mean of one estimate a key; of weights in blocks each block's own, one perturbed at a time. A generator, see ``Estimator``.

    Args:
        weights: what is perturbed.
        keys: the directions, one a query.
        eps: perturbation radius in units of theta: a number, or a tensor [coefficient groups].
        estimator: "two-point", 2 losses for each query and block, or "one-sided", 1 for each and 1 more for all. Default "two-point".

    Reference:
        q-query averaging: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", E.1. Block by block:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", section 5.
    """
    central, parts = estimator == "two-point", range(len(weights.parts))
    sides = (eps, -eps) if central else (eps,)
    points = [Point([(key, side)], part) for key in keys for part in parts for side in sides]
    answer = yield Losses(weights, points if central else [Point([]), *points])
    losses = iter(answer)
    base = [] if central else [next(losses)]

    def along(key: NoiseKey) -> Estimate:
        return two_point(key, next(losses), next(losses), eps) if central else one_sided(key, next(losses), base[0], eps)

    estimate = average([_of_blocks(weights.layout, key, [along(key) for _ in parts]) for key in keys])
    return replace(estimate, losses=(*base, *estimate.losses))


def _of_blocks(layout: Layout, key: NoiseKey, estimates: list[Estimate]) -> Estimate:
    """One estimate of each block's own: its coefficient differs between blocks where there are several."""
    if len(estimates) == 1:
        return estimates[0]
    grad = torch.zeros(len(layout.coefficient_groups), dtype=torch.float64, device=estimates[0].skipped.device)
    for block, estimate in zip(layout.blocks, estimates):
        assert estimate.projected_grad is not None
        grad = torch.where(layout.coefficient_groups_of(block, grad.device), estimate.projected_grad, grad)
    return Estimate.along(key, grad, tuple(loss for e in estimates for loss in e.losses))
