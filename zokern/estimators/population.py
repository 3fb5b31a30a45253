"""From the losses or rewards of a population, each measured along noise of its own, to one estimate."""

from collections.abc import Callable, Sequence

import torch

from ..noise import NoiseKey
from ..ops.arguments import Number, Term
from .estimate import LARGEST, Estimate
from .losses import Estimator, Losses, Point
from .perturbation import PerturbedWeights

Shaping = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
STEADY = 1e-8  # added to the standard deviation of z-scores
ROUNDING = 1e-12  # relative to the largest number: what differs by less is equal, as means of the same rewards in another order are


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor [n], by pairs: in an order that no device decides, so that a replay comes to the same bits."""
    while (n := len(values)) > 1:
        values = torch.cat([values[: n // 2] + values[n - n // 2 :], values[n // 2 : n - n // 2]])
    return values[0]


def rounding(values: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """The difference between finite ones of a tensor [n] up to which they are equal, their digits aside."""
    return ROUNDING * torch.where(finite, values.abs(), 0.0).amax()


def deviations(values: torch.Tensor, finite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (values less their mean, population standard deviation) of the finite ones of a tensor [n]; both 0 where all are equal, NaN where
    there is none."""
    count = finite.sum()
    mean = total(torch.where(finite, values, 0.0)) / count
    spread = (total(torch.where(finite, values - mean, 0.0).square()) / count).sqrt()
    equal = spread <= rounding(values, finite)
    return torch.where(equal, 0.0, values - mean), torch.where(equal, 0.0, spread)


def centred(values: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """Less their mean, and no more. Equal values move nothing, and the mean of the estimate is as without."""
    return deviations(values, finite)[0]


def z_scores(values: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """(value - mean) / (standard deviation + 1e-8), of the population."""
    less_mean, spread = deviations(values, finite)
    return less_mean / (spread + STEADY)


def centred_ranks(values: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """From -1/2, the smallest, to 1/2, the greatest; equal values share the mean of their ranks.

    Reference:
        Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", section 2.1.
    """
    values = torch.where(finite, values, torch.nan)  # which is neither below anything nor above it
    other, same = values.unsqueeze(1), rounding(values, finite)
    below, above = (values - other > same).sum(0), (other - values > same).sum(0)
    return (below - above).double() / (2 * (finite.sum() - 1))


SHAPINGS: dict[str, Shaping] = {"z-score": z_scores, "ranks": centred_ranks, "none": centred}
"""name -> what ``population`` weighs a member by: "z-score", (R_n - mean) / (std + 1e-8); "ranks", -1/2 to 1/2; "none", R_n - mean."""


def population(weights: PerturbedWeights, keys: Sequence[NoiseKey], sigma: Number, mirrored: bool, shaping: str) -> Estimator:
    """One estimate from the numbers of a population, each measured along noise of its own. A generator, see ``Estimator``.

        g = (1 / N) sum_n s_n z_n

    over the N members whose number is finite, with s_n the shaped number at theta + sigma z_n. Members whose number is not finite, or
    beyond 1e18, are dropped; with fewer than two others nothing moves.

    Args:
        weights: what is perturbed.
        keys: one a member, or where they are mirrored one a pair, at theta + sigma z and at theta - sigma z.
        sigma: perturbation radius in units of theta: a number, or a tensor [coefficient groups].
        mirrored: whether there are pairs.
        shaping: a name of ``SHAPINGS``.

    Reference:
        Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", Algorithm 1; Qiu et al. 2025,
        "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning", Algorithm 2.
    """
    sides = (sigma, -sigma) if mirrored else (sigma,)
    losses = yield Losses(weights, [Point([(key, side)]) for key in keys for side in sides])
    values = torch.stack(losses)
    finite = values.abs() < LARGEST
    measured = _differences(values) * 0.5 if mirrored else centred(values, finite)
    shaped = torch.where(finite, SHAPINGS[shaping](values, finite), 0.0)
    moves = (_differences(shaped) if mirrored else shaped) / finite.sum()
    return _estimate(keys, moves, losses, finite, measured, sigma, failed=finite.sum() < 2)


def normalised(weights: PerturbedWeights, keys: Sequence[NoiseKey], eps: Number) -> Estimator:
    """One-sided differences over the spread of the losses. A generator, see ``Estimator``.

        g = sum_i (l_i - l_0) / (N s) z_i

    over the N finite losses l_i at theta + eps z_i, with l_0 that at theta and s the population standard deviation of the l_i. Members
    whose loss is not finite, or beyond 1e18, are dropped; with fewer than two others, or such an l_0, nothing moves.

    Args:
        weights: what is perturbed.
        keys: the directions, one a member.
        eps: perturbation radius in units of theta: a number, or a tensor [coefficient groups].

    Reference:
        Dang et al. 2025, "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards Adam-Scale Speed", Algorithm 1.
    """
    losses = yield Losses(weights, [Point([]), *(Point([(key, eps)]) for key in keys)])
    base, values = losses[0], torch.stack(losses[1:])
    finite = values.abs() < LARGEST
    spread = deviations(values, finite)[1]
    moves = torch.where(finite & (spread > 0), (values - base) / (finite.sum() * spread), 0.0)
    failed = (finite.sum() < 2) | ~(base.abs() < LARGEST)
    return _estimate(keys, moves, losses, finite, values - base, eps, failed)


def _differences(values: torch.Tensor) -> torch.Tensor:
    """Of each pair, the first less the second: [n] -> [n / 2]."""
    first, second = values.reshape(-1, 2).unbind(1)
    return first - second


def _estimate(
    keys: Sequence[NoiseKey], moves: torch.Tensor, losses: list[torch.Tensor], finite: torch.Tensor, differences: torch.Tensor,
    radius: Number, failed: torch.Tensor,
) -> Estimate:  # fmt: skip
    skipped = failed | ~(moves.abs() < LARGEST).all()
    known = torch.where(torch.isfinite(differences), differences, torch.where(failed, torch.nan, 0.0))  # of a skipped step there is none
    grad = (known.unsqueeze(1) if isinstance(radius, torch.Tensor) and radius.dim() else known) * (1 / radius)
    terms: list[Term] = list(zip(keys, torch.where(skipped, 0.0, moves).unbind()))
    return Estimate(terms, tuple(losses), grad, skipped, (~finite).sum())
