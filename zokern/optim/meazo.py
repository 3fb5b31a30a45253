"""MEAZO: Adam's step size from one number."""

from functools import reduce
from operator import add

import torch

from ..estimators import Estimate
from .base import ZerothOrder
from .contract import register
from .settings import POSITIVE, SHARE, Blocks, Number, ParamsT, Perturbation, Setting, Settings


@register
class MEAZO(ZerothOrder):
    """MEAZO: zeroth-order SGD whose step is divided by the running size of the projected gradient.

        g = mean_q(g_k)
        v <- beta v + (1 - beta) g^2
        theta <- (1 - lr weight_decay) theta - lr mean_q(g_k z_k) / (sqrt(v / (1 - beta^t)) + delta)

    t is the number of steps that were not skipped. Every element of g z has the same size in the mean, which is why one number serves where
    Adam keeps two an element. With parameter groups of their own eps, and with blocks, there is one v for each, whose projected gradient is
    its own.

    Args:
        lr: step in units of theta. Default 1e-5.
        beta: what is kept of v a step; in [0, 1). Default 0.9.
        delta: added to the denominator; > 0. Default 1e-8.
        maximize: True: the closure returns a reward. Default False.

    All other arguments are those of ``MeZO``.

    State:
        ``param_groups`` hold "second_moment", v: float64, 0-dim or [coefficient groups].

    Reference:
        Dbouk et al. 2026, "On Adaptivity in Zeroth-Order Optimization", arXiv 2605.03869.
    """

    name = "meazo"
    lr_scale = 0.1
    settings = {
        "beta": Setting(float, *SHARE, "What is kept of the average of squared projected gradients a step."),
        "delta": Setting(float, *POSITIVE, "Added to the denominator."),
        "second_moment": Setting(torch.Tensor, "what MEAZO.state_dict() gave", lambda x: x is None or (x >= 0).all()),
    }

    def __init__(
        self, params: ParamsT, lr: Number = 1e-5, beta: Number = 0.9, delta: Number = 1e-8, eps: Number = 1e-3, weight_decay: Number = 0.0,
        q: int = 1, seed: int = 0, maximize: bool = False, estimator: str = "two-point", blocks: Blocks | None = None,
        sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {**self.given(locals()), "second_moment": None}, blocks, sparsity)

    def update_size(self, group: Settings, slope: float) -> float:
        return self._largest_lr(group)

    def _update(self, estimate: Estimate) -> None:
        group, beta = self.param_groups[0], self._setting("beta")
        live = (~estimate.skipped).double()
        mean = reduce(add, (torch.as_tensor(c) for _, c in estimate.terms), torch.tensor(0.0, dtype=torch.float64))  # each is divided by q
        new = (1 - beta) * live
        v = (1 - new) * self._second_moment(mean) + new * mean.square()
        for own in self.param_groups:
            own["second_moment"] = v
        t = group["step"] - group["skipped"] + live
        size = (v / (1 - beta ** t.clamp(min=1))).sqrt() + self._setting("delta")
        lr = self._setting("lr")
        self.weights.add_pending([(key, -lr * (g / size)) for key, g in estimate.terms], self._decay(estimate))

    def _second_moment(self, mean: torch.Tensor) -> torch.Tensor:
        held = self.param_groups[0]["second_moment"]
        return torch.zeros_like(mean) if held is None else held.to(mean.device)  # a state may have been loaded elsewhere
