"""ZO-SGD-Cons: of a step and its opposite the better one, or none."""

from dataclasses import replace

import torch

from ..estimators import Estimator, Losses, Point
from .base import ZerothOrder
from .contract import register
from .settings import Blocks, Number, ParamsT, Perturbation, Settings


@register
class ZOConservative(ZerothOrder):
    """ZO-SGD-Cons: MeZO's step, its opposite, or none, whichever has the lowest loss on the same batch.

        theta <- argmin of L over theta, theta - lr g z, theta + lr g z

    Three more forward passes than MeZO, two with estimator="one-sided", which knows L(theta). Weight decay is applied to what is chosen.
    ``last.terms`` holds the direction taken, all 0 where theta stays. A candidate whose loss is not finite is never taken. Nothing waits
    for the device.

    All arguments are those of ``MeZO``.

    Reference:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", Appendix A.
    """

    name = "zo-conservative"

    def __init__(
        self, params: ParamsT, lr: Number = 1e-6, eps: Number = 1e-3, weight_decay: Number = 0.0, q: int = 1, seed: int = 0,
        estimator: str = "two-point", blocks: Blocks | None = None, sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, self.given(locals()), blocks, sparsity)

    @classmethod
    def measurements_in(cls, settings: Settings, blocks: int = 1) -> int:
        return super().measurements_in(settings, blocks) + cls._candidates(settings)

    @staticmethod
    def _candidates(settings: Settings) -> int:
        return 2 if settings["estimator"] == "one-sided" else 3

    @classmethod
    def losses_in(cls, settings: Settings) -> slice:
        return slice(-cls._candidates(settings))  # the candidates' come last

    def _estimate(self) -> Estimator:
        estimate, lr = (yield from super()._estimate()), self._setting("lr")
        candidates = [Point([(key, sign * lr * g) for key, g in estimate.terms]) for sign in (-1, 1)]
        if self.param_groups[0]["estimator"] == "one-sided":
            measured = [*(yield Losses(self.weights, candidates)), estimate.losses[0]]
        else:
            measured = yield Losses(self.weights, [*candidates, Point([])])
        losses = torch.stack(measured)
        best = torch.where(torch.isfinite(losses), losses, torch.inf).argmin()
        sign = torch.where(torch.isfinite(losses).any(), best.eq(0).double() - best.eq(1).double(), 0.0)
        return replace(estimate, terms=[(key, sign * g) for key, g in estimate.terms])
