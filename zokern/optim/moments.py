"""Rules with a state: momentum and Adam, the noise made again beside the state in one fused pass."""

from functools import partial

import torch

from ..estimate import Estimate
from ..noise.spec import ROUNDING
from .base import ZerothOrder


class Stateful(ZerothOrder):
    """What rules with a state share: the state, made at the first step, and kept where a non-finite loss skips one.

    ``state_dtype``: torch.float32, or torch.bfloat16, stored with stochastic rounding.
    """

    capturable = False
    slots = ()

    def _slots(self):
        return self.slots

    def _make_state(self) -> None:
        dtype = self.param_groups[0]["state_dtype"]
        for p in self.layout.params:
            for name in self._slots():
                if name not in self.state[p]:
                    self.state[p][name] = torch.zeros_like(p, dtype=dtype, requires_grad=False)

    def _fused(self, rule, estimate: Estimate, numbers) -> None:
        self._make_state()
        state = [partial(self._held, name) for name in self._slots()]
        rounding = self._key(purpose=ROUNDING) if self.param_groups[0]["state_dtype"] == torch.bfloat16 else None
        self.model.update(rule, estimate.terms, numbers, state, self._decay(estimate), rounding)

    def _held(self, name, p):
        return self.state[p][name]


class ZOMomentum(Stateful):
    """ZO-SGD-MMT: heavy-ball momentum over zeroth-order estimates.

    m <- momentum m + g z;   theta <- (1 - lr weight_decay) theta - lr m

    Args:
        lr: step in theta per unit of m. Default 1e-7: momentum 0.9 makes steps about ten times MeZO's at the same lr.
        momentum: in [0, 1). Default 0.9.
        state_dtype: torch.float32, or torch.bfloat16 with stochastic rounding. Default torch.float32.
        Others: as of ``MeZO``, without defer.
    State: "momentum_buffer", one number an element.
    Reference: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", Appendix A.
    """

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params,
        lr=1e-7,
        momentum=0.9,
        eps=1e-3,
        weight_decay=0.0,
        q=1,
        seed=0,
        state_dtype=torch.float32,
        estimator="two-point",
        blocks=None,
        sparsity=None,
    ):
        settings = dict(lr=lr, momentum=momentum, eps=eps, weight_decay=weight_decay, q=q, seed=seed)
        super().__init__(params, settings | dict(state_dtype=state_dtype, estimator=estimator), blocks, sparsity)

    def _update(self, estimate: Estimate) -> None:
        lr, beta, live = self._setting("lr"), self._setting("momentum"), (~estimate.skipped).double()
        self._fused("momentum", estimate, [-lr * live, 1 - (1 - beta) * live])


class ZOAdam(Stateful):
    """ZO-Adam: Adam over zeroth-order estimates.

    m <- b1 m + (1 - b1) g z;  v <- b2 v + (1 - b2) (g z)^2;  theta <- (1 - lr weight_decay) theta - lr m^ / (sqrt(v^) + delta),
    with m^ = m / (1 - b1^t), v^ = v / (1 - b2^t), t the number of steps that were not skipped, as ``torch.optim.AdamW`` has it.

    Args:
        lr: step in units of theta. Default 1e-4.
        betas: (b1, b2), both in [0, 1). Default (0.9, 0.999).
        delta: added to the denominator; > 0. Torch calls it eps, which here is the perturbation radius. Default 1e-8.
        amsgrad: divide by the running maximum of v. Default False.
        bias_correction: False leaves the corrections out, as ZO-Bench writes the rule. Default True.
        state_dtype: torch.float32, or torch.bfloat16 with stochastic rounding. Default torch.float32.
        Others: as of ``MeZO``, without defer.
    State: "exp_avg", "exp_avg_sq" and, with amsgrad, "max_exp_avg_sq", each one number an element.
    Reference: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", Appendix A.
    """

    slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.999),
        delta=1e-8,
        eps=1e-3,
        weight_decay=0.0,
        amsgrad=False,
        bias_correction=True,
        q=1,
        seed=0,
        state_dtype=torch.float32,
        estimator="two-point",
        blocks=None,
        sparsity=None,
    ):
        settings = dict(lr=lr, betas=betas, delta=delta, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, q=q, seed=seed)
        settings |= dict(bias_correction=bias_correction, state_dtype=state_dtype, estimator=estimator)
        super().__init__(params, settings, blocks, sparsity)

    def _slots(self):
        return self.slots if self.param_groups[0]["amsgrad"] else self.slots[:2]

    def _update(self, estimate: Estimate) -> None:
        group = self.param_groups[0]
        live = (~estimate.skipped).double()
        b1, b2 = (self._setting("betas", of=lambda betas, i=i: betas[i]) for i in (0, 1))
        t = group["step"] - group["skipped"] + live  # of a step that is skipped nothing is left, whatever t is
        bc1, bc2 = (1 - b1 ** t.clamp(min=1), 1 - b2 ** t.clamp(min=1)) if group["bias_correction"] else (1.0, 1.0)
        new1, new2 = (1 - b1) * live, (1 - b2) * live
        numbers = [-self._setting("lr") * live / bc1, 1 - new1, new1, 1 - new2, new2, bc2**-0.5, self._setting("delta")]
        self._fused("amsgrad" if group["amsgrad"] else "adam", estimate, numbers)
