"""What the settings of all kinds of run have in common: the optimizer's beside the run's own, and how they are recorded and read."""

import os
from dataclasses import asdict, fields, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from ..errors import BadInput, nearest
from ..optim import ClosureOptimizer, Setting, named, optimizers
from ..optim.settings import COMMON, POSITIVE
from .options import DECIDED, HINTS, brief, choose, fit, options_of, shown, title

ZO = "mezo"  # what moves a model, or the zeroth-order half of one, where nothing else is asked for
# Settings that a record may be without: they are as without them then.
ADDED = ("directions", "offload", "trust_remote_code", "engine", "engines", "tensor_parallel", "engine_option", "server")
EACH_TIME = ("out", "overwrite", "trust_remote_code")  # of the command line alone: what a file of another run says of them is not taken
# Kinds of values, with what each is to be and whether it is.
Natural = Annotated[int, "an integer >= 1", lambda x: x >= 1]
Length = Annotated[int, "an integer >= 4", lambda x: x >= 4]
Seed = Annotated[int, "an integer in [0, 2**32)", lambda x: 0 <= x < 1 << 32]  # numpy's generators take no more
Positive = Annotated[float, POSITIVE[0], POSITIVE[1]]
Made = TypeVar("Made", bound="RunSettings")
DTYPES = ("float32", "bfloat16", "float16")
PATHS = ("model", "data", "eval_data")  # or names on the hub


def zo_choices() -> tuple[str, ...]:
    """What the zeroth-order half of a model may be moved by."""
    return *(name for name, cls in optimizers().items() if not (cls.takes_model or cls.full_batch)), "none"


class RunSettings:
    """A dataclass of options with a field ``optimizer_settings``, those of the optimizer by name."""

    optimizer: str
    lr: float | None
    optimizer_settings: dict[str, object]
    steps: int
    out: str | None

    @classmethod
    def optimizers(cls) -> tuple[str, ...]:
        """Names of those that such a run may have."""
        return tuple(optimizers())

    @property
    def halves(self) -> bool:
        """Whether the optimizer is made of two: one for the parameters by backpropagation, one for the others."""
        return named(self.optimizer).divides

    @property
    def zeroth_class(self) -> type[ClosureOptimizer] | None:
        """The optimizer that perturbs weights; None where there is none."""
        return named(self.optimizer)

    def checked(self: Made) -> Made:
        """The same with what follows from the rest filled in."""
        raise NotImplementedError

    def _optimizer_settings(self) -> dict[str, object]:
        """Those that are given, each one that the optimizer takes and in its range."""
        for name in self.optimizer_settings.keys() & vars(self).keys():
            raise BadInput(f"optimizer_settings holds {name!r}, which the run has a setting of its own for: pass Settings({name}=...)")
        zeroth = self.zeroth_class
        takes = named(self.optimizer).declared() | (zeroth.declared() if zeroth else {"weight_decay": COMMON["weight_decay"]})
        given = {name: getattr(self, name, None) for name in ("lr", "eps")} | self.optimizer_settings
        given = {name: value for name, value in given.items() if not _unset(value, takes.get(name))}
        for name in given:
            if zeroth is None and name not in takes:
                raise BadInput(f"{title(name)} is of the zeroth-order half, and --zo is none: leave it out, or pass --zo {ZO}")
            if name not in takes or takes[name].kind not in HINTS or name in DECIDED:
                what, others = ("--zo", zo_choices()[:-1]) if self.halves else ("--optimizer", self.optimizers())
                having = " or ".join(other for other in others if name in named(other).declared())
                cure = f", or pass {having}" if having else ""
                raise BadInput(f"{title(str(name))} is no option of {what} {zeroth and zeroth.name}: leave it out{cure}")
        return {name: _of_kind(name, value, takes[name]) for name, value in given.items() if name in self.optimizer_settings}

    def _local(self) -> dict[str, Any]:
        """The files and folders among ``PATHS``, absolute, so that the run can be gone on with from anywhere."""
        paths = {name: os.path.expanduser(getattr(self, name) or "") for name in PATHS}
        return {name: str(Path(path).absolute()) for name, path in paths.items() if os.path.exists(path)}

    def record(self) -> dict[str, Any]:
        """For run.json and the log, as JSON has it: the settings of the optimizer beside the others."""
        own = asdict(cast(Any, self))
        given = own.pop("optimizer_settings")
        flat = own | dict.fromkeys(self._formerly()) | given
        return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}

    @classmethod
    def _own(cls) -> set[str]:
        return {f.name for f in fields(cast(Any, cls))}

    @classmethod
    def flat(cls: type[Made], values: dict[str, Any]) -> Made:
        """Settings of ``values`` by option, as ``record`` and the command line have them."""
        own = {name: value for name, value in values.items() if name in cls._own()}
        return cast(Any, cls)(**own, optimizer_settings={name: value for name, value in values.items() if name not in own})

    @classmethod
    def of(cls: type[Made], record: dict[str, Any]) -> Made:
        """The settings that ``record`` wrote, here or in an earlier zokern, checked, but for whether a model's code is trusted.

        Args:
            record: option -> value.

        Raises:
            BadInput: a setting that is not known here, one that is missing, or what ``checked`` refuses.
        """
        known = options_of(cls)
        names = {old: name for name, option in known.items() for old in (name, *option.formerly)}
        for name in record:
            if name not in names:
                raise BadInput(f"{brief(name)} is no setting of this zokern{nearest(name, known)}: use the zokern that made it")
        values = {names[name]: value for name, value in record.items()}
        for name in known:
            if name in cls._own() and name not in (*values, *ADDED):
                raise BadInput(f"{name!r} is missing: use the zokern that made it")
        settings: Any = cls.flat(values | {"trust_remote_code": False}).checked()
        former = {name: value for name, value in settings._formerly().items() if name not in values}
        return cast(Made, replace(settings, optimizer_settings=former | settings.optimizer_settings))

    def _formerly(self) -> dict[str, Any]:
        """Settings of the optimizer that an earlier zokern did not have, and so did not record, with what they were then."""
        takes = self.zeroth_class.declared() if self.zeroth_class else {}
        return {name: setting.formerly for name, setting in takes.items() if setting.formerly is not None}


def _unset(value: Any, setting: Setting | None) -> bool:
    """Whether a value stands for none, as in a file that names every option."""
    return value in (None, (), []) or value is False and not (setting and setting.default)


def _of_kind(name: str, value: Any, setting: Setting) -> Any:
    value = fit(title(name), value, HINTS[setting.kind])
    if setting.choices:
        choose(name, value, setting.choices)
        return value
    try:
        setting.check(name, value, "")
    except ValueError:
        raise BadInput(f"{title(name)} {shown(value)}: pass {setting.cure}") from None
    return value


def free(name: str) -> str:
    """The name, or the first of name-2, name-3, ... that is not there."""
    return next(free for n in count(1) if not Path(free := name if n == 1 else f"{name}-{n}").exists())
