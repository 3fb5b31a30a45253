"""ZO-SGD-MMT: momentum."""

import torch

from ..estimators import Estimate
from .contract import register
from .settings import SHARE, Blocks, Number, ParamsT, Perturbation, Setting, Settings
from .stateful import Stateful


@register
class ZOMomentum(Stateful):
    """ZO-SGD-MMT: heavy-ball momentum over zeroth-order estimates.

        m <- momentum m + g z
        theta <- (1 - lr weight_decay) theta - lr m

    Args:
        lr: step in theta per unit of m. Default 1e-7: momentum 0.9 makes steps about ten times MeZO's at the same lr.
        momentum: in [0, 1). Default 0.9.
        state_dtype: of m: torch.float32, or torch.bfloat16 with stochastic rounding. Default torch.float32.

    All other arguments are those of ``MeZO``.

    State:
        "momentum_buffer", one number an element.

    Reference:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", Appendix A.
    """

    name = "zo-momentum"
    lr_scale = 0.1
    settings = {"momentum": Setting(float, *SHARE, "What is kept of the average a step.")}
    slots = ("momentum_buffer",)

    def __init__(
        self, params: ParamsT, lr: Number = 1e-7, momentum: Number = 0.9, eps: Number = 1e-3, weight_decay: Number = 0.0,
        q: int = 1, seed: int = 0, state_dtype: torch.dtype = torch.float32, estimator: str = "two-point",
        blocks: Blocks | None = None, sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, self.given(locals()), blocks, sparsity)

    def update_size(self, group: Settings, slope: float) -> float:
        return super().update_size(group, slope) / float((1 - group["momentum"] ** 2) ** 0.5)

    def _update(self, estimate: Estimate) -> None:
        lr, beta, live = self._setting("lr"), self._setting("momentum"), (~estimate.skipped).double()
        self._fused("momentum", estimate, [-lr * live, 1 - (1 - beta) * live])
