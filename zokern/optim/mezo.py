"""Rules that are linear in z: zeroth-order SGD, which is MeZO, and two that choose its sign otherwise."""

from dataclasses import replace

import torch

from ..estimate import Estimate, evaluate
from .base import ZerothOrder


class MeZO(ZerothOrder):
    """Zeroth-order SGD: two forward passes a query, no gradients, no state.

    g = (L(theta + eps z) - L(theta - eps z)) / (2 eps);   theta <- (1 - lr weight_decay) theta - lr mean_q(g z)

    Args:
        params: parameters, named parameters, or groups of them with their own lr, eps, weight_decay.
        lr: step in theta per unit of gradient; a float or a 0-dim tensor. Default 1e-6.
        eps: perturbation radius, in units of theta. Default 1e-3.
        weight_decay: decoupled decay: theta shrinks by lr * weight_decay a step. Default 0.
        q: directions a step, averaged; a step costs 2 q forward passes. Default 1.
        seed: in [0, 2**64); (seed, step) fixes every z of the run. Default 0.
        defer: leave the update of a step to the first pass of the next one: two passes a step instead of three, one of them with two
            terms. Between steps the weights then stand beside theta: call ``flush()`` before anything else sees them. With 16-bit weights
            each flush, and so each ``state_dict``, rounds them once more: what it resumes is the run that was saved. With
            estimator="one-sided" it saves nothing. Default False.
        estimator: "two-point", or "one-sided", g = (L(theta + eps z) - L(theta)) / eps: 1 + q forward passes. Default "two-point".
        blocks, sparsity: block-wise and sparse estimates, see ``ZerothOrder``. Default None.
    Raises:
        ValueError: lr < 0, eps <= 0, weight_decay < 0, q < 1, or a parameter that cannot be perturbed.
    Reference: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Algorithms 1 and 2.
    """

    def __init__(
        self,
        params,
        lr=1e-6,
        eps=1e-3,
        weight_decay=0.0,
        q=1,
        seed=0,
        defer=False,
        estimator="two-point",
        blocks=None,
        sparsity=None,
    ):
        settings = dict(lr=lr, eps=eps, weight_decay=weight_decay, q=q, seed=seed, defer=defer, estimator=estimator)
        super().__init__(params, settings, blocks, sparsity)

    def _update(self, estimate: Estimate) -> None:
        lr = self._setting("lr")
        self.model.owe([(key, -lr * g) for key, g in estimate.terms], self._decay(estimate))


class ZOConservative(ZerothOrder):
    """ZO-SGD-Cons: MeZO's step, its opposite, or none, whichever has the lowest loss on the same batch.

    theta <- argmin of L over theta, theta - lr g z, theta + lr g z. Three more forward passes than MeZO, two with
    estimator="one-sided", which knows L(theta). ``last.terms`` holds the direction taken, all 0 where theta stays. A candidate
    whose loss is not finite is never taken. Nothing waits for the device.

    Args: as of ``MeZO``, without defer.
    Reference: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", Appendix A.
    """

    capturable = False

    def __init__(
        self, params, lr=1e-6, eps=1e-3, weight_decay=0.0, q=1, seed=0, estimator="two-point", blocks=None, sparsity=None
    ):  # fmt: skip
        settings = dict(lr=lr, eps=eps, weight_decay=weight_decay, q=q, seed=seed, estimator=estimator)
        super().__init__(params, settings, blocks, sparsity)

    @property
    def forwards(self) -> int:
        return super().forwards + (2 if self.param_groups[0]["estimator"] == "one-sided" else 3)

    def _estimate(self, closure) -> Estimate:
        estimate, lr = super()._estimate(closure), self._setting("lr")
        places = [(self.model, [(key, sign * lr * g) for key, g in estimate.terms]) for sign in (-1, 1)]
        if self.param_groups[0]["estimator"] == "one-sided":
            losses = [*evaluate(closure, self.model, places), estimate.losses[0]]
        else:
            losses = evaluate(closure, self.model, [*places, (self.model, [])])
        losses = torch.stack(losses)
        best = torch.where(torch.isfinite(losses), losses, torch.inf).argmin()
        sign = torch.where(torch.isfinite(losses).any(), best.eq(0).double() - best.eq(1).double(), 0.0)
        return replace(estimate, terms=[(key, sign * g) for key, g in estimate.terms])

    _update = MeZO._update


class ZOSign(ZerothOrder):
    """ZO-SGD-Sign: a step whose size is lr, whatever the gradient's.

    form="element": theta <- (1 - lr weight_decay) theta - lr sign(g z), sign taken of every element of the (averaged) estimate, in one
    fused pass. form="scalar": theta <- (1 - lr weight_decay) theta - lr mean_q(sign(g) z). No state.

    Args:
        lr: step in units of theta. Default 1e-6.
        form: "element" or "scalar". Default "element".
        Others: as of ``MeZO``, without defer.
    Reference: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning": element by element in
        section 3, with the scalar's sign in Appendix A.
    """

    capturable = False

    def __init__(
        self,
        params,
        lr=1e-6,
        eps=1e-3,
        weight_decay=0.0,
        q=1,
        seed=0,
        form="element",
        estimator="two-point",
        blocks=None,
        sparsity=None,
    ):
        settings = dict(lr=lr, eps=eps, weight_decay=weight_decay, q=q, seed=seed, form=form, estimator=estimator)
        super().__init__(params, settings, blocks, sparsity)

    def _update(self, estimate: Estimate) -> None:
        lr, q = self._setting("lr"), self.param_groups[0]["q"]
        if self.param_groups[0]["form"] == "scalar":
            terms = [(key, -lr / q * torch.sign(torch.as_tensor(g))) for key, g in estimate.terms]
            self.model.owe(terms, self._decay(estimate))
        else:  # a skipped estimate is all 0, and so is its sign
            self.model.update("sign", estimate.terms, [-lr], (), self._decay(estimate))
