"""MeZO: zeroth-order SGD."""

from .base import ZerothOrder
from .contract import register
from .settings import Blocks, Number, ParamsT, Perturbation


@register
class MeZO(ZerothOrder):
    """Zeroth-order SGD: two forward passes a query, no gradients, no state.

        g = (L(theta + eps z) - L(theta - eps z)) / (2 eps)
        theta <- (1 - lr weight_decay) theta - lr mean_q(g z)

    Args:
        params: parameters, named parameters, or groups of them with their own lr, eps, weight_decay.
        lr: step in theta per unit of gradient; a float or a 0-dim tensor, >= 0. Default 1e-6.
        eps: perturbation radius, in units of theta; > 0. Default 1e-3.
        weight_decay: decoupled decay: theta shrinks by lr * weight_decay a step; >= 0. Default 0.0.
        q: directions a step, averaged; a step costs 2 q forward passes. Default 1.
        seed: in [0, 2**64); (seed, step) fixes every z of the run. Default 0.
        defer: leave the update of a step to the first pass of the next one: two passes a step instead of three, one of them with two terms.
            Between steps the weights are then not at theta: call ``flush()`` before anything else sees them. In place, 16-bit weights are
            rounded once more by each flush, and so by each ``state_dict``: what it resumes is the run that was saved. Streamed, and with
            estimator="one-sided", it saves nothing. Default False.
        estimator: "two-point", or "one-sided", g = (L(theta + eps z) - L(theta)) / eps: 1 + q forward passes. Default "two-point".
        blocks: estimate each layer by itself: the model, or its blocks, as ``ZerothOrder`` takes them. Default None: all weights at once.
        sparsity: share in [0, 1) of all elements that z leaves alone, see ``ZerothOrder``. Default None: z reaches all.
        noise: what the elements of z are: "gaussian", standard normals, or "rademacher", +1 or -1, each with probability 1/2, which are
            cheaper to make. Default "gaussian".
        perturbation: what the model computes with while a loss is measured. "in-place": its own weights, moved there and back, which costs
            no memory, and in 16 bits a rounding a pass, so that weights drift; ``zokern.Streamed(model)``: scratch memory of the size of
            the largest part; ``zokern.Copied()``: theta is kept beside the model. Default None: in place where all weights are float32,
            else ``Copied()``; ZOTrainer and the command line, which know the model, then take ``Streamed(model)``.
        rounding: how updates are stored in 16 bits: "nearest", by which small ones are lost, or "stochastic", which keeps the mean. Default
            None: "stochastic" where theta is in 16 bits and not perturbed in place, else "nearest".

    Raises:
        ValueError: lr < 0, eps <= 0, weight_decay < 0, q < 1, another setting out of its range, or a parameter that cannot be perturbed.
        TypeError: a parameter of another dtype than float32, bfloat16 or float16.

    Reference:
        Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Algorithms 1 and 2.
    """

    name = "mezo"
    capturable = True

    def __init__(
        self, params: ParamsT, lr: Number = 1e-6, eps: Number = 1e-3, weight_decay: Number = 0.0, q: int = 1, seed: int = 0,
        defer: bool = False, estimator: str = "two-point", blocks: Blocks | None = None,
        sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, self.given(locals()), blocks, sparsity)
