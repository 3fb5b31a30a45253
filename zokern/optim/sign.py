"""ZO-SGD-Sign: steps of one size."""

import torch

from ..estimators import Estimate
from .base import ZerothOrder
from .contract import register
from .settings import Blocks, Number, ParamsT, Perturbation, Settings, choice


@register
class ZOSign(ZerothOrder):
    """ZO-SGD-Sign: a step whose size is lr, whatever the gradient's. No state.

        form="element":  theta <- (1 - lr weight_decay) theta - lr sign(mean_q(g z))
        form="scalar":   theta <- (1 - lr weight_decay) theta - lr mean_q(sign(g) z)

    "element" takes the sign of every element of the averaged estimate, in one fused pass.

    Args:
        lr: step in units of theta. Default 1e-6.
        form: "element" or "scalar". Default "element".

    All other arguments are those of ``MeZO``.

    Reference:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning": element by element in section 3,
        with the scalar's sign in Appendix A.
    """

    name = "zo-sign"
    lr_scale = 0.01
    settings = {"form": choice("The sign of each element of g z, or of g alone.", "element", "scalar")}

    def __init__(
        self, params: ParamsT, lr: Number = 1e-6, eps: Number = 1e-3, weight_decay: Number = 0.0, q: int = 1, seed: int = 0,
        form: str = "element", estimator: str = "two-point", blocks: Blocks | None = None,
        sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, self.given(locals()), blocks, sparsity)

    def update_size(self, group: Settings, slope: float) -> float:
        return self._largest_lr(group) / (1 if group["form"] == "element" else float(group["q"]) ** 0.5)

    def _update(self, estimate: Estimate) -> None:
        lr, q = self._setting("lr"), self.param_groups[0]["q"]
        if self.param_groups[0]["form"] == "scalar":
            terms = [(key, -lr * (1 / q) * torch.sign(torch.as_tensor(g))) for key, g in estimate.terms]
            self.weights.add_pending(terms, self._decay(estimate))
        else:  # a skipped estimate is all 0, and so is its sign
            self.weights.update("sign", estimate.terms, [-lr], decay=self._decay(estimate))
