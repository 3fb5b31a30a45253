"""FZOO: steps normalised by the spread of the losses."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..estimators import Estimator, normalised
from ..estimators.estimate import LARGEST
from .contract import register
from .evolution_strategies import Population
from .settings import COMMON, Number, ParamsT, Perturbation, Settings


@register
class FZOO(Population):
    """FZOO: zeroth-order SGD of one-sided differences, whose steps are the smaller the more the losses of a step spread.

        l_0 = L(theta),  l_i = L(theta + eps z_i),  s = population standard deviation of the l_i
        theta <- (1 - lr weight_decay) theta - lr sum_i (l_i - l_0) / (q s) z_i

    s is about eps times the gradient's size, so that a step is about lr in units of theta, whatever that size: a normalised SGD. It is not
    divided by eps, as in the authors' code. No state. Members whose loss is not finite are left out of s and q, and counted in ``dropped``;
    where all others are equal, to 1e-12 of the largest, nothing moves.

    Args:
        lr: step in units of theta. Default 1e-5; the paper has 5e-5 for OPT-13B.
        eps: perturbation radius, in units of theta. Default 1e-3; the paper has 1e-4 for OPT-13B in float32.
        q: directions a step, N in the paper, >= 2; a step costs 1 + q forward passes. Default 8.
        noise: "rademacher", +1 or -1, as in the paper, or "gaussian". Default "rademacher".
        maximize: True: the closure returns a reward. Default False.

    All other arguments are those of ``MeZO``.

    Raises:
        ValueError: q < 2, or a setting out of its range.

    Reference:
        Dang et al. 2025, "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards Adam-Scale Speed", Algorithm 1.
    """

    name = "fzoo"
    lr_scale = 0.3
    settings = {
        "q": replace(COMMON["q"], cure="an integer >= 2, < 2**24", holds=lambda x: 2 <= x < 1 << 24, help="Directions a step."),
    }

    def __init__(
        self, params: ParamsT, lr: Number = 1e-5, eps: Number = 1e-3, q: int = 8, weight_decay: Number = 0.0, seed: int = 0,
        maximize: bool = False, sparsity: float | None = None, noise: str = "rademacher",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {**self.given(locals()), "dropped": 0}, sparsity=sparsity)

    @classmethod
    def measurements_in(cls, settings: Settings, blocks: int = 1) -> int:
        return 1 + int(settings["q"])

    @classmethod
    def members_in(cls, settings: Settings) -> slice:
        return slice(1, None)

    @classmethod
    def skipped_in(cls, steps: Iterable[Sequence[float]], settings: Settings) -> int:
        return sum(super(FZOO, cls).skipped_in([step], settings) or not abs(step[0]) < LARGEST for step in steps)

    def update_size(self, group: Settings, slope: float) -> float:
        return self._largest_lr(group) / math.sqrt(group["q"])

    def _estimate(self) -> Estimator:
        keys = [self._key(probe) for probe in range(self.param_groups[0]["q"])]
        return normalised(self.weights, keys, self._setting("eps"))
