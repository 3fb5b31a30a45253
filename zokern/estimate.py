"""From losses to gradient estimates. An estimate is a list of terms (key, coefficient), never a tensor."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from .noise import NoiseKey
from .perturb import InPlace


@dataclass(frozen=True)
class Estimate:
    """g = sum_k coefficient_k z(key_k), and the losses it comes from. Nothing here waits for the device until it is read.

    Attributes:
        terms: list of (NoiseKey, coefficient): a float, a 0-dim float64 tensor or a float64 tensor [groups], in units of loss per
            unit of theta. All 0 when skipped.
        losses: 0-dim float64 tensors in the order of evaluation: plus and minus of each query, or L(theta) and the plus of each.
        projected_grad: the directional derivative as measured: float64, 0-dim, [groups] where eps differs between groups or there are
            blocks, with a leading dimension of queries where there are several; None for an estimate made from terms alone.
        skipped: 0-dim bool tensor: a loss was not finite, so the estimate moves nothing.
    """

    terms: list[tuple[NoiseKey, float | torch.Tensor]]
    losses: tuple[torch.Tensor, ...] = ()
    projected_grad: torch.Tensor | None = None
    skipped: torch.Tensor = torch.tensor(False)

    @property
    def loss(self) -> torch.Tensor | None:
        """Mean of the losses, 0-dim float64; None for an estimate made from terms alone."""
        return torch.stack(self.losses).mean() if self.losses else None


def two_point(model: InPlace, closure, key: NoiseKey, eps) -> Estimate:
    """Central difference of the loss along z(key), g = (L(theta + eps z) - L(theta - eps z)) / (2 eps).

    Leaves ``model`` at theta - eps z, which its next move undoes. The loss is evaluated twice.

    Args:
        model: where the loss is evaluated.
        closure: () -> loss, a 0-dim tensor or a number.
        key: the direction.
        eps: perturbation radius in units of theta: a number, or a tensor [groups]. Each group's estimate divides by its own.
    Reference: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Definition 1.
    """
    with model.at([(key, eps)]):
        plus = evaluate(closure, model)
    with model.at([(key, -eps)]):
        minus = evaluate(closure, model)
    return _difference(key, plus, minus, 2 * eps, (plus, minus))


def one_sided(model: InPlace, closure, key: NoiseKey, eps, base: torch.Tensor) -> Estimate:
    """Forward difference of the loss along z(key), g = (L(theta + eps z) - L(theta)) / eps.

    Leaves ``model`` at theta + eps z. The loss is evaluated once.

    Args:
        base: L(theta), as ``evaluate`` gives it, shared by all directions of a step; it is not among the estimate's losses.
    """
    with model.at([(key, eps)]):
        plus = evaluate(closure, model)
    return _difference(key, plus, base, eps, (plus,))


def measure(model, closure, keys, eps, estimator="two-point") -> Estimate:
    """The mean of one estimate a key; where the model moves block by block, each block's own, one perturbed at a time.

    Args:
        model: an InPlace or a BlockByBlock.
        keys: the directions, one a query.
        eps: as in ``two_point``.
        estimator: "two-point", 2 losses for each query and block, or "one-sided", 1 for each and 1 more for all.
    References: q-query averaging: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", E.1.
    Block by block: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", section 5.
    """
    if estimator == "one-sided":
        model.settle()
        base = evaluate(closure, model)
        look = partial(one_sided, closure=closure, eps=eps, base=base)
    else:
        look = partial(two_point, closure=closure, eps=eps)
    estimate = average([_block_by_block(model, look, key) for key in keys])
    return replace(estimate, losses=(base, *estimate.losses)) if estimator == "one-sided" else estimate


def average(estimates: list[Estimate]) -> Estimate:
    """Mean of several estimates: q-query averaging (q-SPSA). One loss that is not finite skips them all."""
    if len(estimates) == 1:
        return estimates[0]
    skipped = torch.stack([e.skipped for e in estimates]).any()
    return Estimate(
        [(key, torch.where(skipped, 0.0, c / len(estimates))) for e in estimates for key, c in e.terms],
        tuple(loss for e in estimates for loss in e.losses),
        torch.stack([e.projected_grad for e in estimates]),
        skipped,
    )


def _difference(key, there, here, distance, losses) -> Estimate:
    grad = (there - here) / distance
    skipped = ~torch.isfinite(there + here)
    return Estimate([(key, torch.where(skipped, 0.0, grad))], losses, grad, skipped)


def _block_by_block(model, look, key) -> Estimate:
    """One estimate along one key, whose coefficient differs between blocks where there are any."""
    if len(model.parts) == 1:
        return look(model.parts[0], key=key)
    layout, estimates = model.layout, []
    for part in model.parts:
        for other in model.parts:  # whose weights would be seen where they stand
            if other is not part and other.owes:
                other.settle()
        estimates.append(look(part, key=key))
    skipped = torch.stack([e.skipped for e in estimates]).any()
    grad = torch.zeros(layout.groups, dtype=torch.float64, device=skipped.device)
    for block, estimate in zip(layout.blocks, estimates):
        grad = torch.where(layout.cells_of(block, grad.device), estimate.projected_grad, grad)
    losses = tuple(loss for e in estimates for loss in e.losses)
    return Estimate([(key, torch.where(skipped, 0.0, grad))], losses, grad, skipped)


def evaluate(closure, model: InPlace) -> torch.Tensor:
    """closure() under no_grad, as a 0-dim float64 tensor on the device of the first parameter.

    Raises:
        TypeError, ValueError: what the closure returned is no scalar.
    """
    with torch.no_grad():
        loss = closure()
    device = model.layout.params[0].device
    if isinstance(loss, torch.Tensor):
        if loss.dim():
            raise ValueError(f"closure returned a tensor of shape {tuple(loss.shape)}: return a 0-dim loss, such as loss.mean()")
        if loss.is_complex():
            raise TypeError(f"closure returned a loss of {loss.dtype}: return a real number, such as loss.real")
        return loss.detach().to(device, torch.float64, non_blocking=device.type == "cuda", copy=True)
    if isinstance(loss, bool) or not isinstance(loss, float | int):
        raise TypeError(f"closure returned {type(loss).__name__}: return the loss itself, a 0-dim tensor or a float (such as outputs.loss)")
    return torch.full((), float(loss), dtype=torch.float64, device=device)
