"""The contract that every optimizer keeps: torch's interface, restored weights, exact resume."""

import math
import warnings
from operator import index

import torch

from ..estimate import Estimate
from ..layout import Layout
from ..noise import SPEC_VERSION, NoiseKey
from ..perturb import InPlace

# What a setting must be: (test, what to pass instead).
RULES = {
    "lr": (lambda x: 0 <= x < math.inf, "a number >= 0"),
    "eps": (lambda x: 0 < x < math.inf, "a number > 0"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "a number >= 0"),
    "q": (lambda x: index(x) >= 1, "an integer >= 1"),
    "defer": (lambda x: x is True or x is False, "True or False"),
    "seed": (lambda x: 0 <= index(x) < 1 << 64, "an integer in [0, 2**64)"),
}
SHARED = ("seed", "step", "q", "defer", "noise_spec")  # one value for the whole optimizer, kept in every group


class ZerothOrder(torch.optim.Optimizer):
    """What all zeroth-order optimizers share. A subclass says how to measure (``_estimate``) and how to move (``_update``).

    Frozen parameters are dropped at construction; shared memory is perturbed once. All state that a run needs is in
    ``param_groups`` and ``state``, so that state_dict, pickle and deepcopy keep it: among it ``step`` (updates done, so
    that resuming is exact) and ``skipped`` (steps that a non-finite loss turned into nothing).

    Attributes:
        last: the Estimate of the newest step; None before the first.
        layout: the Layout of the parameters.
    """

    def __init__(self, params, defaults):
        self._start()
        defaults = dict(defaults, step=0, skipped=0, noise_spec=SPEC_VERSION)
        super().__init__(params, defaults)
        if not any(group["params"] for group in self.param_groups):
            raise ValueError("params holds no parameter with requires_grad=True: unfreeze at least one")
        self._bind()

    def step(self, closure=None):
        """One step: measure the loss at the perturbed weights, then move.

        Args:
            closure: () -> loss, a 0-dim tensor or a number, without backward(). It is called under no_grad, as many times as
                the estimator says, and must see the same batch each time. It may be None only where every lr is 0.
        Returns:
            Mean of the losses, a 0-dim float64 tensor on the parameters' device; ``last`` holds the rest.
        Raises:
            ValueError, TypeError: no closure, or one that returns no scalar. Whatever the closure raises. The weights are
            restored first.
        """
        if closure is None:
            if all(float(group["lr"]) == 0 for group in self.param_groups):
                return None
            raise ValueError("closure=None: zeroth-order steps evaluate the loss themselves; call step(closure) with () -> loss")
        self._check_untouched()
        estimate = self._estimate(closure)
        self.apply(estimate)
        return estimate.loss

    def estimate(self, closure) -> Estimate:
        """Measure a gradient estimate and restore the weights; ``apply`` moves along it. Arguments and errors as in ``step``."""
        self._check_untouched()
        estimate = self._estimate(closure)
        self.model.settle()
        return estimate

    @torch.no_grad()
    def apply(self, estimate: Estimate) -> None:
        """Move along an estimate and count one step. An Estimate of logged terms replays a step without evaluating anything."""
        self._update(estimate)
        if self.param_groups[0]["defer"]:
            self._versions = [p._version for p in self.layout.params]
        else:
            self.model.settle()
        self.last = estimate
        for group in self.param_groups:
            group["step"] += 1
            group["skipped"] = group["skipped"] + estimate.skipped
        if not self._warned:
            self._look_for_skipped()

    def flush(self) -> None:
        """Bring the weights to where the steps so far have led. With defer=True they stand elsewhere after a step: call this before
        the model is evaluated, saved or changed. state_dict, pickle, deepcopy and add_param_group call it themselves.

        Raises:
            RuntimeError: the weights were changed since the last step, so that what is owed no longer fits them.
        """
        self._check_untouched()
        self.model.settle()

    def _check_untouched(self):
        """What is owed was reckoned from the weights as the last step left them."""
        if self.model.owed[0] and self._versions != [p._version for p in self.layout.params]:
            raise RuntimeError(
                f"the weights were changed while the update of step {self.param_groups[0]['step'] - 1} was still owed (defer=True): call "
                "flush() before load_state_dict or anything else that writes to them"
            )

    def state_dict(self):
        self.flush()
        return super().state_dict()

    def __getstate__(self):
        self.flush()
        return super().__getstate__()

    def _look_for_skipped(self):
        """Warn of the first skipped step. Where the count is on a GPU, look at it when it has arrived: a step or two later."""
        step = self.param_groups[0]["step"] - 1
        if self._count is None:
            # Of all steps so far: none goes unnoticed while an earlier count is on its way.
            host, arrived = self.param_groups[0]["skipped"] - self._skipped_before, None
            if host.is_cuda:
                count, host, arrived = host, torch.empty_like(host, device="cpu", pin_memory=True), torch.cuda.Event()
                host.copy_(count, non_blocking=True)
                arrived.record(torch.cuda.current_stream(count.device))
            self._count = host, arrived, f"step {step}" if arrived is None else f"step {step}, or one shortly before it,"
        host, arrived, which = self._count
        if arrived is None or arrived.query():
            self._count, self._warned = None, bool(host)
            if host:
                message = f"{which} was skipped: a loss was not finite. Later ones are only counted, in `skipped`."
                warnings.warn(message, RuntimeWarning, stacklevel=4)

    @property
    def skipped(self) -> int:
        """Steps so far whose loss was not finite. Reading it waits for the device."""
        return int(self.param_groups[0]["skipped"])

    def add_param_group(self, param_group):
        if hasattr(self, "model"):
            param_group = {**{name: self.param_groups[0][name] for name in (*SHARED, "skipped")}, **param_group}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
            live = [i for i, p in enumerate(group["params"]) if p.requires_grad]
            for name in ("params", "param_names"):
                if name in group:
                    group[name] = [group[name][i] for i in live]
            if hasattr(self, "model"):
                self._bind()
        except BaseException:
            del self.param_groups[-1]
            raise

    def load_state_dict(self, state_dict):
        """Resume. Bit for bit what an uninterrupted run would do, given the same parameters.

        Raises:
            ValueError: the state was saved by another noise specification, or for other groups.
        """
        for i, group in enumerate(state_dict["param_groups"]):
            if group.get("noise_spec") != SPEC_VERSION:
                raise ValueError(
                    f"param_groups[{i}] was saved with noise_spec={group.get('noise_spec')!r}, this zokern makes noise {SPEC_VERSION}: "
                    "resume with the zokern that saved it"
                )
        super().load_state_dict(state_dict)

    def __setstate__(self, state):
        super().__setstate__(state)
        self._start(self.param_groups[0].get("skipped", 0))
        self._bind()

    def _start(self, skipped=0):
        """What a run does not need to be resumed."""
        self.last, self._warned, self._count, self._skipped_before, self._versions = None, False, None, skipped, None

    def _bind(self):
        if hasattr(self, "model"):
            self.flush()
        self.layout = Layout(self.param_groups)
        self.model = InPlace(self.layout)

    def _check(self, group):
        for name, (holds, cure) in RULES.items():
            if name in group:
                try:
                    good = holds(group[name])
                except (TypeError, ValueError, RuntimeError):
                    good = False
                if not good:
                    raise ValueError(f"{name}={group[name]!r} in param_groups[{len(self.param_groups) - 1}]: pass {cure}")
        for name in SHARED:
            mine, first = group.get(name), self.param_groups[0].get(name)
            if mine != first:
                raise ValueError(f"{name}={mine!r} differs from param_groups[0]'s {name}={first!r}: pass one {name} for all")

    def _key(self, probe=0, purpose=0) -> NoiseKey:
        group = self.param_groups[0]
        return NoiseKey.of(group["seed"], group["step"], purpose, probe)

    def _setting(self, name):
        """A group setting as add_noise_ takes coefficients: one value where the groups agree, else a tensor [groups]."""
        values = [group[name] for group in self.param_groups]
        if not any(isinstance(v, torch.Tensor) for v in values):
            if all(v == values[0] for v in values):
                return values[0]
            device = self.layout.params[0].device
            pinned = torch.tensor(values, dtype=torch.float64, pin_memory=device.type == "cuda")
            return pinned.to(device, non_blocking=True)
        if len(values) == 1:
            return values[0]
        device = self.layout.params[0].device
        return torch.stack([torch.as_tensor(v, dtype=torch.float64).to(device, non_blocking=True) for v in values])

    def _decay(self, estimate):
        """1 - lr * weight_decay; 1 where the step is skipped."""
        if not any(group["weight_decay"] for group in self.param_groups):
            return 1.0
        return 1 - self._setting("lr") * self._setting("weight_decay") * (~estimate.skipped).double()
