"""From losses to gradient estimates. An estimate is a list of terms (key, coefficient), never a tensor."""

from dataclasses import dataclass

import torch

from .noise import NoiseKey
from .perturb import InPlace


@dataclass(frozen=True)
class Estimate:
    """g = sum_k coefficient_k z(key_k), and the losses it comes from. Nothing here waits for the device until it is read.

    Attributes:
        terms: list of (NoiseKey, coefficient): a float, a 0-dim float64 tensor or a float64 tensor [groups], in units of loss per
            unit of theta. All 0 when skipped.
        losses: 0-dim float64 tensors in the order of evaluation: plus and minus of each query.
        projected_grad: the directional derivative as measured: float64, 0-dim, [groups] where eps differs between groups, with a
            leading dimension of queries where there are several; None for an estimate made from terms alone.
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
    grad = (plus - minus) / (2 * eps)
    skipped = ~torch.isfinite(plus + minus)
    return Estimate([(key, torch.where(skipped, 0.0, grad))], (plus, minus), grad, skipped)


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
