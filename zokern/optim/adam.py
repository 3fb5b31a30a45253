"""ZO-Adam."""

from operator import itemgetter

import torch

from ..estimators import Estimate
from .contract import register
from .settings import POSITIVE, Blocks, Number, ParamsT, Perturbation, Setting, Settings, flag
from .stateful import Stateful


@register
class ZOAdam(Stateful):
    """ZO-Adam: Adam over zeroth-order estimates.

        m <- b1 m + (1 - b1) g z
        v <- b2 v + (1 - b2) (g z)^2
        theta <- (1 - lr weight_decay) theta - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + delta)

    t is the number of steps that were not skipped. ``torch.optim.AdamW`` has the same rule.

    Args:
        lr: step in units of theta. Default 1e-4.
        betas: (b1, b2), both in [0, 1). Default (0.9, 0.999).
        delta: added to the denominator; > 0. Torch calls it eps, which here is the perturbation radius. Default 1e-8.
        amsgrad: divide by the running maximum of v. Default False.
        bias_correction: False leaves out the divisions by 1 - b1^t and 1 - b2^t, as ZO-Bench writes the rule. Default True.
        state_dtype: of m and v: torch.float32, or torch.bfloat16 with stochastic rounding. Default torch.float32.

    All other arguments are those of ``MeZO``.

    State:
        "exp_avg", "exp_avg_sq" and, with amsgrad, "max_exp_avg_sq", each one number an element.

    Reference:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", Appendix A.
    """

    name = "zo-adam"
    lr_scale = 0.1
    settings = {
        "betas": Setting(
            tuple,
            "two numbers in [0, 1)",
            lambda x: len(x) == 2 and all(0 <= b < 1 for b in x),
            "What is kept of the averages of g z and of its square a step: '0.9,0.999'.",
        ),
        "delta": Setting(float, *POSITIVE, "Added to the denominator."),
        "amsgrad": flag("Divide by the running maximum."),
        "bias_correction": flag("Correct the averages for having begun at 0."),
    }

    def __init__(
        self, params: ParamsT, lr: Number = 1e-4, betas: tuple[Number, Number] = (0.9, 0.999), delta: Number = 1e-8,
        eps: Number = 1e-3, weight_decay: Number = 0.0, amsgrad: bool = False, bias_correction: bool = True, q: int = 1,
        seed: int = 0, state_dtype: torch.dtype = torch.float32, estimator: str = "two-point",
        blocks: Blocks | None = None, sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, self.given(locals()), blocks, sparsity)

    def update_size(self, group: Settings, slope: float) -> float:
        return self._largest_lr(group)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]
        return "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.param_groups[0]["amsgrad"] else [])

    def _update(self, estimate: Estimate) -> None:
        group = self.param_groups[0]
        live = (~estimate.skipped).double()
        b1, b2 = (self._setting("betas", of=itemgetter(i)) for i in (0, 1))
        t = group["step"] - group["skipped"] + live  # of a step that is skipped nothing is left, whatever t is
        bc1, bc2 = (1 - b1 ** t.clamp(min=1), 1 - b2 ** t.clamp(min=1)) if group["bias_correction"] else (1.0, 1.0)
        new1, new2 = (1 - b1) * live, (1 - b2) * live
        numbers = [-self._setting("lr") * live / bc1, 1 - new1, new1, 1 - new2, new2, bc2**-0.5, self._setting("delta")]
        self._fused("amsgrad" if group["amsgrad"] else "adam", estimate, numbers)
