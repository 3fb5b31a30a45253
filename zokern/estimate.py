"""From losses to gradient estimates. An estimate is a list of terms (key, coefficient), never a tensor."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

import torch

from .noise import NoiseKey
from .signals import let_through

LARGEST = 1e18  # directional derivative: the square of a larger one, times that of an element of z, is more than float32 holds


@dataclass(frozen=True)
class Estimate:
    """g = sum_k coefficient_k z(key_k), and the losses it comes from. Nothing here waits for the device until it is read.

    Attributes:
        terms: list of (NoiseKey, coefficient): a float, a 0-dim float64 tensor or a float64 tensor [groups], in units of loss per
            unit of theta. All 0 when skipped.
        losses: 0-dim float64 tensors in the order of evaluation: plus and minus of each query, or L(theta) and the plus of each.
        projected_grad: the directional derivative as measured: float64, 0-dim, [groups] where eps differs between groups or there are
            blocks, with a leading dimension of queries where there are several; None for an estimate made from terms alone.
        skipped: 0-dim bool tensor: a loss was not finite, or the derivative beyond 1e18, so the estimate moves nothing.
    """

    terms: list[tuple[NoiseKey, float | torch.Tensor]]
    losses: tuple[torch.Tensor, ...] = ()
    projected_grad: torch.Tensor | None = None
    skipped: torch.Tensor = torch.tensor(False)

    @property
    def loss(self) -> torch.Tensor | None:
        """Mean of the losses, 0-dim float64; None for an estimate made from terms alone."""
        return torch.stack(self.losses).mean() if self.losses else None


def two_point(key: NoiseKey, plus: torch.Tensor, minus: torch.Tensor, eps) -> Estimate:
    """Central difference of the loss along z(key), g = (L(theta + eps z) - L(theta - eps z)) / (2 eps).

    Args:
        plus, minus: the two losses, 0-dim float64 tensors.
        eps: perturbation radius in units of theta: a number, or a tensor [groups]. Each group's estimate divides by its own.
    Reference: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Definition 1.
    """
    return _difference(key, plus, minus, 2 * eps, (plus, minus))


def one_sided(key: NoiseKey, plus: torch.Tensor, base: torch.Tensor, eps) -> Estimate:
    """Forward difference of the loss along z(key), g = (L(theta + eps z) - L(theta)) / eps.

    Args: as of ``two_point``; base is L(theta), shared by all directions of a step, and not among the estimate's losses.
    """
    return _difference(key, plus, base, eps, (plus,))


def measure(model, closure, keys, eps, estimator="two-point") -> Estimate:
    """The mean of one estimate a key; where the model moves block by block, each block's own, one perturbed at a time.

    Leaves ``model`` where the last loss was evaluated, which its next move undoes.

    Args:
        model: an InPlace or a BlockByBlock.
        closure: () -> loss, a 0-dim tensor or a number.
        keys: the directions, one a query.
        eps: as in ``two_point``.
        estimator: "two-point", 2 losses for each query and block, or "one-sided", 1 for each and 1 more for all.
    References: q-query averaging: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", E.1.
    Block by block: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", section 5.
    """
    central = estimator == "two-point"
    places = [(part, [(key, side)]) for key in keys for part in model.parts for side in ((eps, -eps) if central else (eps,))]
    losses = iter(evaluate(closure, model, places if central else [(model, []), *places]))
    base = () if central else (next(losses),)

    def along(key):
        return two_point(key, next(losses), next(losses), eps) if central else one_sided(key, next(losses), *base, eps)

    estimate = average([_of_blocks(model.layout, [along(key) for _ in model.parts]) for key in keys])
    return replace(estimate, losses=(*base, *estimate.losses))


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
    skipped = overflows(grad)
    return Estimate([(key, torch.where(skipped, 0.0, grad))], losses, grad, skipped)


def overflows(grad) -> torch.Tensor:
    """Whether a derivative, 0-dim or [groups], is not finite, or so large that its update would not be: a 0-dim bool tensor."""
    good = grad.abs() < LARGEST
    return ~(good.all() if good.dim() else good)


def _of_blocks(layout, estimates) -> Estimate:
    """One estimate along one key, of each block's own: its coefficient differs between blocks where there are several."""
    if len(estimates) == 1:
        return estimates[0]
    skipped = torch.stack([e.skipped for e in estimates]).any()
    grad = torch.zeros(len(layout.coefficient_groups), dtype=torch.float64, device=skipped.device)
    for block, estimate in zip(layout.blocks, estimates):
        grad = torch.where(layout.coefficient_groups_of(block, grad.device), estimate.projected_grad, grad)
    ((key, _),) = estimates[0].terms
    losses = tuple(loss for e in estimates for loss in e.losses)
    return Estimate([(key, torch.where(skipped, 0.0, grad))], losses, grad, skipped)


def evaluate(closure, model, places) -> list[torch.Tensor]:
    """The losses at ``places``: (``model``, or the one of its parts that moves; terms that lead there from theta). Leaves it at the last.

    No place depends on the losses of the others. A closure that sees but a part of the batch, as one process of several does, may have a
    method ``agree``, which is given all of them at once, 0-dim float64 tensors, and returns those of the whole batch.

    Raises:
        TypeError, ValueError: what the closure returned is no scalar.
    """
    losses = []
    for moving, terms in places:
        for part in model.parts:  # whose weights would be seen where they stand
            if moving is not model and part is not moving and part.owes:
                part.settle()
        with moving.at(terms), torch.no_grad():
            losses.append(scalar(let_through(closure), model.layout.params[0].device))
    return agreed(closure, losses)


def agreed(closure, losses) -> list[torch.Tensor]:
    return let_through(closure.agree, losses) if hasattr(closure, "agree") else losses


@dataclass(frozen=True)
class Heard:
    """A closure whose losses are kept in ``readings``, as they were agreed on; ``look`` is shown each as it was returned."""

    closure: Callable
    readings: list[torch.Tensor]
    look: Callable

    def __call__(self):
        loss = self.closure()
        self.look(loss)
        return loss

    def agree(self, losses):
        losses = agreed(self.closure, losses)
        self.readings.extend(losses)
        return losses


def scalar(loss, device) -> torch.Tensor:
    """What a closure returned, as a 0-dim float64 tensor of its own on a device.

    Raises:
        TypeError, ValueError: it is no scalar.
    """
    if isinstance(loss, torch.Tensor):
        if loss.dim():
            raise ValueError(f"closure returned a tensor of shape {tuple(loss.shape)}: return a 0-dim loss, such as loss.mean()")
        if loss.is_complex():
            raise TypeError(f"closure returned a loss of {loss.dtype}: return a real number, such as loss.real")
        return loss.detach().to(device, torch.float64, non_blocking=device.type == "cuda", copy=True)
    if getattr(loss, "shape", ()) != ():
        raise ValueError(f"closure returned a {type(loss).__name__} of shape {tuple(loss.shape)}: return one number, such as loss.mean()")
    number = loss.item() if hasattr(loss, "item") else loss  # of NumPy's numbers and 0-dim arrays
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"closure returned {type(loss).__name__}: return the loss itself, a number or a 0-dim tensor (outputs.loss)")
    return torch.full((), float(number), dtype=torch.float64, device=device)
