"""Hybrid: a part of the parameters by forward passes, the rest by backpropagation."""

import math
import warnings
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch

from ..estimate import Estimate
from ..layers import Layers, layers
from .base import ZerothOrder
from .splits import Cut, rows_of

CURES = {"zo": "functools.partial(zokern.MeZO, lr=1e-6)", "fo": "functools.partial(torch.optim.AdamW, lr=1e-5)"}


@dataclass(frozen=True)
class HybridStep:
    """What a step of ``Hybrid`` measured.

    Attributes:
        loss: 0-dim float64 tensor: L(theta); with share_forward L(theta + eps z), at which the gradient was taken.
        estimate: of the zeroth-order half; None where that is frozen.
        skipped: a loss was not finite, so nothing moved.
    """

    loss: torch.Tensor
    estimate: Estimate | None
    skipped: bool


class Hybrid:
    """Zeroth-order steps on one part of the parameters, first-order steps on the rest, both measured at the same theta.

    theta_ZO follows its optimizer's estimate, by default two forward passes at theta +- eps z with z on theta_ZO alone; theta_FO
    follows its optimizer's step along grad_FO L(theta), one forward pass and one backward pass, which goes no deeper than the deepest
    first-order parameter: the activations below are not stored. Both move after both were measured.

    A step writes nothing of a parameter's size for the zeroth-order half. In it, no other than first-order parameters require a
    gradient, and after it no ``.grad`` is left; to clip gradients, use ``hybrid.fo.register_step_pre_hook``. It waits for the device
    once or twice, to see that the losses are finite.

    Args:
        model: the torch.nn.Module, or its ``zokern.layers(model, blocks=...)`` where its blocks must be named. Parameters that do not
            require a gradient now are left alone for good. Keep it in eval() mode: dropout would differ between the passes.
        zo: [(name, parameter)] -> zeroth-order optimizer, such as ``functools.partial(zokern.MeZO, lr=1e-6)``. None: what is not
            first-order is frozen.
        fo: [parameter] -> torch optimizer, such as ``functools.partial(torch.optim.AdamW, lr=1e-5)``.
        split: who is first-order: ``zokern.splits.Depth``, ``Inter``, ``Intra`` or ``LISA``. Where it draws again, ``zo`` and ``fo`` are
            given all trainable parameters once, and hold at each step those that are theirs; the state of those that leave is dropped.
        share_forward: take the gradient at the first of the zeroth-order half's places, theta + eps z, instead of at theta: two forward
            passes in all. Default False.
    Attributes:
        zo, fo: the two optimizers; learning rate schedulers work on them. ``zo`` is None where that half is frozen.
        layers, split: as given or found.
        steps, skipped: steps so far, and how many of them a loss that was not finite turned into nothing.
        last: HybridStep of the newest step; None before the first.
    Raises:
        ValueError: a split that leaves a half without a parameter, or that the model does not fit; memory that two parameters of
            different halves share; zo made with defer=True; share_forward without zo; no blocks found.
        TypeError: zo or fo that makes no such optimizer.
    Reference: Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", section 5.
    """

    def __init__(self, model, zo, fo, split, share_forward=False):
        for name, given in (("zo", zo), ("fo", fo)):
            if not (callable(given) or name == "zo" and given is None):
                raise TypeError(f"{name} is a {type(given).__name__}: pass a callable that makes the optimizer, such as {CURES[name]}")
        if not hasattr(split, "first_order"):
            raise TypeError(f"split={split!r}: pass zokern.splits.Depth, Inter, Intra or LISA")
        if share_forward and zo is None:
            raise ValueError("share_forward=True with zo=None: there is no zeroth-order forward pass to share; pass share_forward=False")
        self.layers = model if isinstance(model, Layers) else layers(model)
        self.split, self.share_forward = split, share_forward
        self.steps, self.skipped, self.last = 0, 0, None
        self._trainable = {p: name for p, name in self.layers.titles.items() if p.requires_grad}
        self._first = self._rows(0)
        self._check_memory()
        self._cuts, zeroth, first = self._halves()
        self._check_halves(zeroth, first, frozen=zo is None)
        if split.every:  # each may come to hold any of them
            zeroth, first = [(name, p) for p, name in self._trainable.items()], list(self._trainable)
        self.fo, self.zo = fo(first), None if zo is None else zo(zeroth)
        self._check_optimizers(frozen=zo is None)
        # All that zo may hold, group by group, for the draws to choose from.
        of_each = ("params", "param_names", "block", "keep")  # what a group has one of for each parameter
        self._groups = [] if zo is None else [{name: list(g[name]) for name in of_each if name in g} for g in self.zo.param_groups]
        if split.every:
            self._share_out()

    def step(self, closure):
        """One step: measure both halves, then move both.

        Args:
            closure: () -> loss, a differentiable 0-dim tensor, without backward(). It is called with and without grad mode, and
                must see the same batch each time.
        Returns:
            L(theta), or with share_forward the mean of the zeroth-order half's losses: a 0-dim float64 tensor. ``last`` holds the rest.
        Raises:
            ValueError, TypeError: no closure, or one whose loss is no scalar or cannot be differentiated. Whatever the closure raises.
            The weights are restored first.
        """
        if not callable(closure):
            raise ValueError(f"closure={closure!r}: Hybrid evaluates the loss itself; call step(closure) with () -> loss")
        for cut in self._cuts:
            cut.follow()
        self._clear()
        try:
            self.last = self._shared_step(closure) if self.share_forward else self._plain_step(closure)
        finally:
            self._clear()
        self.steps += 1
        self.skipped += self.last.skipped
        if self.split.every and self.steps % self.split.every == 0:
            self._share_out()
        return self.last.estimate.loss if self.share_forward else self.last.loss

    def _plain_step(self, closure):
        # The gradient comes first: then the zeroth-order half can restore and update its weights in one pass.
        loss = self._differentiate(closure)
        finite = bool(torch.isfinite(loss))
        if self.zo is not None:
            self.zo.step(closure if finite else lambda: math.nan)  # a loss that is not finite skips the step
        return self._first_order_step(loss, finite)

    def _shared_step(self, closure):
        losses = []

        def evaluate():
            losses.append(closure() if losses else self._differentiate(closure))
            return losses[-1]

        self.zo.step(evaluate)
        return self._first_order_step(losses[0], True)

    def _first_order_step(self, loss, finite):
        estimate = None if self.zo is None else self.zo.last
        skipped = not finite or estimate is not None and bool(estimate.skipped)
        if not skipped:
            self.fo.step()
            torch.clear_autocast_cache()  # it keeps 16-bit copies of weights, and cannot see that they have changed
        elif self.zo is None and not self.skipped:
            message = f"step {self.steps} was skipped: a loss was not finite. Later ones are only counted, in `skipped`."
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        return HybridStep(loss.double(), estimate, skipped)

    def _differentiate(self, closure):
        """Loss and .grad of the first-order parameters, where the weights stand."""
        with torch.enable_grad(), self._first_order_alone():
            loss = closure()
            if not isinstance(loss, torch.Tensor):
                raise TypeError(f"closure returned {type(loss).__name__}: return the loss itself, a 0-dim tensor (such as outputs.loss)")
            if loss.dim() or loss.is_complex():
                raise ValueError(
                    f"closure returned a tensor of shape {tuple(loss.shape)}, {loss.dtype}: return a real 0-dim loss, such as loss.mean()"
                )
            if not loss.requires_grad:
                raise ValueError(
                    "closure returned a loss that does not depend on the first-order parameters: return it as computed, without item(), "
                    "detach() or no_grad()"
                )
            loss.backward()
        return loss.detach()

    @contextmanager
    def _first_order_alone(self):
        """Inside, no parameter but the first-order ones requires a gradient, and cut ones keep that of their rows."""
        others = [p for p in self._trainable if p not in self._first and p.requires_grad]
        hooks = [cut.whole.register_post_accumulate_grad_hook(cut.keep) for cut in self._cuts]
        try:
            for p in others:
                p.requires_grad_(False)
            yield
        finally:
            for p in others:
                p.requires_grad_(True)
            for hook in hooks:
                hook.remove()

    def _clear(self):
        for p in (*self._trainable, *(cut.first for cut in self._cuts)):
            p.grad = None

    def _rows(self, step):
        """{parameter: its first-order rows} of a step, of trainable parameters with any."""
        rows = self.split.first_order(self.layers, step)
        return {p: n for p, n in rows.items() if n and p in self._trainable}

    def _halves(self):
        """-> (cuts, [(name, zeroth-order parameter)], [first-order parameter]); a cut parameter is in both with its rows."""
        cuts, zeroth, first = [], [], []
        for p, name in self._trainable.items():
            rows = self._first.get(p, 0)
            if rows == 0:
                zeroth.append((name, p))
            elif rows == rows_of(p):
                first.append(p)
            else:
                cuts.append(cut := Cut.of(p, rows))
                zeroth.append((f"{name}[{rows}:]", cut.zeroth))
                first.append(cut.first)
        return cuts, zeroth, first

    def _share_out(self):
        """After a draw: give each half the parameters that are its in the step to come, and drop the state of those that left it."""
        self._first = self._rows(self.steps)
        for p in [p for p in self.fo.state if p not in self._first]:
            del self.fo.state[p]
        if self.zo is not None:
            for group, whole in zip(self.zo.param_groups, self._groups):
                mine = [i for i, p in enumerate(whole["params"]) if p not in self._first]
                group.update({name: [values[i] for i in mine] for name, values in whole.items()})
            for p in [p for p in self.zo.state if p in self._first]:
                del self.zo.state[p]
            self.zo._bind()

    def _check_halves(self, zeroth, first, frozen):
        counts = {"zo": sum(p.numel() for _, p in zeroth), "fo": sum(p.numel() for p in first)}
        for half, other in (("zo", "fo"), ("fo", "zo")):
            if not counts[half] and not (half == "zo" and frozen):
                raise ValueError(
                    f"split={self.split} leaves no parameter to {half}: all {counts[other]:,} trainable elements, in "
                    f"{len(self.layers.params)} blocks, embeddings and head, go to {other}; pass a split that leaves some to both"
                )

    def _check_memory(self):
        """Refuse two parameters over the same memory where one may move by zo and the other by fo."""
        if self.split.every:
            side = {p: i for i, block in enumerate(self.layers.params) for p in block}
        else:
            side = {p: "whole" if n == rows_of(p) else "cut" for p, n in self._first.items()}
        storages = defaultdict(list)
        for p in self._trainable:
            storages[p.device, p.untyped_storage().data_ptr()].append(p)
        for sharers in storages.values():
            for a, b in combinations(sharers, 2):
                if _overlap(a, b) and (side.get(a) != side.get(b) or side.get(a) == "cut"):
                    raise ValueError(
                        f"{self._trainable[a]!r} and {self._trainable[b]!r} share memory, which split={self.split} would put in both "
                        "halves: tie them as one Parameter, or pass a split that keeps them together"
                    )

    def _check_optimizers(self, frozen):
        for name, made, cls, kind in (
            ("zo", self.zo, ZerothOrder, "ZerothOrder"),
            ("fo", self.fo, torch.optim.Optimizer, "torch Optimizer"),
        ):
            if not (isinstance(made, cls) or name == "zo" and frozen):
                raise TypeError(f"{name} makes {type(made).__name__}: pass what makes a {kind}, such as {CURES[name]}")
        if self.zo is not None and self.zo.param_groups[0].get("defer"):
            raise ValueError("zo made an optimizer with defer=True: Hybrid evaluates the model at theta itself; leave defer=False")
        if self.split.every and self.fo.state:
            raise ValueError(
                f"fo makes {type(self.fo).__name__}, which keeps state for all parameters from the start: pass one that does not"
            )

    def state_dict(self) -> dict:
        """Both halves' states, what each holds, and the counts. The weights are the model's."""
        return {
            "zo": None if self.zo is None else self.zo.state_dict(),
            "fo": self.fo.state_dict(),
            "first_order": self._names(self._first),
            "steps": self.steps,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict) -> None:
        """Resume. Bit for bit what an uninterrupted run would do, given the same parameters. An error leaves all as it was.

        Raises:
            ValueError: the state was saved with another split, with zo=None where there is one or the reverse, or does not fit zo or fo.
        """
        first, saved = self._names(self._rows(state_dict["steps"])), state_dict["first_order"]
        if first != saved:
            name, _ = sorted(first.items() ^ saved.items())[0]
            raise ValueError(
                f"the state was saved with other first-order rows: {name!r} had {saved.get(name, 0)}, split={self.split} gives it "
                f"{first.get(name, 0)}; pass the split and the model of that run"
            )
        if (self.zo is None) != (state_dict["zo"] is None):
            raise ValueError(f"the state was saved {'with' if self.zo is None else 'without'} a zo: make Hybrid as it was made then")
        before = self.state_dict()
        try:
            self._load(state_dict)
        except BaseException:
            self._load(before)
            raise

    def _load(self, state_dict):
        self.steps, self.skipped = state_dict["steps"], state_dict["skipped"]
        if self.split.every:
            self._share_out()
        if self.zo is not None:
            self.zo.load_state_dict(state_dict["zo"])
        self.fo.load_state_dict(state_dict["fo"])

    def _names(self, first):
        return {self._trainable[p]: rows for p, rows in first.items()}


def _overlap(a, b):
    """Whether two tensors of one storage share memory, as far as their first and last elements tell."""
    ends = [p.data_ptr() + p.element_size() * (1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride()))) for p in (a, b)]
    return a.numel() and b.numel() and a.data_ptr() < ends[1] and b.data_ptr() < ends[0]
