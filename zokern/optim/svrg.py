"""MeZO-SVRG: variance reduction without a gradient, or a full-batch gradient, in memory."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from operator import index
from typing import Any

import torch

from ..estimators import Driver, Estimate, Estimator, Log, LossClosure, PerturbedWeights, finite_difference
from ..noise import NoiseKey
from ..ops.arguments import Term
from ..signals import whole
from .base import ZerothOrder
from .contract import register
from .settings import COMMON, NOT_NEGATIVE, Number, ParamsT, Perturbation, Setting, Settings, choice


@register
class MeZOSVRG(ZerothOrder):
    """Zeroth-order SVRG: every q steps the loss of the full batch is measured, and the steps between are corrected by it.

        t mod q = 0:   anchor <- theta;  G <- g_full z_full;  theta <- theta - lr_full G
        otherwise:     theta <- theta - lr (g_I(theta; z) - g_I(anchor; z)) z - lr G

    G is a term, not a tensor, and the minibatch I is seen along one z at theta and at the anchor, so that the difference is a control
    variate; both sides of it have one mask. Where the full batch's loss was not finite, the steps until the next anchor are MeZO's.

    Args:
        params: parameters, named parameters, or groups of them with their own lr, lr_full, eps, weight_decay.
        lr: step between anchors (eta_2). Default 1e-6.
        lr_full: step at anchors (eta_1), usually larger. Default 1e-5.
        q: steps from anchor to anchor, >= 1. Default 2.
        anchor: "copy" keeps the anchor's weights: one number an element. "replay" makes them again from the logged terms of the at most q
            steps since: no memory, exact up to rounding, and rounding is what 16-bit weights cannot afford. Default None: "replay" where
            all parameters are float32 and nothing decays, else "copy".

    All other arguments are those of ``MeZO``.

    State:
        With anchor="copy", "anchor" of each parameter, in place between steps eps z beside it: ``state_dict`` and ``flush`` bring it back.
        ``param_groups`` hold "trail": the anchor's step, g_full, whether its loss was finite, and with anchor="replay" the coefficients of
        every step since.

    Raises:
        ValueError: q < 1, anchor="replay" with weight_decay, a setting out of range; in ``step``, no full_closure at an anchor.

    Reference:
        Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", Algorithm 1 and remark 3.2.
    """

    name = "mezo-svrg"
    full_batch = True
    full_batch_rate = "lr_full"
    forwards = 4  # of a step between anchors; at an anchor there are two, of the full batch
    settings = {
        "q": replace(COMMON["q"], help="Steps from anchor to anchor."),
        "lr_full": Setting(float, *NOT_NEGATIVE, "Learning rate at anchors.", times_lr=10.0),
        "anchor": choice("Keep the anchor's weights, or make them again.", None, "copy", "replay", kept=True),
        "trail": Setting(dict, "what MeZOSVRG.state_dict() gave", lambda x: x is None or _is_trail(**x)),
    }

    def __init__(
        self, params: ParamsT, lr: Number = 1e-6, lr_full: Number = 1e-5, q: int = 2, eps: Number = 1e-3, weight_decay: Number = 0.0,
        anchor: str | None = None, seed: int = 0, sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {**self.given(locals()), "trail": None}, sparsity=sparsity)

    def forwards_in(self, steps: int) -> tuple[int, int]:
        anchors = math.ceil(steps / self.param_groups[0]["q"])
        return self.forwards * (steps - anchors), 2 * anchors

    @property
    def leaves_pending(self) -> bool:
        return self._copies

    @classmethod
    def measurements_in(cls, settings: Settings, blocks: int = 1) -> int:
        return 2 if settings["step"] % settings["q"] == 0 else 4

    def update_size(self, group: Settings, slope: float) -> float:  # whose q is no number of directions
        return self._largest_lr(group) * abs(slope)

    @classmethod
    def losses_in(cls, settings: Settings) -> slice:
        return slice(2)

    @classmethod
    def skipped_in(cls, steps: Iterable[Sequence[float]], settings: Settings) -> int:
        skipped, good = 0, True
        for losses in steps:
            finite = [*map(math.isfinite, losses)]
            if len(losses) == 2:
                good = all(finite)
            skipped += not all(finite if good else finite[:2])  # without an anchor, what is measured at it counts for nothing
        return skipped

    @property
    def full_batch_due(self) -> bool:
        """Whether the next step is an anchor's, which calls ``full_closure``."""
        return bool(self.param_groups[0]["step"] % self.param_groups[0]["q"] == 0)

    def step(  # type: ignore[override]
        self, closure: LossClosure | Driver | None = None, full_closure: LossClosure | None = None
    ) -> torch.Tensor | None:
        """One step. What it returns, and other errors, are those of ``ZerothOrder.step``.

        Args:
            closure: () -> loss of a minibatch, the same each time it is called. Default None: after ``measure``.
            full_closure: () -> loss of the full batch, or of a large one: a number or 0-dim tensor; it may iterate a loader. Called, twice,
                at anchors only. Default None: the step is no anchor's.

        Raises:
            ValueError: no full_closure at an anchor.
        """
        return super().step(self._closure_of_step(closure, full_closure))

    @whole
    def measure(self, closure: LossClosure | Driver, full_closure: LossClosure | None = None) -> Estimate:
        """The first half of ``step``, see ``ZerothOrder.measure``. The arguments, and errors, are those of ``MeZOSVRG.step``."""
        return super().measure(self._closure_of_step(closure, full_closure))

    @whole
    def estimate(self, closure: LossClosure | Driver, full_closure: LossClosure | None = None) -> Estimate:
        """Measure a gradient estimate and restore the weights. The arguments, and errors, are those of ``MeZOSVRG.step``."""
        return super().estimate(self._closure_of_step(closure, full_closure))

    def _closure_of_step(self, closure: Any, full_closure: LossClosure | None) -> Any:
        """At an anchor the full batch's."""
        if closure is None or not self.full_batch_due or isinstance(closure, Log):
            return closure
        if full_closure is None:
            step, q = self.param_groups[0]["step"], self.param_groups[0]["q"]
            raise ValueError(f"full_closure=None at step {step}, an anchor (q={q}): pass closure and full_closure")
        return full_closure

    @whole
    def add_param_group(self, param_group: Settings) -> None:
        """Add parameters where an anchor is due. The argument is that of ``ZerothOrder.add_param_group``.

        Raises:
            ValueError: a step between two anchors.
        """
        if hasattr(self, "weights") and not self.full_batch_due:
            raise ValueError(f"step {self.param_groups[0]['step']} is between two anchors: add parameters where `full_batch_due` is True")
        super().add_param_group(param_group)

    def _estimate(self) -> Estimator:
        eps = self._setting("eps")
        if self.full_batch_due:
            return (yield from finite_difference(self.weights, [self._key(anchor=True)], eps))
        here = yield from finite_difference(self.weights, [self._key()], eps)
        there = yield from self._there()
        trail = self.param_groups[0]["trail"]
        good, g_full = (trail[name].to(here.skipped.device) for name in ("good", "g_full"))  # a state may have been loaded elsewhere
        ((key, g),), ((_, g_anchor),) = here.terms, there.terms
        skipped = here.skipped | (there.skipped & good)
        moves = (key, g - torch.where(good, g_anchor, 0.0)), (self._full_key(), g_full)
        return replace(here, terms=[(k, torch.where(skipped, 0.0, c)) for k, c in moves], skipped=skipped)

    def _update(self, estimate: Estimate) -> None:
        rate = "lr_full" if self.full_batch_due else "lr"
        lr = self._setting(rate)
        moves = [(key, -lr * g) for key, g in estimate.terms]
        if self.full_batch_due:
            if self._copies:
                self.weights.apply_pending()
                self.weights.finish()
                self._anchor.drop_pending()  # its weights are written over
                for theta, anchor in zip(self.weights.theta, self._anchor.theta):
                    torch._foreach_copy_(anchor.tensors, theta.tensors)
            ((_, g_full),) = estimate.terms
            trail = dict(anchor=self.param_groups[0]["step"], g_full=torch.as_tensor(g_full), good=~estimate.skipped, moves=())
        else:
            trail = self.param_groups[0]["trail"]
        if not self._copies:
            trail = dict(trail, moves=(*trail["moves"], tuple(torch.as_tensor(c) for _, c in moves)))
        for group in self.param_groups:
            group["trail"] = trail
        self.weights.add_pending(moves, self._decay(estimate, rate))

    def _full_key(self) -> NoiseKey:
        return replace(self._key(anchor=True), step=self.param_groups[0]["trail"]["anchor"])

    def _there(self) -> Estimator:
        """The estimate of the minibatch at the anchor."""
        eps, keys = self._setting("eps"), [self._key()]
        if not self._copies:
            with self.weights.away([(key, -c) for key, c in self._since()]):
                return (yield from finite_difference(self.weights, keys, eps))
        estimate = yield from finite_difference(self._anchor, keys, eps)  # restored at the next step, or by ``flush``
        if any(p.dtype != torch.float32 for p in self.layout.params):
            self._anchor.apply_pending()  # a flush would round 16-bit weights once more, and a run that was saved would be another
        return estimate

    @cached_property
    def _anchor(self) -> PerturbedWeights:
        """Around the copy of theta, under the indices of the parameters that it is of."""
        missing = [p for p in self.layout.params if "anchor" not in self.state[p]]
        if missing and not self.full_batch_due:
            what = f"the state holds none for {len(missing)} parameters"
            raise ValueError(f"step {self.param_groups[0]['step']} is between two anchors, and {what}: load one that does")
        for part, theta in zip(self.weights.parts, self.weights.theta):
            for p, tensor in zip(part.params, theta.params):
                if "anchor" not in self.state[p]:
                    self.state[p]["anchor"] = tensor.detach().clone()
        return self.weights.over([self.state[p]["anchor"] for p in self.layout.params])

    def _all_weights(self) -> list[PerturbedWeights]:
        copied = self._copies and all("anchor" in self.state.get(p, ()) for p in self.layout.params)
        return [*super()._all_weights(), *([self._anchor] if copied else [])]

    def _lay_out(self) -> None:
        super()._lay_out()
        vars(self).pop("_anchor", None)

    def _make_state(self) -> None:
        super()._make_state()
        if self._copies:
            self._anchor  # noqa: B018

    def _since(self) -> list[Term]:
        """theta - anchor as terms: one of each step's minibatch, and one of the full batch for all of them."""
        trail = self.param_groups[0]["trail"]
        (full,), *later = trail["moves"]
        own = [(replace(self._key(), step=trail["anchor"] + 1 + i), c) for i, (c, _) in enumerate(later)]
        return [(self._full_key(), sum((c for _, c in later), full)), *own]

    @property
    def _copies(self) -> bool:
        return bool(self.param_groups[0]["anchor"] == "copy")

    def _check_weights(self, weights: PerturbedWeights) -> None:
        decays = any(group["weight_decay"] for group in self.param_groups)
        if self.param_groups[0]["anchor"] is None:
            exact = not decays and all(p.dtype == torch.float32 for p in weights.layout.params)
            for group in self.param_groups:
                group["anchor"] = "replay" if exact else "copy"
        if not self._copies:
            if decays:
                raise ValueError('anchor="replay" with weight_decay: what has decayed is not made again from noise: pass anchor="copy"')
            return
        self._check_apart(weights.layout.params, 'anchor="copy"', 'anchor="replay"')


class Annealing:
    """Divides lr and lr_full by alpha after a window of steps whose mean loss is more than kappa times that of the window before.

    Call ``step(loss)`` after each step of the optimizer. It looks at the losses, and so waits for the device, once a window.

    Args:
        optimizer: any; what it has of lr and lr_full is divided, in every group.
        window: steps, as many as an epoch has batches; >= 1.
        kappa: threshold of the ratio, > 0. Default 1.05.
        alpha: divisor, > 0. Default 5.0.

    Raises:
        ValueError: window < 1, kappa <= 0 or alpha <= 0.

    Reference:
        Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", Algorithm 4.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, window: int, kappa: float = 1.05, alpha: float = 5.0) -> None:
        if not (isinstance(window, int) and window >= 1 and kappa > 0 and alpha > 0):
            raise ValueError(f"window={window!r}, kappa={kappa!r}, alpha={alpha!r}: pass an integer >= 1 and two numbers > 0")
        self.optimizer, self.window, self.kappa, self.alpha = optimizer, window, kappa, alpha
        self.losses: list[Number] = []
        self.before: float | None = None

    def step(self, loss: Number) -> None:
        """Take the ``loss`` of a step, a number or a 0-dim tensor; after a whole window, divide where that is due."""
        self.losses.append(loss.detach().clone() if isinstance(loss, torch.Tensor) else loss)
        if len(self.losses) < self.window:
            return
        mean, self.losses = sum(map(float, self.losses)) / self.window, []
        if self.before is not None and mean > self.kappa * self.before:
            for group in self.optimizer.param_groups:
                for name in ("lr", "lr_full"):
                    if name in group:
                        group[name] = group[name] / self.alpha
        self.before = mean

    def state_dict(self) -> dict[str, Any]:
        """The losses of the window so far, and the mean of the window before."""
        return dict(losses=[float(loss) for loss in self.losses], before=self.before)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state`` that ``state_dict`` gave."""
        self.losses, self.before = list(state["losses"]), state["before"]


def _is_trail(anchor: int, g_full: torch.Tensor, good: torch.Tensor, moves: tuple[tuple[torch.Tensor, ...], ...]) -> bool:
    numbers = [g_full, *(c for move in moves for c in move)]
    return index(anchor) >= 0 and good.dtype == torch.bool and good.dim() == 0 and all(torch.is_floating_point(c) for c in numbers)
