"""The first line of a log: the optimizer, its settings, and the parameters that the run began with."""

import re
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import BadInput
from ..memory import DTYPES
from ..noise import SPEC_VERSION
from ..optim import ZerothOrder, logged_as, optimizers
from ..optim.settings import OF_PARAMETERS, PER_PARAMETER
from ..version import __version__
from .json_settings import from_json, merged, to_json
from .text import FORMAT, Header, shown
from .weights import check_table, digests, frozen, parameters_of, table

DEEP = 50  # levels of lists and dicts in the notes
TRAINED = {str(dtype).removeprefix("torch.") for dtype in DTYPES}


def header_of(optimizer: ZerothOrder, notes: Any, model: torch.nn.Module | None = None) -> Header:
    """The header of a run that begins now. Reads every parameter once, piece by piece, and what else a model has."""
    named = parameters_of(optimizer)
    return {
        "zokern": "trajectory",
        "format": FORMAT,
        "noise_spec": SPEC_VERSION,
        "version": __version__,
        "optimizer": replayable_class(optimizer).__name__,
        "groups": groups_of(optimizer),
        "parameters": [[*row, own] for row, own in zip(table(named), digests(p for _, p in named))],
        "fingerprint": optimizer.layout.fingerprint(),
        "frozen": {} if model is None else frozen(model, named),
        "notes": notes,
    }


def replayable_class(optimizer: Any) -> type[ZerothOrder]:
    """The registered class that an optimizer is of, or of a subclass of which that changes no step.

    Raises:
        TypeError: there is none, or its steps cannot be replayed.
    """
    cls = type(optimizer)
    known = next((c for c in cls.__mro__ if logged_as(c.__name__) is c), None)
    if known is None:
        what = "is not registered (zokern.optim.register)"
        if not getattr(cls, "replayable", True):
            what = "declares that its steps are not decided by its measurements alone (replayable = False)"
        kinds = [c.__name__ for c in optimizers().values() if c.replayable]
        raise TypeError(f"optimizer is a {cls.__name__}, which {what}: pass one of {', '.join(kinds)}")
    own = [name for name in known.decide_steps if getattr(cls, name, None) is not getattr(known, name, None)]
    if own:
        raise TypeError(
            f"optimizer is a {cls.__name__}, a {known.__name__} with a {own[0]} of its own, which no replay knows: pass a {known.__name__}"
        )
    return cast(type[ZerothOrder], known)


def logged_class(header: Header) -> type[ZerothOrder]:
    """The class of the optimizer whose log it is; the header is checked."""
    return cast(type[ZerothOrder], logged_as(header["optimizer"]))


def logged_settings(optimizer: ZerothOrder) -> list[str]:
    """Names of the settings that the constructor takes and the groups hold. torch and its schedulers add others to groups."""
    return [name for name in replayable_class(optimizer).declared() if name in optimizer.param_groups[0]]


def groups_of(optimizer: ZerothOrder) -> list[dict[str, Any]]:
    """The settings of each group, as a header has them: "params" is how many parameters there are."""
    names = logged_settings(optimizer)
    return [
        {"params": len(group["params"])}
        | {name: to_json(name, group[name]) for name in names}
        | {name: list(group[name]) for name in PER_PARAMETER if name in group}
        for group in optimizer.param_groups
    ]


def settings_of(header: Header) -> dict[str, Any]:
    """name -> value at step 0, as step lines have it."""
    first, *_ = groups = header["groups"]
    return {name: merged([group[name] for group in groups]) for name in first if name not in ("params", *PER_PARAMETER)}


def check_same_run(header: Header, optimizer: ZerothOrder, now: dict[str, Any], path: Path) -> None:
    """Refuse an optimizer that is not the one of the log.

    Args:
        now: the settings as the log's last line leaves them, by name.

    Raises:
        BadInput: what differs.
    """
    cls, groups, other = replayable_class(optimizer), groups_of(optimizer), f"{path} is the log of another run"

    def same(what: str, theirs: Any, ours: Any) -> None:
        if theirs != ours:
            raise BadInput(f"{other}: {what} is {theirs!r} there and {ours!r} here: pass the optimizer of that run")

    same("the optimizer", header["optimizer"], cls.__name__)
    check_table(header, parameters_of(optimizer), path)
    same("the number of parameters a group", [g["params"] for g in header["groups"]], [g["params"] for g in groups])
    for name in logged_settings(optimizer):
        if cls.declared()[name].shared:
            same(name, now[name], merged([g[name] for g in groups]))
    for name in PER_PARAMETER:
        if [g.get(name) for g in header["groups"]] != [g.get(name) for g in groups]:
            raise BadInput(f"{other}: {name!r} of the parameters differs: pass the optimizer of that run")
    same("the layout's fingerprint", header["fingerprint"], optimizer.layout.fingerprint())


def _whole(x: Any) -> bool:
    return type(x) is int and 0 <= x < 1 << 63


def _hex(x: Any) -> bool:
    return isinstance(x, str) and re.fullmatch("[0-9a-f]{16}", x) is not None


def _list(x: Any, holds: Any) -> bool:
    return type(x) is list and all(map(holds, x))


def _row(x: Any) -> bool:
    """[name, shape, dtype, digest] of a parameter."""
    match x:
        case [str(), [*shape], str(dtype), digest]:
            return dtype in TRAINED and len(shape) <= 64 and all(map(_whole, shape)) and _hex(digest)
    return False


def _nested(x: Any, levels: int) -> bool:
    """Whether there are at most so many levels of lists and dicts."""
    inside = x.values() if type(x) is dict else x if type(x) is list else None
    return inside is None or levels > 0 and all(_nested(y, levels - 1) for y in inside)


# What a header holds: (test, what it is to be).
HEADER = {
    "version": (lambda x: isinstance(x, str), "a text"),
    "optimizer": (lambda x: isinstance(x, str) and logged_as(x), "the class of an optimizer that is registered (zokern.optim.register)"),
    "groups": (lambda x: x and _list(x, lambda group: type(group) is dict), "a list of groups"),
    "parameters": (lambda x: _list(x, _row), "a list of [name, shape, dtype, 16 hex digits]"),
    "fingerprint": (_hex, "16 hex digits"),
    "frozen": (lambda x: type(x) is dict and all(map(_hex, x.values())), "16 hex digits for each name"),
    "notes": (lambda x: _nested(x, DEEP), f"at most {DEEP} levels deep"),
}


def check_header(header: Header) -> None:
    """
    Raises:
        ValueError: what is missing, or is not what it is to be.
    """
    for key, (holds, what) in HEADER.items():
        if key not in header and key != "frozen":  # which earlier logs lack
            raise ValueError(f"it lacks {key!r}")
        if key in header and not holds(header[key]):
            raise ValueError(f"{key}={shown(header[key])}: it is {what}")
    optimizer, groups, declared = header["optimizer"], header["groups"], logged_class(header).declared()
    settings = declared.keys() - OF_PARAMETERS
    known = settings | {"params"} | {name for name, (argument, _) in PER_PARAMETER.items() if argument in declared}
    for i, group in enumerate(groups):
        group.update({name: declared[name].formerly for name in settings - group.keys() if declared[name].formerly is not None})
        for name in group.keys() - known:
            raise ValueError(f"groups[{i}] has {name!r}, which is no setting of this zokern's {optimizer}")
        for name in sorted((settings | {"params"} | groups[0].keys()) - group.keys()):
            raise ValueError(f"groups[{i}] lacks {name!r}")
        if not _whole(group["params"]):
            raise ValueError(f"groups[{i}]: params={shown(group['params'])}: it is how many parameters there are")
        for name in settings:
            from_json(name, declared[name], group[name])
        for name, (_, setting) in PER_PARAMETER.items():
            if name in group and not (_list(group[name], setting.holds) and len(group[name]) == group["params"]):
                raise ValueError(f"groups[{i}]: {name}={shown(group[name])}: it is {setting.cure} for each parameter")
    if (count := sum(group["params"] for group in groups)) != len(header["parameters"]):
        raise ValueError(f"the groups have {count} parameters, and {len(header['parameters'])} are listed")
