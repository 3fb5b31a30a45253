"""The contract that every zeroth-order optimizer keeps: torch's interface, restored weights, a step from measurements to an update."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any, cast

import torch

from ..estimators import Driver, Estimate, Estimator, Log, LossClosure, finite_difference
from ..estimators.losses import driver_of
from ..noise import NoiseKey
from ..noise.spec import ROUNDING, WEIGHTS
from ..signals import whole
from .check import Check, check
from .contract import CALL
from .replicas import Replicas
from .settings import Number, Settings
from .trained import Trained
from .watch import Watch


class ZerothOrder(Trained):
    """What all zeroth-order optimizers share: torch's interface, restored weights, a step from measurements to an update.

    A subclass may say how a gradient is estimated (``_estimate``) and how to move along it (``_update``).

    Args:
        params: parameters, named parameters, or groups of them with settings of their own.
        defaults: settings; of all groups: q, estimator, seed.
        blocks: None; or the model, whose layers are the blocks (``zokern.layers``: embeddings, each layer, head); or what
            ``zokern.layers(model, blocks=[...])`` returns, where they must be named; or a list of lists of parameters or of modules, each
            trainable parameter in one of them. Every block is perturbed by itself, the others at theta, and has a projected gradient of its
            own. A step costs that many times the forward passes. Default None.
        sparsity: None, or the share in [0, 1) of all elements that z leaves alone. Each tensor's own share is what magnitude pruning of the
            weights, as they are now, would take from it; which elements they are is drawn anew for each z. Default None.

    Attributes:
        layout (Layout): of the parameters.
        weights: what perturbs them, a ``zokern.estimators.PerturbedWeights``.
        last (Estimate | None): of the newest step; None before the first.
        measurements (list[torch.Tensor]): what decided the newest step, or the one measured, in the order of the requests: its losses,
            0-dim float64 tensors.
        forwards: forward passes of a step.
        skipped: steps so far that a loss that was not finite turned into nothing.
        flushes (int): how often, between steps, pending terms have been applied by a pass of their own.
        discarded_measurements (int): measurements that no step followed, and flushes between the halves of a step. In place each costs one
            rounding of the weights. Counted when the next step measures.

    Raises:
        ValueError: a setting out of its range, no parameter with requires_grad=True, or parameters that cannot be perturbed, by number and
            name.
        TypeError: parameters of other dtypes than float32, bfloat16 and float16, or that are no plain tensors; a perturbation of another
            kind.
    """

    def _begin_run(self, skipped: int = 0, dropped: int = 0) -> None:
        self.last: Estimate | None = None
        self.measurements: list[torch.Tensor] = []
        self.flushes = self.discarded_measurements = 0
        self.watch: Watch = Watch(skipped, dropped)
        self._replicas: Replicas = Replicas()
        self._measured: Estimate | None = None  # by ``measure``, for ``step`` to move along
        self._unfinished: bool = False  # whether it was measured, and not moved
        self._versions = [p._version for p in self.layout.tensors]  # when an update was left pending

    def _estimate(self) -> Estimator:
        """A generator that asks for losses, is sent them, and returns an Estimate (``zokern.estimators``). A subclass may have its own."""
        group = self.param_groups[0]
        keys = [self._key(probe) for probe in range(group["q"])]
        return finite_difference(self.weights, keys, self._setting("eps"), group["estimator"])

    def _update(self, estimate: Estimate) -> None:
        """Leave theta <- (1 - lr weight_decay) theta - lr g pending in ``weights``, or move otherwise. A subclass may have its own."""
        lr = self._setting("lr")
        self.weights.add_pending([(key, -lr * g) for key, g in estimate.terms], self._decay(estimate))

    def _make_state(self) -> None:
        """Make what ``state`` is to hold, where it is not there yet."""
        self.weights.theta  # noqa: B018

    def update_size(self, group: Settings, slope: float) -> float:
        """Size of an update: root mean square over elements, in units of theta.

        Args:
            group: a parameter group, at the largest lr that is scheduled for it.
            slope: derivative of the loss along z.
        """
        return float(self._largest_lr(group) * abs(slope) / float(group["q"]) ** 0.5)

    def _largest_lr(self, group: Settings) -> float:
        return max(float(group[name]) for name in ("lr", "initial_lr", self.full_batch_rate) if name in group)

    @classmethod
    def measurements_in(cls, settings: Settings, blocks: int = 1) -> int:
        """How many ``measurements`` decide a step.

        Args:
            settings: of the first parameter group, "step" among them.
            blocks: how many there are. Default 1.
        """
        each = int(settings["q"]) * blocks
        return 1 + each if settings["estimator"] == "one-sided" else 2 * each

    @classmethod
    def members_in(cls, settings: Settings) -> slice:
        """Which of a step's ``measurements`` are those of perturbed weights, by the ``settings``: all but a first one of theta itself."""
        return slice(1 if settings.get("estimator") == "one-sided" else 0, None)

    @property
    def leaves_pending(self) -> bool:
        """Whether terms are pending between its steps, which ``flush`` applies."""
        return bool(self.param_groups[0].get("defer"))

    @property
    def measurements_due(self) -> int:
        """How many measurements the next step has."""
        return self.measurements_in(self.param_groups[0], len(self.weights.parts))

    @property
    def forwards(self) -> int:
        """Forward passes of a step."""
        return self.measurements_due

    def losses_by_name(self) -> dict[str, torch.Tensor]:
        """Losses of the newest step that are worth logging, 0-dim tensors.

        "loss_plus" and "loss_minus" are L(theta + eps z) and L(theta - eps z) of the first direction, or L(theta) where the estimator is
        one-sided.
        """
        first, second = self.measurements[:2]
        one_sided = self.param_groups[0].get("estimator") == "one-sided"
        return dict(zip(("loss_plus", "loss_minus"), (second, first) if one_sided else (first, second)))

    def step(self, closure: LossClosure | Driver | None = None) -> torch.Tensor | None:  # type: ignore[override]
        """One step: measure the loss at the perturbed weights, then move.

        Args:
            closure: () -> loss, a 0-dim tensor or a number, without backward(). It is called under no_grad, as many times as the estimator
                says, and must see the same batch each time. Or a ``zokern.estimators.Driver``, which finds the losses in another way.
                Default None: after ``measure``, or where every lr is 0.

        Returns:
            Mean of the losses, a 0-dim float64 tensor on the parameters' device; ``last`` holds the rest. None where every lr is 0 and
                nothing was measured.

        Raises:
            ValueError: no closure, or one that returns no scalar.
            TypeError: a closure that returns no number.
            RuntimeError: a parameter was frozen or unfrozen since the optimizer was made; the weights were changed while an update was
                pending.
            Exception: whatever the closure raises, and the handler of a signal, as that of Ctrl-C: while the closure runs, or when the step
                is done. The weights are restored first.
        """
        if closure is None:
            if self._measured is not None:
                self._check_unchanged()
                return self.apply(self._measured)
            if all(float(group["lr"]) == 0 for group in self.param_groups):
                self._make_state()  # which is why torch.distributed.checkpoint asks for such a step
                return None
            raise ValueError(f"closure=None: zeroth-order steps evaluate the loss themselves; {CALL}")
        return self._move_along(self._measure(closure))

    @whole
    def measure(self, closure: LossClosure | Driver) -> Estimate:
        """The first half of ``step``: measure, and leave the rest to ``step()`` without a closure, for loops that call that themselves.

        Between the halves the weights are not at theta, and so the whole is as many passes as one step; ``flush`` brings them to theta. An
        estimate that is not followed by ``step()`` moves nothing. Argument and errors are those of ``step``.
        """
        estimate = self._measure(closure)
        self._versions, self._measured = [p._version for p in self.layout.tensors], estimate
        return estimate

    @whole
    def estimate(self, closure: LossClosure | Driver) -> Estimate:
        """Measure a gradient estimate and restore the weights; ``apply`` moves along it. Argument and errors are those of ``step``."""
        estimate = self._measure(closure)
        self.weights.apply_pending()
        return estimate

    @whole
    def apply(self, estimate: Estimate) -> torch.Tensor | None:
        """Move along an estimate and count one step.

        Args:
            estimate: of ``estimate``; or an ``Estimate`` of logged terms, which replays a step without evaluating anything.

        Returns:
            Mean of its losses, a 0-dim float64 tensor; None where it has none.

        Raises:
            RuntimeError: a parameter was frozen or unfrozen since the optimizer was made.
        """
        self._check_frozen()
        return self._move_along(estimate)

    @whole
    def repeat(self, measurements: Sequence[Number]) -> torch.Tensor | None:
        """A step again from its ``measurements``, without a forward pass: the same passes over the weights, and so the same bits.

        Args:
            measurements: numbers or 0-dim tensors, as many as such a step has.

        Returns:
            As ``step``.

        Raises:
            ValueError: more measurements or fewer.
        """
        if len(measurements) != self.measurements_due:
            raise ValueError(
                f"measurements of step {self.param_groups[0]['step']}: {len(measurements)}, but a step of {type(self).__name__} has "
                f"{self.measurements_due}: pass all of one step"
            )
        return self.step(Log(measurements))

    @whole
    def check(self, closure: LossClosure | Driver, smooth: bool = True, warn: bool = False) -> Check:
        """Before a run, or within it: is the closure what a step needs, eps in its range, an update more than rounding?

        Evaluates the loss twice at theta, and at eps / 3, eps and 3 eps to both sides along noise of its own: 2 + 6 forward passes (6 for
        each block; up to 3 directions where the first one leaves a doubt; of ForwardGradient one, with its derivative). The run goes on bit
        for bit as without: weights, what is pending, state, counts, logs and torch's, NumPy's and Python's random states are as before.
        What the closure itself uses up, such as the batches of a loader, is not brought back. Meanwhile the host's memory holds a copy of
        the parameters.

        Args:
            closure: as of ``step``: of MeZOSVRG that of the minibatch. All processes call this at once, where its losses are agreed on.
            smooth: False of a loss that is counted, as an accuracy is: then eps is not judged. Default True.
            warn: one RuntimeWarning a problem. Default False: they are in ``problems`` of what is returned.

        Returns:
            What was found: print it.

        Raises:
            Exception: those of ``step``.
        """
        return check(self, closure, smooth, warn)

    @whole
    def flush(self) -> None:
        """Bring the weights to where the steps so far have led.

        With defer=True they are elsewhere after a step: call this before the model is evaluated, saved or changed. state_dict,
        load_state_dict, copy.copy and add_param_group call it themselves; in what pickle and deepcopy make, together with the model or
        alone, the same terms are pending as here.

        Raises:
            RuntimeError: the weights were changed since the last step, so that what is pending no longer fits them.
        """
        self._check_unchanged()
        displaced = any(weights.displaced for weights in self._all_weights())
        self.flushes += displaced and self._measured is None
        self.discarded_measurements += displaced and self._measured is not None
        for weights in self._all_weights():
            weights.apply_pending()

    def _measure(self, closure: LossClosure | Driver) -> Estimate:
        """Leaves the weights where the last loss was evaluated. Whatever is raised, they are restored first."""
        self._check_unchanged()
        self._check_frozen()
        self._make_state()  # where memory runs out, before anything has moved
        self.discarded_measurements += self._unfinished
        self._measured, self.measurements, self._unfinished = None, [], True
        driver = driver_of(closure, self.watch.loss)
        try:
            if driver.live:
                (driver if driver.compares else self._replicas).begin(self)
            estimate = self._ask(driver)
            if driver.live:
                self._replicas.look(self, self.measurements)
        except BaseException:
            self.weights.apply_pending()
            raise
        return estimate

    def _ask(self, driver: Driver) -> Estimate:
        """Let the driver answer the estimator's requests."""
        with closing(self._estimate()) as asking:
            numbers: Any = None
            while True:
                try:
                    request = asking.send(numbers)
                except StopIteration as done:
                    estimate = cast(Estimate, done.value)
                    return estimate.opposite() if self.param_groups[0].get("maximize") else estimate
                numbers = driver.answer(request)
                self.measurements.extend(numbers)

    @torch.no_grad()
    def _move_along(self, estimate: Estimate) -> torch.Tensor | None:
        """-> the mean of its losses."""
        weights = self.weights
        pending, passes = list(weights.pending), list(weights.passes)
        try:
            weights.rounding = self._rounding_key()
            self._update(estimate)
            if self.param_groups[0].get("defer"):
                self._versions = [p._version for p in self.layout.tensors]
            else:
                weights.apply_pending()
        except BaseException:
            if weights.passes == passes:
                weights.pending = pending  # an update that was refused is not to come with the next one
            weights.apply_pending()
            raise
        self.last, self._measured, self._unfinished = estimate, None, False
        for group in self.param_groups:
            group["step"] += 1
            group["skipped"] = group["skipped"] + estimate.skipped
            if estimate.dropped is not None:
                group["dropped"] = group["dropped"] + estimate.dropped
        first = self.param_groups[0]
        self.watch.step(first["step"] - 1, first["skipped"], estimate.projected_grad, first["dropped"] if self.drops else None)
        return estimate.loss

    def _rounding_key(self) -> NoiseKey | None:
        """By which this step's update is rounded into 16-bit weights; None: to nearest."""
        first = self.param_groups[0]
        return NoiseKey.of(first["seed"], first["step"], ROUNDING, WEIGHTS) if first.get("rounding") == "stochastic" else None

    def _decay(self, estimate: Estimate, rate: str = "lr") -> Number:
        """1 - lr * weight_decay; 1 where the step is skipped. ``rate``: the name of the setting that is this step's lr."""
        if not any(group["weight_decay"] for group in self.param_groups):
            return 1.0
        return 1 - self._setting(rate) * self._setting("weight_decay") * (~estimate.skipped).double()

    def _check_unchanged(self) -> None:
        """Raise if the weights changed while an update is pending; take over what was changed else."""
        self.weights.look()
        if self.weights.displaced and self._versions != [p._version for p in self.layout.tensors]:
            raise RuntimeError(
                f"the weights were changed while the update of step {self.param_groups[0]['step'] - 1} was still pending (defer=True): "
                "call flush() before load_state_dict or anything else that writes to them"
            )
