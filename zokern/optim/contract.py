"""What an optimizer says of itself: Trainer, logs, the command line and the tests read it, and know no optimizer by name."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from inspect import Parameter, signature
from typing import Any, ClassVar, TypeVar

import torch

from ..signals import whole
from .settings import OF_PARAMETERS, Setting, Settings

CALL = "call step(closure) with () -> loss, or, where a loop calls step() itself, as transformers' Trainer does, take zokern.hf.ZOTrainer"


class ClosureOptimizer(torch.optim.Optimizer):
    """An optimizer whose step evaluates the loss itself, through a closure without backward().

    A subclass declares what it is; ``register`` makes it known. What it must have beside: ``step(closure)``, ``measure(closure)``,
    ``flush()``, ``check(closure)``, ``skipped`` and ``forwards``.

    Attributes:
        name: on the command line, such as "mezo".
        settings: name -> ``Setting`` of those that the class adds to its base classes'; ``declared`` has all that it takes.
        takes_model: it is made with the model, not with parameters.
        divides: it is made of two optimizers, ``zo`` and ``fo``, and a ``split`` that says which parameters are whose.
        derivative: what the loss is asked for: None, its value; "forward", a derivative in forward mode; "backward", a gradient.
        full_batch: some steps need the loss of the full batch, as ``step(closure, full_closure)``: those where ``full_batch_due``.
        full_batch_rate: the setting that is their learning rate in lr's place; who schedules lr, or scales it for a group, scales it alike.
        radius: the setting that is the perturbation radius, in units of theta.
        drops: a measurement that is not finite is left out, with a count, where others are; of other classes it skips the step.
        replayable: a step can be made again from its ``measurements``.
        capturable: by ``zokern.graph``: its update is made of terms alone.
        decide_steps: the methods that decide which passes over the weights a step makes: a subclass with one of its own is another
            optimizer, which registers itself.
        lr_scale: where a search for lr may begin, as a multiple of what suits MeZO.
        lr_of_radius: the same as a multiple of the perturbation radius, where that is how it is chosen.
    """

    name: ClassVar[str] = ""
    settings: ClassVar[dict[str, Setting]] = {}
    takes_model: ClassVar[bool] = False
    divides: ClassVar[bool] = False
    derivative: ClassVar[str | None] = None
    full_batch: ClassVar[bool] = False
    full_batch_rate: ClassVar[str | None] = None
    radius: ClassVar[str] = "eps"
    drops: ClassVar[bool] = False
    replayable: ClassVar[bool] = True
    capturable: ClassVar[bool] = False
    decide_steps: ClassVar[Sequence[str]] = "repeat", "apply", "_estimate", "_update", "_ask", "_measure", "_key", "_setting", "_decay"
    lr_scale: ClassVar[float] = 1.0
    lr_of_radius: ClassVar[float | None] = None

    @staticmethod
    def profile_hook_step(func: Any) -> Any:  # torch wraps ``step`` with it: signals wait in its hooks, too
        return whole(torch.optim.Optimizer.profile_hook_step(func))

    @classmethod
    @cache
    def known(cls) -> dict[str, Setting]:
        """Return name -> ``Setting`` of all that a parameter group of it may hold, base classes' included."""
        return {name: setting for base in reversed(cls.__mro__) for name, setting in vars(base).get("settings", {}).items()}

    @classmethod
    @cache
    def declared(cls) -> dict[str, Setting]:
        """Return name -> ``Setting``, with its default, of what the constructor takes, in its order."""
        default = {name: None if p.default is Parameter.empty else p.default for name, p in signature(cls).parameters.items()}
        return {name: replace(cls.known()[name], default=default[name]) for name in default if name in cls.known()}

    @classmethod
    def check_together(cls, settings: Settings) -> None:
        """Raise ValueError, with the cure, where settings of a parameter group, each in its range, do not go together."""

    @classmethod
    def losses_in(cls, settings: Settings) -> slice:
        """Which of a step's ``measurements`` are the losses whose mean it returns, by the ``settings`` of the first parameter group."""
        return slice(None)

    @classmethod
    def skipped_in(cls, steps: Iterable[Sequence[float]], settings: Settings) -> int:
        """How many steps moved nothing.

        Args:
            steps: the measurements of each, from the first step on, NaN where one was not finite.
            settings: of the first parameter group.
        """
        losses = cls.losses_in(settings)
        return sum(not all(map(math.isfinite, step[losses])) for step in steps)

    @classmethod
    def dropped_in(cls, steps: Iterable[Sequence[float]], settings: Settings) -> int:
        """How many members of populations were left out. The arguments are those of ``skipped_in``."""
        return 0

    @property
    def full_batch_due(self) -> bool:
        """Whether the next step needs the loss of the full batch."""
        return False

    @property
    def perturbed(self) -> "ClosureOptimizer | None":
        """What of it perturbs weights: itself, or one of its parts; None where nothing does."""
        return self

    def flush(self) -> None:
        """Bring the weights to where the steps so far have led."""
        raise NotImplementedError

    @property
    def forwards(self) -> int:
        """Forward passes of a step."""
        raise NotImplementedError

    def forwards_in(self, steps: int) -> tuple[int, int]:
        """Return the forward passes of the first ``steps`` steps of a run: over their own batches, and over the full batch."""
        return self.forwards * steps, 0


Registered = TypeVar("Registered", bound=type[ClosureOptimizer])
_classes: dict[str, type[ClosureOptimizer]] = {}


def register(cls: Registered) -> Registered:
    """Make an optimizer known: to the command line by its ``name``, to logs by its class's. A class decorator.

    A package that brings optimizers along names them in its metadata, so that they are found without an import:

        [project.entry-points."zokern.optimizers"]
        my-name = "my_package.my_module:MyClass"

    Args:
        cls: a subclass of ``ClosureOptimizer``, most often of ``ZerothOrder``. It is returned as it is.

    Raises:
        TypeError: what is no optimizer of zokern's kind, does not declare a name or a setting, or leaves out settings of its base class.
        ValueError: another class has its name.
    """
    if not (isinstance(cls, type) and issubclass(cls, ClosureOptimizer)):
        raise TypeError(f"{cls!r} cannot be registered: pass a class made of zokern.ZerothOrder")
    if not vars(cls).get("name"):
        raise TypeError(f"{cls.__name__} declares no name: give it one for the command line, such as name = 'my-optimizer'")
    for name, argument in list(signature(cls).parameters.items())[1:]:
        if argument.kind is not Parameter.VAR_KEYWORD and name not in cls.known():
            raise TypeError(f"{cls.__name__} takes {name}, which it does not declare: add it to its settings, as a zokern.optim.Setting")
    for other in _classes.values():
        left = other.declared().keys() - cls.declared().keys() - OF_PARAMETERS
        if issubclass(cls, other) and left:  # which its groups hold all the same
            raise TypeError(
                f"{cls.__name__} does not take {', '.join(sorted(left))} as {other.__name__} does, so that no log of it could be replayed: "
                "let its constructor take them"
            )
        same = (cls.__module__, cls.__qualname__) == (other.__module__, other.__qualname__)
        if not same and (other.name == cls.name or other.__name__ == cls.__name__):
            raise ValueError(f"{cls.__name__} is named {cls.name!r}, and there is {other.__name__}, {other.name!r}: choose other names")
    _classes[cls.name] = cls
    return cls


def optimizers() -> dict[str, type[ClosureOptimizer]]:
    """Return all that are registered: name on the command line -> class."""
    _find()
    return dict(sorted(_classes.items()))


def named(name: str) -> type[ClosureOptimizer]:
    """Return the class of an optimizer by its name on the command line.

    Args:
        name: such as "mezo".

    Raises:
        ValueError: none is registered under it.
    """
    known = optimizers()
    if name not in known:
        raise ValueError(f"optimizer={name!r} is not registered: pass one of {', '.join(known)}")
    return known[name]


def logged_as(name: str) -> type[ClosureOptimizer] | None:
    """Return the optimizer whose class has this ``name``, by which logs know it; None where there is none that can be replayed."""
    return next((cls for cls in optimizers().values() if cls.replayable and cls.__name__ == name), None)


@cache
def _find() -> None:
    for entry in entry_points(group="zokern.optimizers"):
        register(entry.load())
