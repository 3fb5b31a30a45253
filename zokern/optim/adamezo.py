"""AdaMeZO."""

from operator import index, itemgetter
from typing import Any

import torch

from ..estimators import Estimate
from ..noise import NoiseKey
from ..signals import whole
from .adam import ZOAdam
from .base import ZerothOrder
from .contract import register
from .settings import Blocks, Number, ParamsT, Perturbation, Setting, Settings


@register
class AdaMeZO(ZerothOrder):
    """AdaMeZO: Adam without state, whose moments are made again from the keys of the last steps.

    With g_j the estimate of step j, n how many of the last ``history`` steps were not skipped, and a_j how many of those came after step j:

        m = (1 - b1) sum_j b1^a_j g_j
        v = (1 - b2) sum_j b2^a_j g_j^2
        theta <- (1 - lr weight_decay) theta - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + delta)

    That is ``ZOAdam`` begun ``history`` steps ago: up to then it is the same but for rounding. The paper's rule divides by sqrt(v + delta)
    and does not correct for having begun at 0; bias_correction=False leaves the corrections out.

    Args:
        lr: step in units of theta. Default 1e-4.
        history: steps that the moments are of; >= 1. An update makes the noise of them all, in one pass, and so its cost grows with it
            (docs/benchmarking.md). Default 20, in which betas[0] = 0.9 has 88 % of its weight.
        betas: (b1, b2), both in [0, 1). Default (0.9, 0.999).
        delta: added to the denominator; > 0. Default 1e-8.
        bias_correction: False leaves out the divisions by 1 - b1^n and 1 - b2^n. Default True.
        maximize: True: the closure returns a reward. Default False.

    All other arguments are those of ``MeZO``.

    State:
        None of the size of a parameter. ``param_groups`` hold "window": the keys and coefficients of the last steps, and which of them were
        not skipped.

    Reference:
        Cai, Chen and Zhu 2026, "AdaMeZO", arXiv 2605.00650.
    """

    name = "adamezo"
    lr_scale = 0.1
    settings = {
        **{name: ZOAdam.settings[name] for name in ("betas", "delta", "bias_correction")},
        "history": Setting(int, "an integer >= 1", lambda x: index(x) >= 1, "Steps that the averages are made of again.", shared=True),
        "window": Setting(dict, "what AdaMeZO.state_dict() gave", lambda x: x is None or _is_window(**x)),
    }

    def __init__(
        self, params: ParamsT, lr: Number = 1e-4, history: int = 20, betas: tuple[Number, Number] = (0.9, 0.999), delta: Number = 1e-8,
        bias_correction: bool = True, eps: Number = 1e-3, weight_decay: Number = 0.0, q: int = 1, seed: int = 0,
        maximize: bool = False, estimator: str = "two-point", blocks: Blocks | None = None,
        sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {**self.given(locals()), "window": None}, blocks, sparsity)

    def update_size(self, group: Settings, slope: float) -> float:
        return self._largest_lr(group)

    @whole
    def add_param_group(self, param_group: Settings) -> None:
        """Add parameters, which the steps so far did not perturb.

        The argument, and errors, are those of ``ZerothOrder.add_param_group``.
        """
        super().add_param_group({**param_group, "window": None})
        self._set_window(self.param_groups[0]["window"])

    def _set_window(self, window: Settings | None) -> None:
        for group in self.param_groups:
            group["window"] = window

    def _update(self, estimate: Estimate) -> None:
        group, window = self.param_groups[0], self._window_with(estimate)
        lived, live = window["live"].double(), (~estimate.skipped).double()
        n, after = lived.sum(), (lived.sum() - lived.cumsum(0)).unsqueeze(1)
        b1, b2 = (self._setting("betas", of=itemgetter(i)) for i in (0, 1))
        rows = len(self.layout.coefficient_groups)
        weights = tuple(((1 - b) * b**after).expand(-1, rows).unbind() for b in (b1, b2))
        bc1, bc2 = (1 - b1 ** n.clamp(min=1), 1 - b2 ** n.clamp(min=1)) if group["bias_correction"] else (1.0, 1.0)
        coefficients = iter(window["coefficients"])
        terms = [[(NoiseKey(*key), next(coefficients)) for key in keys] for keys in window["keys"]]
        numbers = [-self._setting("lr") * live / bc1, bc2**-0.5, self._setting("delta")]
        self.weights.windowed_adam(terms, weights, numbers, self._decay(estimate))
        self._set_window(window)

    def _window_with(self, estimate: Estimate) -> dict[str, Any]:
        """The last ``history`` steps, with this one: their keys, and for each key a coefficient of every coefficient group; 0 where it was
        not there yet."""
        groups, device = len(self.layout.coefficient_groups), estimate.skipped.device
        terms = estimate.terms or [(self._key(), 0.0)]
        keys = tuple((key.seed, key.step, key.stream) for key, _ in terms)
        coefficients = torch.stack([torch.as_tensor(c, dtype=torch.float64, device=device).expand(groups) for _, c in terms])
        live = (~estimate.skipped).unsqueeze(0)
        before, history = self.param_groups[0]["window"], self.param_groups[0]["history"]
        if before is None or history == 1:
            return dict(keys=(keys,), coefficients=coefficients, live=live)
        all_keys = (*before["keys"], keys)[-history:]
        past, was_live = (before[name].to(device) for name in ("coefficients", "live"))
        past = torch.nn.functional.pad(past, (0, groups - past.shape[1]))
        return dict(
            keys=all_keys,
            coefficients=torch.cat([past, coefficients])[-sum(map(len, all_keys)) :],
            live=torch.cat([was_live, live])[-history:],
        )


def _is_window(keys: tuple[tuple[tuple[int, int, int], ...], ...], coefficients: torch.Tensor, live: torch.Tensor) -> bool:
    all(NoiseKey(*key) for of_step in keys for key in of_step)  # raises where it is none
    rows = sum(map(len, keys))
    return live.dtype == torch.bool and live.shape == (len(keys),) and coefficients.is_floating_point() and len(coefficients) == rows
