"""An optimizer that zokern knows nothing of: all that one is, in one class, as a user's module has it."""

from dataclasses import replace

import torch

from zokern.optim import Setting, Stateful, register


@register
class SignMomentum(Stateful):
    """Momentum over the sign of the projected gradient, or a power of its size.

    m <- momentum m + mean_q(sign(g) |g|^power z);   theta <- (1 - lr weight_decay) theta - lr m
    """

    name = "sign-momentum"
    lr_scale = 0.01
    slots = ("buffer",)
    settings = {
        "momentum": Setting(float, "a number in [0, 1)", lambda x: 0 <= x < 1, "What is kept of m a step."),
        "power": Setting(float, "a number in [0, 1]", lambda x: 0 <= x <= 1, "Of the projected gradient's size: 0 is the sign alone."),
    }

    def __init__(
        self,
        params,
        lr=1e-5,
        momentum=0.5,
        power=0.0,
        eps=1e-3,
        weight_decay=0.0,
        q=1,
        seed=0,
        state_dtype=torch.float32,
        estimator="two-point",
        blocks=None,
        sparsity=None,
    ):
        super().__init__(params, self.given(locals()), blocks, sparsity)

    def _update(self, estimate):
        lr, beta, power, live = *map(self._setting, ("lr", "momentum", "power")), (~estimate.skipped).double()
        q = self.param_groups[0]["q"]
        grads = [(key, torch.as_tensor(g) * q) for key, g in estimate.terms]
        terms = [(key, torch.sign(g) * g.abs() ** power * (1 / q) * live) for key, g in grads]
        self._fused("momentum", replace(estimate, terms=terms), [-lr * live, 1 - (1 - beta) * live])
