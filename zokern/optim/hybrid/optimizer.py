"""Hybrid: a part of the parameters by forward passes, the rest by backpropagation."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn

from ...estimators import Closure, Estimate, Layers, LossClosure, layers
from ...shards import is_sharded
from ...signals import let_through, whole
from ..base import ZerothOrder
from ..check import Check, check
from ..contract import CALL, ClosureOptimizer, register
from ..settings import PER_PARAMETER, Setting, flag
from ..trained import check_frozen
from ..watch import warn as say
from .halves import Halves
from .splits import Split

OF_EACH = ("params", "param_names", *PER_PARAMETER)  # what a parameter group has one of for each parameter
CURES = {"zo": "functools.partial(zokern.MeZO, lr=1e-6)", "fo": "functools.partial(torch.optim.AdamW, lr=1e-5)"}


@dataclass(frozen=True)
class HybridStep:
    """What a step of ``Hybrid`` measured.

    Attributes:
        loss: 0-dim float64 tensor: L(theta); with share_forward the first of the zeroth-order half's losses, where the gradient was taken.
        estimate: of the zeroth-order half; None where that is frozen, and before ``step()`` where ``loss`` is not finite.
        skipped: a loss was not finite, so nothing moved.
    """

    loss: torch.Tensor
    estimate: Estimate | None
    skipped: bool


@register
class Hybrid(ClosureOptimizer):
    """Zeroth-order steps on one part of the parameters, first-order steps on the rest, both measured at the same theta.

    theta_ZO follows its optimizer's estimate, by default two forward passes at theta +- eps z with z on theta_ZO alone; theta_FO follows
    its optimizer's step along grad_FO L(theta), one forward pass and one backward pass, which goes no deeper than the deepest first-order
    parameter: the activations below are not stored. Both move after both were measured.

    A step writes nothing of a parameter's size for the zeroth-order half. In it, no other than first-order parameters require a gradient,
    and after it no ``.grad`` is left; to clip gradients, do it between ``measure`` and ``step()``, or use
    ``hybrid.fo.register_step_pre_hook``. It waits for the device once or twice, to see that the losses are finite.

    To torch it is one optimizer: ``param_groups`` are those of ``zo`` and then those of ``fo``, so that one learning rate scheduler drives
    both halves, each from its own lr.

    Args:
        model: the torch.nn.Module, or its ``zokern.layers(model, blocks=...)`` where its blocks must be named. Parameters that do not
            require a gradient now are never changed. Keep it in eval() mode: dropout would differ between the passes.
        zo: [(name, parameter)] -> zeroth-order optimizer, such as ``functools.partial(zokern.MeZO, lr=1e-6)``. None: what is not
            first-order is frozen.
        fo: [parameter] -> torch optimizer, such as ``functools.partial(torch.optim.AdamW, lr=1e-5)``.
        split: who is first-order: ``zokern.splits.Depth``, ``Inter``, ``Intra`` or ``LISA``. Where it draws again, ``zo`` and ``fo`` are
            given all trainable parameters once, and hold those of the newest draw; the state of those that leave is dropped.
        share_forward: take the gradient at the first of the zeroth-order half's points, theta + eps z, instead of at theta: two forward
            passes in all. Default False.

    Attributes:
        zo: the zeroth-order optimizer, None where that half is frozen; learning rate schedulers work on it, too.
        fo: the first-order one, likewise.
        layers: as given or found.
        split: as given.
        steps (int): steps so far.
        skipped (int): how many of them a loss that was not finite turned into nothing.
        last: HybridStep of the newest step; None before the first.
        forwards: forward passes of a step; one of them is followed by a backward pass.

    Raises:
        ValueError: a split that leaves a half without a parameter, or that the model does not fit; memory that two parameters of different
            halves share; zo made with defer=True, or a MeZOSVRG; share_forward without zo, or with ForwardGradient; no blocks found;
            sharded parameters.
        TypeError: zo or fo that makes no such optimizer, a split that is none.

    Reference:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", section 5.
    """

    name = "hybrid"
    takes_model = True
    divides = True
    derivative = "backward"
    replayable = False
    settings = {
        "zo": Setting(object, "what makes the zeroth-order optimizer of named parameters, or None", lambda x: x is None or callable(x)),
        "fo": Setting(object, "what makes the first-order optimizer of parameters", callable),
        "split": Setting(object, "zokern.splits.Depth, Inter, Intra or LISA", lambda x: hasattr(x, "first_order")),
        "share_forward": flag("Take the gradient at the first perturbed point, one forward pass less."),
    }

    def __init__(
        self, model: nn.Module | Layers, zo: Callable[[list[tuple[str, nn.Parameter]]], ZerothOrder] | None,
        fo: Callable[[list[nn.Parameter]], torch.optim.Optimizer], split: Split, share_forward: bool = False,
    ) -> None:  # fmt: skip
        for name, given in (("zo", zo), ("fo", fo)):
            if not self.settings[name].holds(given):
                raise TypeError(f"{name} is a {type(given).__name__}: pass a callable that makes the optimizer, such as {CURES[name]}")
        if not hasattr(split, "first_order"):
            raise TypeError(f"split={split!r}: pass zokern.splits.Depth, Inter, Intra or LISA")
        if share_forward and zo is None:
            raise ValueError("share_forward=True with zo=None: there is no zeroth-order forward pass to share; pass share_forward=False")
        self.layers = model if isinstance(model, Layers) else layers(model)
        if any(is_sharded(p) for p in (*self.layers.embeddings, *sum(self.layers.params, []), *self.layers.head)):
            raise ValueError(
                "the model's parameters are sharded (DTensor), and Hybrid's two halves would be of copies of them that are gone: pass the "
                "whole model, or train it by forward passes alone, as zokern.MeZO does"
            )
        self.split, self.share_forward, self.steps, self.skipped = split, share_forward, 0, 0
        self.last: HybridStep | None = None
        self._measured: HybridStep | None = None
        self.halves = Halves(self.layers, split, frozen=zo is None)
        self.fo, self.zo = fo(self.halves.first_order), None if zo is None else zo(self.halves.zeroth_order)
        self._check_optimizers(frozen=zo is None)
        # All that zo may hold, group by group, for the draws to choose from.
        self._groups = [
            {name: list(group[name]) for name in OF_EACH if name in group} for group in (self.zo.param_groups if self.zo else ())
        ]
        if split.every:
            self._share_out()
        self.__setstate__({"defaults": {}})  # torch's hooks: its __init__ would want groups of its own

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of ``zo``, then those of ``fo``."""
        return [group for half in self._optimizers for group in half.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, Any]:  # type: ignore[override]
        """The state of both halves, by parameter."""
        return {p: held for half in self._optimizers for p, held in half.state.items()}

    @property
    def _optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        return (self.fo,) if self.zo is None else (self.zo, self.fo)

    @property
    def forwards(self) -> int:
        """Forward passes of a step."""
        return 1 if self.zo is None else self.zo.forwards + (not self.share_forward)

    @property
    def perturbed(self) -> ZerothOrder | None:
        """The zeroth-order optimizer; None where that half is frozen."""
        return self.zo

    def step(self, closure: LossClosure | Closure | None = None) -> torch.Tensor | None:  # type: ignore[override]
        """One step: measure both halves, then move both.

        Args:
            closure: () -> loss, a differentiable 0-dim tensor, without backward(). It is called with and without grad mode, and must see
                the same batch each time. Default None: after ``measure``.

        Returns:
            L(theta), or with share_forward the mean of the zeroth-order half's losses: a 0-dim float64 tensor. ``last`` holds the rest.

        Raises:
            ValueError: no closure, or one whose loss is no scalar or cannot be differentiated.
            TypeError: a closure that returns no tensor.
            Exception: whatever the closure raises. The weights are restored first.
        """
        measured = self._measured
        if closure is not None or measured is None:
            measured = self.measure(closure)
        try:
            if self.zo is not None and measured.estimate is not None:
                self.zo.step()
            elif self.zo is not None:  # L(theta) is not finite: its step is counted, and evaluates nothing
                self.zo.repeat([math.nan] * self.zo.measurements_due)
            if not measured.skipped:
                self.fo.step()
                torch.clear_autocast_cache()  # it keeps 16-bit copies of weights, and cannot see that they have changed
        finally:
            self._forget()
        if measured.skipped and self.zo is None and not self.skipped:
            say(f"step {self.steps} was skipped: a loss was not finite. Later ones are only counted, in `skipped`.")
        self.last = measured if self.zo is None else replace(measured, estimate=self.zo.last)
        self.steps += 1
        self.skipped += measured.skipped
        if self.split.every and self.steps % self.split.every == 0:
            self._share_out()
        return self.last.estimate.loss if self.share_forward and self.last.estimate else self.last.loss

    @whole
    def measure(self, closure: LossClosure | Closure | None) -> HybridStep:
        """The first half of ``step``: measure, and leave the rest to ``step()`` without a closure.

        Between the halves ``.grad`` of the first-order parameters, those in ``fo.param_groups``, is there to be clipped, and the others are
        not at theta; ``flush`` brings them there. What no ``step()`` follows moves nothing. Argument and errors are those of
        ``Hybrid.step``.
        """
        driver = closure if isinstance(closure, Closure) else Closure(closure) if callable(closure) else None
        if driver is None:
            raise ValueError(f"closure={closure!r}: Hybrid evaluates the loss itself; {CALL}")
        check_frozen(self.halves.trainable, self.halves.frozen, self.steps)
        self.flush()
        self._forget()
        try:
            measured = self._measure(driver)
        except BaseException:
            self._forget()
            self.flush()
            raise
        if measured.skipped:
            self._forget()
        self._measured = measured
        return measured

    @whole
    def check(self, closure: LossClosure | Closure, smooth: bool = True, warn: bool = False) -> Check:
        """``ZerothOrder.check`` of the zeroth-order half. The arguments are those of ``ZerothOrder.check``.

        Raises:
            ValueError: zo=None, so that there is none.
        """
        if self.zo is None:
            raise ValueError("check of a Hybrid with zo=None: nothing is measured by differences of losses; leave it out")
        self.halves.follow()
        return check(self.zo, closure, smooth, warn)

    def _measure(self, driver: Closure) -> HybridStep:
        if self.share_forward and self.zo is not None:
            estimate = self.zo.measure(_FirstDifferentiated(self, driver))
            return HybridStep(self.zo.measurements[0], estimate, bool(estimate.skipped))
        # The gradient comes first: then the zeroth-order half can restore and update its weights in one pass.
        (loss,) = let_through(driver.combine, [self._differentiate(driver).double()])
        if self.zo is None or not torch.isfinite(loss):
            return HybridStep(loss, None, not torch.isfinite(loss))
        estimate = self.zo.measure(driver)
        return HybridStep(loss, estimate, bool(estimate.skipped))

    @whole
    def flush(self) -> None:
        """Bring the weights to where the steps so far have led, between ``measure`` and ``step()``; else they are there."""
        self.halves.follow()
        if self.zo is not None:
            self.zo.flush()

    @whole
    def _differentiate(self, driver: Closure) -> torch.Tensor:
        """The loss where the weights are, and its gradient in ``.grad`` of the first-order parameters."""
        with self.halves.first_order_alone():
            return driver.differentiate([p for group in self.fo.param_groups for p in group["params"]])

    def _forget(self) -> None:
        """Drop what was measured for a step."""
        self._measured = None
        self.halves.drop_gradients()

    def _share_out(self) -> None:
        """After a draw: give each half the parameters that are its in the step to come, and drop the state of those that left it."""
        first = self.halves.first = self.halves.rows(self.steps)
        for p in [p for p in self.fo.state if p not in first]:
            del self.fo.state[p]
        if self.zo is not None:
            for group, whole in zip(self.zo.param_groups, self._groups):
                mine = [i for i, p in enumerate(whole["params"]) if p not in first]
                group.update({name: [values[i] for i in mine] for name, values in whole.items()})
            for p in [p for p in self.zo.state if p in first]:
                del self.zo.state[p]
            self.zo._lay_out()

    def _check_optimizers(self, frozen: bool) -> None:
        zo, fo = type(self.zo).__name__, type(self.fo).__name__
        if not (isinstance(self.zo, ZerothOrder) or frozen):
            raise TypeError(f"zo makes {zo}: pass what makes a ZerothOrder, such as {CURES['zo']}")
        if not isinstance(self.fo, torch.optim.Optimizer):
            raise TypeError(f"fo makes {fo}: pass what makes a torch Optimizer, such as {CURES['fo']}")
        if signature(self.fo.step).parameters["closure"].default is Parameter.empty:
            raise ValueError(f"fo makes {fo}, whose step evaluates the loss itself: pass one that takes .grad, such as {CURES['fo']}")
        if self.split.every and self.fo.state:
            raise ValueError(f"fo makes {fo}, which keeps state for all parameters from the start: pass one that does not")
        if self.zo is None:
            return
        if self.zo.param_groups[0].get("defer"):
            raise ValueError("zo made an optimizer with defer=True: Hybrid evaluates the model at theta itself; leave defer=False")
        if self.zo.param_groups[0].get("maximize"):
            raise ValueError("zo made an optimizer with maximize=True, and fo goes down along the same loss: leave maximize=False")
        if self.zo.full_batch:
            raise ValueError(f"zo made a {zo}, whose anchors need a full batch: pass another, such as {CURES['zo']}")
        if getattr(self.zo._kind, "offloaded", False):
            raise ValueError(
                f"zo makes {zo} with zokern.Streamed(source=..., device=...), and fo needs its weights and their gradients where the model "
                "computes: leave out both, or pass MeZO instead of Hybrid"
            )
        if self.share_forward and self.zo.param_groups[0].get("perturbation") == "streamed":
            raise ValueError(
                "share_forward=True with streamed weights, which are gone when the gradient is taken: pass share_forward=False, or "
                "perturbation=zokern.Copied()"
            )
        if self.zo.derivative and self.share_forward:
            raise ValueError(f"share_forward=True with a zo that makes {zo}, whose forward pass makes no graph: pass share_forward=False")

    def state_dict(self) -> dict[str, Any]:
        """Both halves' states, what each holds, and the counts. The weights are the model's."""
        return {
            "zo": None if self.zo is None else self.zo.state_dict(),
            "fo": self.fo.state_dict(),
            "fo_class": type(self.fo).__name__,
            "first_order": self.halves.named(self.halves.first),
            "steps": self.steps,
            "skipped": self.skipped,
        }

    @whole
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume. Bit for bit what an uninterrupted run would do, given the same parameters. An error leaves all as it was.

        Args:
            state_dict: what ``state_dict`` gave.

        Raises:
            ValueError: the state of no Hybrid, or of one with another split or with optimizers that zo and fo do not make.
        """
        mine = self.state_dict()
        if missing := sorted(mine.keys() - state_dict.keys()):
            raise ValueError(f"the state was not saved by a Hybrid: it has no {', '.join(missing)}; pass what Hybrid.state_dict() gave")
        if state_dict["fo_class"] != mine["fo_class"]:
            then, now = state_dict["fo_class"], mine["fo_class"]
            raise ValueError(f"the state was saved with an fo that makes {then}, here it makes {now}: make Hybrid as it was made then")
        first, saved = self.halves.named(self.halves.rows(state_dict["steps"])), state_dict["first_order"]
        if first != saved:
            name, _ = sorted(first.items() ^ saved.items())[0]
            raise ValueError(
                f"the state was saved with other first-order rows: {name!r} had {saved.get(name, 0)}, split={self.split} gives it "
                f"{first.get(name, 0)}; pass the split and the model of that run"
            )
        if (self.zo is None) != (state_dict["zo"] is None):
            raise ValueError(f"the state was saved {'with' if self.zo is None else 'without'} a zo: make Hybrid as it was made then")
        try:
            self._load(state_dict)
        except BaseException:
            self._load(mine)
            raise

    def _load(self, state_dict: dict[str, Any]) -> None:
        self._forget()
        self.steps, self.skipped = state_dict["steps"], state_dict["skipped"]
        if self.split.every:
            self._share_out()
        if self.zo is not None:
            self.zo.load_state_dict(state_dict["zo"])
        self.fo.load_state_dict(state_dict["fo"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused, whatever the ``param_group``: the model and the split say at construction which parameters there are.

        Raises:
            TypeError: always.
        """
        raise TypeError("Hybrid's parameters are those of its model, divided by its split: make another Hybrid")

    def __getstate__(self) -> dict[str, Any]:
        held = (name for name in self.__dict__ if name != "step" and not name.startswith("_optimizer_"))  # schedulers wrap step; hooks
        return {name: self.__dict__[name] for name in held} | {"_measured": None}


class _FirstDifferentiated(Closure):
    """A driver that leaves the gradient at the first point where it evaluates the loss."""

    def __init__(self, hybrid: Hybrid, driver: Closure) -> None:
        super().__init__(driver.closure)
        self.hybrid, self.driver, self.first = hybrid, driver, True

    def loss(self) -> torch.Tensor | float:
        first, self.first = self.first, False
        return self.hybrid._differentiate(self.driver) if first else super().loss()

    def combine(self, numbers: list[torch.Tensor]) -> list[torch.Tensor]:
        return self.driver.combine(numbers)
