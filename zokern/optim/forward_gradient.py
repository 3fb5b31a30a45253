"""Forward gradients: the directional derivative itself, without a backward pass and without z."""

import math
from collections.abc import Iterable, Sequence

import torch

from ..estimators import Estimator, PerturbedWeights
from ..estimators.forward_ad import forward_gradient
from .base import ZerothOrder
from .contract import register
from .settings import Number, ParamsT, Perturbation, Settings


@register
class ForwardGradient(ZerothOrder):
    """SGD along the forward gradient: one forward pass a query, with its derivative along z (forward-mode AD); no eps, no state.

        g = <grad L(theta), z>
        theta <- (1 - lr weight_decay) theta - lr mean_q(g z)

    g is exact up to rounding, and E[g z] is the gradient. z is made a call of a torch function at a time, as the forward pass comes to each
    parameter, and the update makes it again in registers: a step needs the forward pass twice (values and derivatives) and the z of the
    largest layer, nothing of the model's size. Derivatives have the dtype of the activations, and z that of its parameter: in bfloat16 g is
    that of a rounded z, and as exact as autograd's gradient. float16 overflows sooner than in a forward pass (in layer_norm where its
    input's standard deviation is below 1/40): g is then not finite and the step is skipped.

    The closure must return the loss as a tensor, computed by torch operations that have a forward-mode derivative. torch.no_grad() does not
    disturb it; .detach() stops the derivative, as it does in autograd. Not seen, and taken for constant: parameters that are read inside
    torch.jit.script.

    Args:
        params: a model (its trainable parameters), parameters, named parameters, or groups of them with their own lr, weight_decay.
        q: directions a step, averaged; a step costs q forward passes with derivatives. Default 1.
        perturbation: nothing is perturbed: "in-place", or ``zokern.Copied()``, which keeps theta in float32. Default None: "in-place".
        rounding: how updates are stored in 16 bits: "nearest" or "stochastic". Default None: "stochastic" where theta is in 16 bits.

    All other arguments are those of ``MeZO``.

    Raises:
        ValueError: lr < 0, weight_decay < 0, q < 1, a parameter that cannot be perturbed; in ``step``, a loss without a derivative.
        TypeError: in ``step``, a loss that is no tensor.
        NotImplementedError: in ``step``, an operation that forward mode cannot differentiate.

    Reference:
        Baydin et al. 2022, "Gradients without Backpropagation", Algorithm 1; Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for
        Memory-Efficient LLM Fine-Tuning", appendix A (Forward Gradient) and C.1.
    """

    name = "forward-gradient"
    derivative = "forward"

    def __init__(
        self, params: ParamsT | torch.nn.Module, lr: Number = 1e-6, weight_decay: Number = 0.0, q: int = 1, seed: int = 0,
        noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        if isinstance(params, torch.nn.Module):
            params = params.named_parameters()
        super().__init__(params, self.given(locals()))

    def _check_weights(self, weights: PerturbedWeights) -> None:
        if self.param_groups[0]["perturbation"] == "streamed":
            raise ValueError('perturbation="streamed": a forward gradient is taken at theta, and perturbs no weights: leave it out')
        if weights.layout.sharded:
            raise ValueError(
                "sharded parameters (DTensor) have no derivatives in forward mode: pass zokern.MeZO, or the parameters of the whole model"
            )

    @property
    def forwards(self) -> int:
        """Forward passes of a step, each with its derivative."""
        return int(self.param_groups[0]["q"])

    @classmethod
    def measurements_in(cls, settings: Settings, blocks: int = 1) -> int:
        return 2 * int(settings["q"])

    @classmethod
    def losses_in(cls, settings: Settings) -> slice:
        return slice(None, None, 2)  # each is followed by its derivative

    @classmethod
    def skipped_in(cls, steps: Iterable[Sequence[float]], settings: Settings) -> int:
        return sum(not all(map(math.isfinite, step)) for step in steps)

    def losses_by_name(self) -> dict[str, torch.Tensor]:
        return {}

    def _estimate(self) -> Estimator:
        params = [p for group in self.param_groups for p in group["params"]]
        return forward_gradient(self.weights, params, [self._key(probe) for probe in range(self.param_groups[0]["q"])])
