"""The contract that every optimizer keeps: torch's interface, restored weights, exact resume."""

from contextlib import contextmanager

import torch

from ..estimate import Estimate, Heard, measure
from ..noise import SPEC_VERSION, NoiseKey
from ..perturb import over
from ..signals import whole
from .check import Check, check
from .contract import ClosureOptimizer
from .frozen import check_frozen
from .partition import kept_by_magnitude, layout_of, numbers_of_blocks
from .saved import check_saved, logged, shapes
from .settings import COMMON, check_settings
from .watch import Replicas, Watch


class ZerothOrder(ClosureOptimizer):
    """What all zeroth-order optimizers share: how a gradient is estimated. A subclass says how to move along it (``_update``).

    Frozen parameters are dropped at construction; shared memory is perturbed once. All state that a run needs is in
    ``param_groups`` and ``state``, so that state_dict, pickle and deepcopy keep it: among it ``step`` (updates done, so
    that resuming is exact) and ``skipped`` (steps that a non-finite loss turned into nothing).

    Args:
        params: parameters, named parameters, or groups of them with settings of their own.
        defaults: settings; of all groups: q, estimator, seed.
        blocks: None; or the model, whose layers are the blocks (``zokern.layers``: embeddings, each layer, head); or what
            ``zokern.layers(model, blocks=[...])`` returns, where they must be named; or a list of lists of parameters or of modules, each
            trainable parameter in one of them. Every block is perturbed by itself, the others standing at theta, and has a projected
            gradient of its own. A step costs that many times the forward passes.
        sparsity: None, or the share in [0, 1) of all elements that z leaves alone. Each tensor's own share is what magnitude pruning
            of the weights, as they are now, would take from it; which elements they are is drawn anew for each z.
    Attributes:
        last: the Estimate of the newest step; None before the first.
        readings: what the newest step, or the one begun, was decided by, in the order of evaluation: its losses, 0-dim float64 tensors.
        layout: the Layout of the parameters.
        forwards: forward passes of a step.
        flushes: how often, between steps, what was owed has been paid by a pass of its own.
        detours: how often the weights have moved for nothing, and come back up to rounding: measurements that no step followed, and
            flushes between the halves of a step. Counted when the next step measures.
    """

    settings = COMMON
    logged = None  # where in a log of zokern.record the optimizer stands

    def __init__(self, params, defaults, blocks=None, sparsity=None):
        self._start()
        self._frozen = {}
        defaults = dict(defaults, step=0, skipped=0, noise_spec=SPEC_VERSION)
        super().__init__(params, defaults)
        if not any(group["params"] for group in self.param_groups):
            raise ValueError("params holds no parameter with requires_grad=True: unfreeze at least one")
        if blocks is not None:
            for group, numbers in zip(self.param_groups, numbers_of_blocks(self.param_groups, blocks)):
                group["block"] = numbers
        if sparsity is not None:
            for group, ratios in zip(self.param_groups, kept_by_magnitude(self.param_groups, sparsity)):
                group["keep"] = ratios
        self._bind()

    def _make_state(self) -> None:
        """Make what ``state`` is to hold, where it is not there yet."""

    @property
    def forwards(self) -> int:
        group = self.param_groups[0]
        each = group["q"] * len(self.model.parts)
        return 1 + each if group["estimator"] == "one-sided" else 2 * each

    def _estimate(self, closure) -> Estimate:
        """Measure, and leave the weights wherever the last loss was evaluated: ``model`` owes the way back."""
        group = self.param_groups[0]
        keys = [self._key(probe) for probe in range(group["q"])]
        return measure(self.model, closure, keys, self._setting("eps"), group["estimator"])

    @staticmethod
    def profile_hook_step(step):  # with which torch wraps ``step``: the hooks, a log's among them, are of the whole
        return whole(torch.optim.Optimizer.profile_hook_step(step))

    def step(self, closure=None):
        """One step: measure the loss at the perturbed weights, then move.

        Args:
            closure: () -> loss, a 0-dim tensor or a number, without backward(). It is called under no_grad, as many times as
                the estimator says, and must see the same batch each time. None after ``begin``, or where every lr is 0.
        Returns:
            Mean of the losses, a 0-dim float64 tensor on the parameters' device; ``last`` holds the rest.
        Raises:
            ValueError, TypeError: no closure, or one that returns no scalar. Whatever the closure raises. The weights are
            restored first. What the handler of a signal raises, as that of Ctrl-C does: while the closure runs, or when the step is done.
        """
        if closure is None:
            if self._begun is not None:
                estimate = self._begun
                self._check_untouched()
                self.apply(estimate)
                return estimate.loss
            if all(float(group["lr"]) == 0 for group in self.param_groups):
                self._make_state()  # which is why torch.distributed.checkpoint asks for such a step
                return None
            raise ValueError(
                "closure=None: zeroth-order steps evaluate the loss themselves; call step(closure) with () -> loss, or, where a loop calls "
                "step() itself, as transformers' Trainer does, take zokern.hf.ZOTrainer"
            )
        with self._measured(closure) as estimate:
            self._move_along(estimate)
        return estimate.loss

    @whole
    def begin(self, closure) -> Estimate:
        """The first half of ``step``: measure, and leave the rest to ``step()`` without a closure, for loops that call that themselves.

        Between the halves the weights stand beside theta, and so the whole is as many passes as one step; ``flush`` brings them to
        theta. An estimate that is not followed by ``step()`` moves nothing. Arguments and errors as in ``step``.
        """
        with self._measured(closure) as estimate:
            self._versions = [p._version for p in self.layout.params]
        self._begun = estimate
        return estimate

    @whole
    def estimate(self, closure) -> Estimate:
        """Measure a gradient estimate and restore the weights; ``apply`` moves along it. Arguments and errors as in ``step``."""
        with self._measured(closure) as estimate:
            self.model.settle()
        return estimate

    @whole
    def check(self, closure, smooth=True, warn=False) -> Check:
        """Before a run, or within it: is the closure what a step needs, eps in its range, an update more than rounding? ``print`` it.

        Evaluates the loss twice at theta, and at eps / 3, eps and 3 eps to both sides along noise of its own: 2 + 6 forward passes (6 for
        each block; up to 3 directions where the first one leaves a doubt; of ForwardGradient one, with its derivative). The run goes on
        bit for bit as without: weights, what is owed, state, counts, logs and torch's, NumPy's and Python's random states are as before.
        What the closure itself uses up, such as the batches of a loader, is not brought back. Meanwhile the host's memory holds a copy of
        the parameters.

        Args:
            closure: as of ``step``: of MeZOSVRG that of the minibatch. All processes call this at once, where its losses are agreed on.
            smooth: False of a loss that is counted, as an accuracy is: then eps is not judged. Default True.
            warn: one RuntimeWarning a problem. Default False: they are in ``problems`` of what is returned.
        Raises:
            As ``step``.
        """
        return check(self, closure, smooth, warn)

    @whole
    def repeat(self, readings) -> torch.Tensor:
        """A step again from its ``readings``, without a forward pass: the same passes over the weights, and so the same bits.

        Args:
            readings: numbers or 0-dim tensors, as many as such a step has.
        Returns:
            As ``step``.
        Raises:
            ValueError: more readings or fewer.
        """
        due, step = self._due(), self.param_groups[0]["step"]
        if len(readings) != due:
            raise ValueError(
                f"readings of step {step}: {len(readings)}, but a step of {type(self).__name__} has {due}: pass all of one step"
            )
        left, self._live = iter(readings), False
        try:
            return self._again(lambda: next(left))
        finally:
            self._live = True

    def _due(self) -> int:
        """How many readings the next step has."""
        return self.forwards

    def _again(self, reading):
        return self.step(reading)

    @contextmanager
    def _measured(self, closure):
        """-> an Estimate, the weights wherever its last loss was evaluated. Whatever is raised, they are brought back first."""
        self._check_untouched()
        self._check_frozen()
        self._make_state()  # where memory runs out, before anything has moved
        self.detours += self._measuring
        self._begun, self.readings, self._measuring = None, [], True
        with self._restored():
            estimate = self._estimate(self._heard(closure))
            if self._live:
                self._replicas.look(self, self.readings)
            yield estimate

    def _heard(self, closure):
        """The closure, whose losses are kept in ``readings``."""
        return Heard(closure, self.readings, self.watch.loss)

    @contextmanager
    def _restored(self):
        """Whatever is raised inside, the weights are brought back first."""
        try:
            yield
        except BaseException:
            self.model.settle()
            raise

    @whole
    def apply(self, estimate: Estimate) -> None:
        """Move along an estimate and count one step. An Estimate of logged terms replays a step without evaluating anything."""
        self._check_frozen()
        self._move_along(estimate)

    @torch.no_grad()
    def _move_along(self, estimate):
        with self._restored():
            self._update(estimate)
            if self.param_groups[0].get("defer"):
                self._versions = [p._version for p in self.layout.params]
            else:
                self.model.settle()
        self.last, self._begun, self._measuring = estimate, None, False
        for group in self.param_groups:
            group["step"] += 1
            group["skipped"] = group["skipped"] + estimate.skipped
        first = self.param_groups[0]
        self.watch.step(first["step"] - 1, first["skipped"], estimate.projected_grad)

    @whole
    def flush(self) -> None:
        """Bring the weights to where the steps so far have led. With defer=True they stand elsewhere after a step: call this before
        the model is evaluated, saved or changed. state_dict, load_state_dict, copy.copy and add_param_group call it themselves; what
        pickle and deepcopy make, together with the model or alone, owes what this one owes.

        Raises:
            RuntimeError: the weights were changed since the last step, so that what is owed no longer fits them.
        """
        self._check_untouched()
        owes = any(part.owes for part in self._moving)
        if self._begun is None:
            self.flushes += owes
        else:
            self.detours += owes
        for part in self._moving:
            part.settle()

    @property
    def _moving(self) -> list:
        """What moves weights, and may owe the way back."""
        return self.model.parts

    def _check_untouched(self):
        """What is owed was reckoned from the weights as the last step left them."""
        if self.model.owes and self._versions != [p._version for p in self.layout.params]:
            raise RuntimeError(
                f"the weights were changed while the update of step {self.param_groups[0]['step'] - 1} was still owed (defer=True): call "
                "flush() before load_state_dict or anything else that writes to them"
            )

    def _check_frozen(self):
        check_frozen(self._trained, self._frozen, self.param_groups[0]["step"])

    @whole
    def state_dict(self):
        self.flush()
        return super().state_dict() | {"shapes": shapes(self), **logged(self)}

    def __getstate__(self):
        owed = [part.owed for part in self._moving]
        stands = {} if self.model.owes else logged(self)  # weights that owe are at no step of a log
        return super().__getstate__() | {"_frozen": self._frozen, "_owed": owed, **stands}

    def __copy__(self):
        self.flush()  # both would owe the same
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    @property
    def skipped(self) -> int:
        """Steps so far whose loss was not finite. Reading it waits for the device."""
        return int(self.param_groups[0]["skipped"])

    def losses_by_name(self):
        """ "loss_plus" and "loss_minus": L(theta + eps z) and L(theta - eps z) of the first direction, or L(theta) where the estimator
        is one-sided."""
        first, second = self.readings[:2]
        one_sided = self.param_groups[0].get("estimator") == "one-sided"
        return dict(zip(("loss_plus", "loss_minus"), (second, first) if one_sided else (first, second)))

    @whole
    def add_param_group(self, param_group):
        if hasattr(self, "model"):
            first = self.param_groups[0]
            shared = [name for name, setting in self.known().items() if setting.shared or name == "skipped"]
            param_group = {**{name: first[name] for name in shared if name in first}, **param_group}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_settings(self.known(), group, len(self.param_groups) - 1, self.param_groups[0])
            named = _named(group)
            live = [i for i, (p, _) in enumerate(named) if p.requires_grad]
            for name in ("params", "param_names"):
                if name in group:
                    group[name] = [group[name][i] for i in live]
            if hasattr(self, "model"):
                if "block" in first:  # of its own, after all others
                    group.setdefault("block", [1 + max(max(g["block"], default=-1) for g in self.param_groups[:-1])] * len(live))
                if "keep" in first:
                    group.setdefault("keep", [1.0] * len(live))
                self._bind()
        except BaseException:
            del self.param_groups[-1]
            raise
        self._frozen = {p: name for p, name in (*self._frozen.items(), *named) if not p.requires_grad}

    @whole
    def load_state_dict(self, state_dict):
        """Resume. Bit for bit what an uninterrupted run would do, given the same parameters.

        Raises:
            ValueError: the state was saved by an optimizer of another class or of other settings than values, by another noise
                specification, or for parameters of other names or shapes. Nothing is changed then.
        """
        check_saved(self, state_dict)
        self.flush()
        super().load_state_dict({**state_dict, "state": {}})
        self.logged = state_dict.get("logged")
        # torch would round what is kept in float32 to the dtype of 16-bit parameters.
        numbers = (i for group in state_dict["param_groups"] for i in group["params"])
        for i, p in zip(numbers, (p for group in self.param_groups for p in group["params"])):
            if i in state_dict["state"]:
                held = state_dict["state"][i]
                self.state[p] = {name: v.to(p.device, copy=True) if isinstance(v, torch.Tensor) else v for name, v in held.items()}

    @whole
    def __setstate__(self, state):
        state = dict(state)
        owed = state.pop("_owed", [])
        super().__setstate__(state)
        self._start(self.param_groups[0].get("skipped", 0))
        self._bind()
        for part, owes in zip(self._moving, owed):
            part.owed = owes
        self._versions = [p._version for p in self.layout.params]

    def _start(self, skipped=0):
        """What a run does not need to be resumed."""
        self.last, self._begun, self.readings = None, None, []
        self.flushes, self.detours, self._measuring = 0, 0, False
        self._live, self._versions, self.watch, self._replicas = True, None, Watch(skipped), Replicas()

    def _bind(self):
        if hasattr(self, "model"):
            self.flush()
        self.layout = layout_of(self.param_groups)
        self.model = over(self.layout)
        self._trained = {
            p: name for g in self.param_groups for p, name in zip(g["params"], g.get("param_names") or [""] * len(g["params"]))
        }

    def _key(self, probe=0, purpose=0) -> NoiseKey:
        group = self.param_groups[0]
        return NoiseKey.of(group["seed"], group["step"], purpose, probe)

    def _setting(self, name, of=lambda value: value):
        """A setting as add_noise_ takes coefficients: one value where the groups agree, else a tensor [len(layout.coefficient_groups)]."""
        values = [of(self.param_groups[group][name]) for group, _ in self.layout.coefficient_groups]
        values = [v if isinstance(v, torch.Tensor) else float(v) for v in values]
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

    def _decay(self, estimate, rate="lr"):
        """1 - lr * weight_decay; 1 where the step is skipped. ``rate``: the name of the setting that is this step's lr."""
        if not any(group["weight_decay"] for group in self.param_groups):
            return 1.0
        return 1 - self._setting(rate) * self._setting("weight_decay") * (~estimate.skipped).double()


def _named(group):
    """[(parameter, name or "")] of a group."""
    return list(zip(group["params"], group.get("param_names") or [""] * len(group["params"])))
