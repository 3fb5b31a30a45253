"""Rules with a state: the noise is made again beside it in one fused pass."""

from collections.abc import Sequence

import torch

from ..estimators import Estimate
from ..noise.spec import ROUNDING
from .base import ZerothOrder
from .settings import STATE_DTYPE, Number


class Stateful(ZerothOrder):
    """What rules with a state share: the state, made at the first step, and kept where a non-finite loss skips one.

    A subclass says in ``slots`` what it keeps, and takes ``state_dtype`` among its settings. The arguments are those of ``ZerothOrder``.

    Attributes:
        slots: names of what ``state`` holds of each parameter, a tensor of its shape each.
    """

    settings = {"state_dtype": STATE_DTYPE}
    slots: Sequence[str] = ()

    def _make_state(self) -> None:
        super()._make_state()
        self._state_of(self.layout.params)

    def _state_of(self, params: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """For each slot what it holds of each parameter: zeros at first."""
        held, names, dtype = [self.state[p] for p in params], self.slots, self.param_groups[0]["state_dtype"]
        for p, of in zip(params, held):
            for name in names:
                if name not in of:
                    of[name] = torch.zeros_like(p, dtype=dtype, requires_grad=False)
        return [[of[name] for of in held] for name in names]

    def _fused(self, rule: str, estimate: Estimate, numbers: Sequence[Number]) -> None:
        """One pass of a rule of ``zokern.ops.update_`` over weights and state."""
        state_rounding = self._key().to(ROUNDING) if self.param_groups[0]["state_dtype"] == torch.bfloat16 else None
        self.weights.update(rule, estimate.terms, numbers, self._state_of, self._decay(estimate), state_rounding)
