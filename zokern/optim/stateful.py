"""Rules with a state: the noise is made again beside it in one fused pass."""

from collections.abc import Sequence

import torch

from ..estimators import Estimate
from ..noise.spec import ROUNDING
from .base import ZerothOrder
from .settings import STATE_DTYPE, Number


class Stateful(ZerothOrder):
    """What rules with a state share: the state, made at the first step, and kept where a non-finite loss skips one.

    ``state_dtype``: torch.float32, or torch.bfloat16, stored with stochastic rounding.
    """

    settings = {"state_dtype": STATE_DTYPE}
    slots: tuple[str, ...] = ()

    def _slots(self) -> tuple[str, ...]:
        return self.slots

    def _make_state(self) -> None:
        dtype = self.param_groups[0]["state_dtype"]
        for p in self.layout.params:
            for name in self._slots():
                if name not in self.state[p]:
                    self.state[p][name] = torch.zeros_like(p, dtype=dtype, requires_grad=False)

    def _state_of(self, p: torch.Tensor) -> list[torch.Tensor]:
        held = self.state[p]
        return [held[name] for name in self._slots()]

    def _fused(self, rule: str, estimate: Estimate, numbers: Sequence[Number]) -> None:
        """One pass of a rule of ``zokern.ops.update_`` over weights and state."""
        self._make_state()
        rounding = self._key(purpose=ROUNDING) if self.param_groups[0]["state_dtype"] == torch.bfloat16 else None
        self.weights.update(rule, estimate.terms, numbers, self._state_of, self._decay(estimate), rounding)
