"""Rules with a state: the noise is made again beside it in one fused pass."""

from functools import partial

import torch

from ..estimators import Estimate
from ..noise.spec import ROUNDING
from .base import ZerothOrder
from .settings import STATE_DTYPE


class Stateful(ZerothOrder):
    """What rules with a state share: the state, made at the first step, and kept where a non-finite loss skips one.

    ``state_dtype``: torch.float32, or torch.bfloat16, stored with stochastic rounding.
    """

    settings = {"state_dtype": STATE_DTYPE}
    slots: tuple[str, ...] = ()

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
        self.weights.update(rule, estimate.terms, numbers, state, self._decay(estimate), rounding)

    def _held(self, name, p):
        return self.state[p][name]
