"""What the settings of an optimizer may be. Each is declared once; constructors, saved states, logs and the command line read it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from operator import index
from typing import Any, TypeAlias

import torch
from torch.optim.optimizer import ParamsT as ParamsT  # these are what constructors take

from ..estimators import Perturbation as Perturbation
from ..estimators.kinds import NAMED
from ..estimators.partition import Blocks as Blocks
from ..ops.arguments import Number as Number

Settings: TypeAlias = dict[str, Any]  # of a parameter group, by name


@dataclass(frozen=True)
class Setting:
    """A setting of an optimizer.

    Attributes:
        kind: float, int, bool, str, tuple (of floats) or torch.dtype.
        cure: what it is to be, for errors: "a number > 0".
        holds: value -> whether it is that. May raise what a value of another kind leads to.
        help: what it does, in one line.
        choices: of a str or torch.dtype: the values that there are, as texts.
        shared: whether all parameter groups have one value, with which the optimizer is made for good.
        kept: whether no step can change it, because state was made for it.
        times_lr: of another learning rate: where a search for it may begin, as a multiple of lr.
        default: of the constructor; None as well where it has none.
        formerly: what it was in states and logs of a zokern that did not have it yet; None where none is read.
    """

    kind: type
    cure: str
    holds: Callable[[Any], bool]
    help: str = ""
    choices: tuple[str, ...] = ()
    shared: bool = False
    kept: bool = False
    times_lr: float | None = None
    default: Any = None
    formerly: Any = None

    def check(self, name: str, value: Any, where: str) -> None:
        """Raise ValueError, with the cure, where the value is not what the setting may be.

        Args:
            name: of the setting.
            value: what is to be judged.
            where: it was found, for the message, such as "param_groups[0]".
        """
        try:
            good = bool(self.holds(value))
        except (AttributeError, TypeError, ValueError, RuntimeError, OverflowError):
            good = False
        if not good:
            raise ValueError(f"{name}={value!r} in {where}: pass {self.cure}")


def flag(help: str) -> Setting:
    return Setting(bool, "True or False", lambda x: x is True or x is False, help, shared=True)


def choice(help: str, *choices: str | None, kept: bool = False) -> Setting:
    *first, last = ["None" if c is None else f'"{c}"' for c in choices]
    names = tuple(c for c in choices if c is not None)
    return Setting(str, f"{', '.join(first)} or {last}", lambda x: x in choices, help, names, shared=True, kept=kept)


NOT_NEGATIVE: tuple[str, Callable[[Any], bool]] = "a number >= 0", lambda x: 0 <= x < math.inf
POSITIVE: tuple[str, Callable[[Any], bool]] = "a number > 0", lambda x: 0 < x < math.inf
SHARE: tuple[str, Callable[[Any], bool]] = "a number in [0, 1)", lambda x: 0 <= x < 1

# What most optimizers have; one that adds to them does so in its class's ``settings``.
COMMON = {
    "lr": Setting(float, *NOT_NEGATIVE, "Learning rate."),
    "eps": Setting(float, *POSITIVE, "Perturbation radius, in units of theta."),
    "weight_decay": Setting(float, *NOT_NEGATIVE, "Decoupled weight decay: theta shrinks by lr times this a step."),
    "q": Setting(int, "an integer >= 1, < 2**24", lambda x: 1 <= index(x) < 1 << 24, "Directions a step, averaged.", shared=True),
    "estimator": choice("two-point or one-sided differences of the loss.", "two-point", "one-sided"),
    "defer": flag("Leave each update to the next step's first pass."),
    "maximize": flag("The closure returns a reward, which is to grow, not a loss."),
    "seed": Setting(int, "an integer in [0, 2**64)", lambda x: 0 <= index(x) < 1 << 64, "Fixes the noise.", shared=True),
    "noise": choice("Normals, or signs, which are cheaper to make.", "gaussian", "rademacher", kept=True),
    "perturbation": replace(
        choice(
            "Where perturbed weights are: in place; or, the default in 16 bits, in scratch memory part by part; or in a copy.",
            None,
            *NAMED,
            kept=True,
        ),
        formerly="in-place",
    ),
    "rounding": replace(
        choice(
            "How updates are rounded into weights in 16 bits; stochastic by default where these are not perturbed in place.",
            None,
            "nearest",
            "stochastic",
            kept=True,
        ),
        formerly="nearest",
    ),
    "blocks": Setting(bool, "layers", lambda x: True, "Estimate each layer by itself."),
    "sparsity": Setting(float, *SHARE, "Share of all elements that the noise leaves alone."),
    # What an optimizer counts.
    "step": Setting(int, "an integer in [0, 2**32)", lambda x: 0 <= index(x) < 1 << 32, shared=True),
    "skipped": Setting(int, "an integer in [0, 2**32)", lambda x: 0 <= int(x) < 1 << 32),
    "dropped": Setting(int, "an integer in [0, 2**63)", lambda x: 0 <= int(x) < 1 << 63),
    "noise_spec": Setting(int, "the number of a noise specification", lambda x: index(x) > 0, shared=True),
}
# What a group has one of for each parameter, the constructor's argument that it is made of, and what it may be.
PER_PARAMETER = {
    "block": ("blocks", Setting(int, "an integer >= 0", lambda x: type(x) is int and 0 <= x < 1 << 63)),
    "keep": ("sparsity", Setting(float, "a number in (0, 1]", lambda x: type(x) in (int, float) and 2**-32 <= x <= 1)),
}
OF_PARAMETERS = {argument for argument, _ in PER_PARAMETER.values()}


def check_settings(known: dict[str, Setting], group: Settings, number: int, first: Settings) -> None:
    """Turn numbers of other libraries in ``param_groups[number]`` into Python's, and raise ValueError for a setting that is out of its
    range or that, where it is ``shared``, differs from the first group's."""
    for name, setting in known.items():
        if name in group:
            group[name] = _plain(group[name])
            setting.check(name, group[name], f"param_groups[{number}]")
        mine, theirs = group.get(name), first.get(name)
        if setting.shared and mine != theirs:
            raise ValueError(f"{name}={mine!r} differs from param_groups[0]'s {name}={theirs!r}: pass one {name} for all")


def _plain(value: Any) -> Any:
    """A setting as a state_dict may hold it: numbers of other libraries as Python's."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


STATE_DTYPE = Setting(
    torch.dtype,
    "torch.float32 or torch.bfloat16",
    lambda x: x in (torch.float32, torch.bfloat16),
    "What the optimizer's state is stored in; bfloat16 is rounded stochastically.",
    ("float32", "bfloat16"),
    shared=True,
    kept=True,
)
