"""The parameters that an optimizer trains, with their settings: grouped, laid out for noise, saved and loaded."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch

from ..estimators import PerturbedWeights
from ..estimators.kinds import Kind, kind_of
from ..estimators.partition import kept_by_magnitude, layout_of, numbers_of_blocks
from ..noise import SPEC_VERSION, NoiseKey
from ..noise.spec import NOISES
from ..shards import like
from ..signals import whole
from .contract import ClosureOptimizer
from .packed import packed
from .saved import logged, read_saved
from .settings import COMMON, OF_PARAMETERS, Blocks, Number, ParamsT, Perturbation, Settings, check_settings
from .watch import warn

TRAINABLE = attrgetter("requires_grad")


class Trained(ClosureOptimizer):
    """Parameters and settings of a zeroth-order optimizer.

    Frozen parameters are dropped at construction; shared memory is perturbed once. All state that a run needs is in ``param_groups`` and
    ``state``, so that state_dict, pickle and deepcopy keep it: among it ``step`` (updates done, so that resuming is exact) and ``skipped``
    (steps that a non-finite loss turned into nothing).

    Attributes:
        layout: the Layout of the parameters.
        weights: the PerturbedWeights over it.
    """

    settings = COMMON
    logged: Any = None  # the step of a log of zokern.record that the optimizer is at, see ``saved.logged``
    weights: PerturbedWeights
    _kind: Kind | None = None  # of perturbation

    def __init__(self, params: ParamsT, defaults: dict[str, Any], blocks: Blocks | None = None, sparsity: float | None = None) -> None:
        self._frozen: dict[torch.Tensor, str] = {}
        given = defaults.get("perturbation")
        self._kind = None if given is None else kind_of(given)
        named = defaults | ({"perturbation": self._kind and self._kind.name} if "perturbation" in defaults else {})
        super().__init__(params, dict(named, step=0, skipped=0, noise_spec=SPEC_VERSION))
        if not any(group["params"] for group in self.param_groups):
            raise ValueError("params holds no parameter with requires_grad=True: unfreeze at least one")
        if blocks is not None:
            for group, numbers in zip(self.param_groups, numbers_of_blocks(self.param_groups, blocks)):
                group["block"] = numbers
        if sparsity is not None:
            for group, ratios in zip(self.param_groups, kept_by_magnitude(self.param_groups, sparsity)):
                group["keep"] = ratios
        self._lay_out()
        if self.param_groups[0].get("rounding") == "stochastic" and not _in_sixteen(self._kind, self.layout.params):
            raise ValueError('rounding="stochastic": the weights are kept in float32, which is stored as it is: leave it out')
        self._begin_run()
        if given is None and self._kind and self._kind.name == "copied":
            mebibytes = 4 * sum(p.numel() for p in self.layout.tensors) / 2**20
            streamed = "perturbation=zokern.Streamed(model), which needs memory for the largest part of the model, or "
            warn(
                f"there are weights in 16 bits, and so theta is kept in float32 beside them, {mebibytes:,.1f} MiB: pass "
                f"{'' if self.layout.sharded else streamed}perturbation=zokern.Copied() where this is meant"
            )

    @classmethod
    def given(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Of a constructor's ``arguments``, which its ``locals()`` are, return the settings that parameter groups hold."""
        return {name: value for name, value in arguments.items() if name in cls.known() and name not in OF_PARAMETERS}

    @property
    def skipped(self) -> int:
        """Steps so far whose loss was not finite. Reading it waits for the device."""
        return int(self.param_groups[0]["skipped"])

    def _begin_run(self, skipped: int = 0, dropped: int = 0) -> None:
        """Make what a run does not need to be resumed."""

    def _all_weights(self) -> list[PerturbedWeights]:
        """What perturbs weights, and may have to bring them back."""
        return [self.weights]

    def _lay_out(self) -> None:
        if hasattr(self, "weights"):
            self.flush()
        layout = layout_of(self.param_groups)
        self._kind = self._settle(layout.params)
        weights = self._kind.weights(layout, self.state)
        if self._kind.name == "streamed":
            self._check_apart(layout.params, 'perturbation="streamed"', "perturbation=zokern.Copied()")
        self._check_weights(weights)
        self.weights, self.layout = weights, layout
        self._trained = {p: name for group in self.param_groups for p, name in _named(group)}

    def _settle(self, params: list[torch.Tensor]) -> Kind:
        """Say how the weights are perturbed and rounded where the settings leave it open. -> the kind of perturbation."""
        first = self.param_groups[0]
        kind, rounding = self._settled(self._kind or first.get("perturbation"), first.get("rounding"), params)
        for group in self.param_groups:
            group.update({name: value for name, value in (("perturbation", kind.name), ("rounding", rounding)) if name in self.known()})
        return kind

    def _settled(self, perturbation: Perturbation, rounding: str | None, params: list[torch.Tensor]) -> tuple[Kind, str]:
        kind = kind_of(perturbation or ("copied" if _sixteen(params) and self.derivative is None else "in-place"))
        drawn = _in_sixteen(kind, params) and (kind.name != "in-place" or self.derivative)
        return kind, rounding or ("stochastic" if drawn else "nearest")

    def _check_added(self, params: list[torch.Tensor]) -> None:
        """Refuse parameters with which something else would have been chosen where the constructor was told nothing."""
        asked = self._kind if self.defaults.get("perturbation") else None, self.defaults.get("rounding")
        before, now = (self._settled(*asked, laid_out) for laid_out in (self.layout.params, [*self.layout.params, *params]))
        for name, then, here in (("perturbation", before[0].name, now[0].name), ("rounding", before[1], now[1])):
            if then != here:
                raise ValueError(
                    f"the added parameters are the first in 16 bits, with which {name} would have been {here!r}, and is {then!r}: make the "
                    f"optimizer of all parameters at once, or say {name}={then!r} when it is made"
                )

    def _check_weights(self, weights: PerturbedWeights) -> None:
        """Refuse parameters or settings, as they are laid out, that the optimizer cannot do with."""

    def _check_apart(self, laid_out: list[torch.Tensor], what: str, cure: str) -> None:
        """Refuse parameters that lie in the memory of others, where these are to be exchanged."""
        kept = {id(p) for p in laid_out}
        for g, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                if id(p) not in kept and p.numel():
                    raise ValueError(
                        f'{what}: param_groups[{g}]["params"][{i}] shares the memory of another parameter, which is to be exchanged: tie '
                        f"them as one Parameter, or pass {cure}"
                    )

    def _check_frozen(self) -> None:
        check_frozen(self._trained, self._frozen, self.param_groups[0]["step"])

    def _key(self, probe: int = 0, anchor: bool = False) -> NoiseKey:
        """Of a direction of this step, of the kind of noise that is asked for; ``anchor``: of the full batch's."""
        group = self.param_groups[0]
        return NoiseKey.of(group["seed"], group["step"], NOISES[group.get("noise", "gaussian")][anchor], probe)

    def _setting(self, name: str, of: Callable[[Any], Any] = lambda value: value) -> Number:
        """A setting as add_noise_ takes coefficients: one value where the groups agree, else a tensor [coefficient groups]."""
        values = [of(self.param_groups[group][name]) for group, _ in self.layout.coefficient_groups]
        tensors, device = any(isinstance(v, torch.Tensor) for v in values), self.layout.params[0].device
        if len(values) == 1 or not tensors and len(set(values)) == 1:
            return values[0] if tensors else float(values[0])
        if tensors:
            return torch.stack([torch.as_tensor(v, dtype=torch.float64).to(device, non_blocking=True) for v in values])
        return torch.tensor(values, dtype=torch.float64, pin_memory=device.type == "cuda").to(device, non_blocking=True)

    @whole
    def add_param_group(self, param_group: Settings) -> None:
        """Add parameters, whose noise begins after that of all others; with blocks they are one of their own.

        Args:
            param_group: "params" and settings of its own; what all groups share is that of the others.

        Raises:
            ValueError: a setting out of its range; parameters that cannot be perturbed, that are there already, or with which the
                constructor would have chosen another perturbation or rounding. Nothing is added then.
            TypeError: parameters of other dtypes than float32, bfloat16 and float16, or that are no plain tensors.
        """
        made = hasattr(self, "weights")
        if made:
            first = self.param_groups[0]
            shared = [name for name, setting in self.known().items() if setting.shared or name in ("skipped", "dropped")]
            param_group = {**{name: first[name] for name in shared if name in first}, **param_group}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_settings(self.known(), group, len(self.param_groups) - 1, self.param_groups[0])
            self.check_together(group)
            named = _named(group)
            live = [i for i, (p, _) in enumerate(named) if p.requires_grad]
            for name in ("params", "param_names"):
                if name in group:
                    group[name] = [group[name][i] for i in live]
            if made:
                self._check_added(group["params"])
                if "block" in first:  # of its own, after all others
                    group.setdefault("block", [1 + max(max(g["block"], default=-1) for g in self.param_groups[:-1])] * len(live))
                if "keep" in first:
                    group.setdefault("keep", [1.0] * len(live))
                self._lay_out()
        except BaseException:
            del self.param_groups[-1]
            raise
        self._frozen = {p: name for p, name in (*self._frozen.items(), *named) if not p.requires_grad}

    @whole
    def state_dict(self) -> dict[str, Any]:
        """The state as torch has it, after ``flush``, with the parameters' shapes, and of a run that is recorded the step of its log."""
        self.flush()
        shapes = [[tuple(p.shape) for p in group["params"]] for group in self.param_groups]
        saved = super().state_dict()
        groups = [packed(group, self.known(), self.layout.tensors[0].device) for group in saved["param_groups"]]
        return saved | {"param_groups": groups, "shapes": shapes, **logged(self)}

    @whole
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume. Bit for bit what an uninterrupted run would do, given the same parameters.

        Args:
            state_dict: what ``state_dict`` gave.

        Raises:
            ValueError: the state was saved by an optimizer of another class or of other settings than values, by another noise
                specification, or for parameters of other names or shapes. Nothing is changed then.
        """
        state_dict = read_saved(self, state_dict)
        self.weights.check_loaded(state_dict)
        self.flush()
        super().load_state_dict({**state_dict, "state": {}})
        self.logged = state_dict.get("logged")
        # torch would round what is kept in float32 to the dtype of 16-bit parameters.
        numbers = (i for group in state_dict["param_groups"] for i in group["params"])
        for i, p in zip(numbers, (p for group in self.param_groups for p in group["params"])):
            if i in state_dict["state"]:
                held = state_dict["state"][i]
                self.state[p] = {name: like(v, p).to(p.device, copy=True) if isinstance(v, torch.Tensor) else v for name, v in held.items()}

    def __getstate__(self) -> dict[str, Any]:
        pending = [weights.pending for weights in self._all_weights()]
        known = {} if self.weights.displaced else logged(self)  # weights that are not at theta are at no step of a log
        return super().__getstate__() | {"_frozen": self._frozen, "_pending": pending, "_kind": self._kind, **known}

    @whole
    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        former = {name: self.known()[name].formerly for name in self.declared() if self.known()[name].formerly is not None}
        for group in state.get("param_groups", ()):
            group.update({name: value for name, value in former.items() if name not in group})
        pending = state.pop("_pending", [])
        super().__setstate__(state)
        self._lay_out()
        self._begin_run(*(self.param_groups[0].get(counted, 0) for counted in ("skipped", "dropped")))
        for weights, held in zip(self._all_weights(), pending):
            weights.pending = list(held)

    def __copy__(self) -> "Trained":
        self.flush()  # the same would be pending in both
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin


def check_frozen(trained: dict[Any, str], frozen: dict[Any, str], step: int) -> None:
    """Raise RuntimeError where a parameter, {parameter: its name or ""}, is not as trainable as when the optimizer was given it: noise is
    laid out over those that were. ``step``: the one to be made."""
    if all(map(TRAINABLE, trained)) and not any(map(TRAINABLE, frozen)):  # every step asks, so it must be quick
        return
    p, name = next((p, name) for p, name in (*trained.items(), *frozen.items()) if p.requires_grad == (p in frozen))
    title = repr(name) if name else f"a parameter of shape {tuple(p.shape)}"
    if p in trained:
        changed, back = "has been frozen (requires_grad=False) since the optimizer was made, whose noise reaches it", "unfreeze it"
    else:
        changed = "was frozen (requires_grad=False) when the optimizer was given it, and is not now"
        back = "freeze it again (add_param_group adds to most)"
    raise RuntimeError(f"step {step}: {title} {changed}: make a new optimizer of what is to be trained, or {back}")


def _sixteen(params: list[torch.Tensor]) -> bool:
    return any(p.itemsize == 2 for p in params)


def _in_sixteen(kind: Kind | None, params: list[torch.Tensor]) -> bool:
    """Whether theta is stored in 16 bits."""
    return _sixteen(params) and kind is not None and kind.name != "copied"


def _named(group: Settings) -> list[tuple[torch.Tensor, str]]:
    """[(parameter, name or "")] of a group."""
    return list(zip(group["params"], group.get("param_names") or [""] * len(group["params"])))
