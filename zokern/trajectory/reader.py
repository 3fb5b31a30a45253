"""The log read line by line, each checked whole, for itself and against those before it, before anything of it is used."""

import re

from ..errors import BadInput
from ..layout import DTYPES
from ..optim import logged_as
from .header import expanded, restored, settings_of
from .text import parse_header, parse_step, shown

MARKS = ("flushed", "disturbed")  # of a step, beside its settings
DEEP = 50  # levels of lists and dicts in the notes
TRAINED = {str(dtype).removeprefix("torch.") for dtype in DTYPES}


def _text(x):
    return type(x) is str


def _whole(x):
    return type(x) is int and 0 <= x < 1 << 63


def _hex(x):
    return _text(x) and re.fullmatch("[0-9a-f]{16}", x) is not None


def _list(x, holds):
    return type(x) is list and all(map(holds, x))


def _row(x):
    """[name, shape, dtype, digest] of a parameter."""
    if type(x) is not list or len(x) != 4:
        return False
    name, shape, dtype, held = x
    return _text(name) and _list(shape, _whole) and len(shape) <= 64 and _text(dtype) and dtype in TRAINED and _hex(held)


def _nested(x):
    """Levels of lists and dicts."""
    inside = x.values() if type(x) is dict else x if type(x) is list else None
    return 0 if inside is None else 1 + max(map(_nested, inside), default=0)


# What a header holds: (test, what it is to be).
HEADER = {
    "version": (_text, "a text"),
    "optimizer": (lambda x: _text(x) and logged_as(x) is not None, "the class of an optimizer that is registered (zokern.optim.register)"),
    "groups": (lambda x: x and _list(x, lambda group: type(group) is dict), "a list of groups"),
    "parameters": (lambda x: _list(x, _row), "a list of [name, shape, dtype, 16 hex digits]"),
    "fingerprint": (_hex, "16 hex digits"),
    "frozen": (lambda x: type(x) is dict and all(map(_hex, x.values())), "16 hex digits for each name"),
    "notes": (lambda x: _nested(x) <= DEEP, f"at most {DEEP} levels deep"),
}
# What a group may hold one of for each parameter (OF_EACH): (the argument that it comes from, test, what it is to be).
EACH = {
    "block": ("blocks", _whole, "an integer >= 0"),
    "keep": ("sparsity", lambda x: type(x) in (int, float) and 2**-32 <= x <= 1, "a number in (0, 1]"),
}


class Reader:
    """Goes through a log.

    Args:
        path: for messages.
        line: the first line.
    Attributes:
        header; crc: of the newest line; steps: how many were read; now: the settings as the newest leaves them.
    Raises:
        BadInput: the line is no header that this zokern can use.
    """

    def __init__(self, path, line: bytes):
        self.path, self.steps = path, 0
        self.header, self.crc = parse_header(path, line)
        try:
            _check_header(self.header)
        except ValueError as error:
            raise BadInput(f"{path}, line 1: {error}; use the zokern that wrote it, or restore it") from None
        self.now = settings_of(self.header)
        first = self.header["groups"][0]
        self._cls = logged_as(self.header["optimizer"])
        self._group = {name: restored(self._cls, name, first[name]) for name in self.now}
        self._blocks, self._due = len({b for g in self.header["groups"] for b in g.get("block", [0])}), None

    def step(self, line: bytes) -> tuple[list[float], dict]:
        """-> (measurements, changes) of the next line.

        Raises:
            BadInput: it is not that line as it was written, or no step of such a run.
        """
        number = self.steps + 2
        measurements, changes, self.crc = parse_step(self.path, number, line, self.steps, self.crc)
        try:
            for name, value in changes.items():
                if name not in MARKS:
                    self._group[name] = check_change(self.header, name, value)
                    self.now[name] = value
                    if name in ("q", "estimator"):
                        self._due = None
                elif value is not True:
                    raise ValueError(f"{name}={shown(value)}: it is true, or not there")
            if len(measurements) != self._due or self._cls.full_batch:
                self._check_count(len(measurements))
        except ValueError as error:
            raise BadInput(f"{self.path}, line {number}: {error}; use the zokern that wrote it, or cut the log off before it") from None
        self.steps += 1
        return measurements, changes

    def _check_count(self, count):
        self._group["step"] = self.steps
        self._due = self._cls.measurements_in(self._group, self._blocks)
        while count != self._due and not self.steps and self._blocks > 1:  # a block may have no memory of its own
            self._blocks -= 1
            self._due = self._cls.measurements_in(self._group, self._blocks)
        if count != self._due:
            raise ValueError(f"{count} measurements, where a step of this {self.header['optimizer']} has {int(self._due)}")


def check_change(header: dict, name: str, value):
    """A setting that a step came with, of all groups or a list of one each. -> that of the first group, as the optimizer has it.

    Raises:
        ValueError: this optimizer has no such setting, or it cannot be that, or not from a step on.
    """
    groups, setting = header["groups"], logged_as(header["optimizer"]).declared().get(name)
    if setting is not None and type(value) is float and setting.kind is float and setting.holds(value):
        return value  # as a schedule changes it at every step
    if name not in groups[0] or setting is None:
        raise ValueError(f"{name!r} is no setting of this zokern's {header['optimizer']}")
    if setting.kept:
        raise ValueError(f"{name}={shown(value)} is new in the middle of a run, which no {header['optimizer']} can follow")
    values = expanded(value, groups[0][name], len(groups))
    if len(values) != len(groups):
        raise ValueError(f"{name} has {len(values)} values for {len(groups)} groups")
    first, *_ = [_setting(header["optimizer"], name, own) for own in values]
    return first


def _setting(optimizer, name, value):
    """A setting of one group, as the optimizer has it, from JSON."""
    cls = logged_as(optimizer)
    setting = cls.declared()[name]
    try:
        made = restored(cls, name, value)
        good = setting.holds(made)
    except (TypeError, ValueError, OverflowError, RuntimeError, KeyError):
        good = False
    if not good:
        raise ValueError(f"{name}={shown(value)}: it is {setting.cure}")
    return made


def _check_header(header):
    """Raises ValueError: what is wrong."""
    for key, (holds, what) in HEADER.items():
        if key not in header:
            if key == "frozen":
                continue  # of earlier logs
            raise ValueError(f"it lacks {key!r}")
        try:
            good = holds(header[key])
        except RecursionError:
            good = False
        if not good:
            raise ValueError(f"{key}={shown(header[key])}: it is {what}")
    optimizer, groups, rows = header["optimizer"], header["groups"], header["parameters"]
    arguments = logged_as(optimizer).declared()
    settings = arguments.keys() - {argument for argument, *_ in EACH.values()}
    for i, group in enumerate(groups):
        for name in group.keys() - settings - {"params"} - {own for own, (argument, *_) in EACH.items() if argument in arguments}:
            raise ValueError(f"groups[{i}] has {name!r}, which is no setting of this zokern's {optimizer}")
        for name in sorted((settings | {"params"} | groups[0].keys()) - group.keys()):
            raise ValueError(f"groups[{i}] lacks {name!r}")
        if not _whole(group["params"]):
            raise ValueError(f"groups[{i}]: params={shown(group['params'])}: it is how many parameters there are")
        for name in settings:
            _setting(optimizer, name, group[name])
        for name in EACH.keys() & group.keys():
            _, holds, what = EACH[name]
            if not (_list(group[name], holds) and len(group[name]) == group["params"]):
                raise ValueError(f"groups[{i}]: {name}={shown(group[name])}: it is {what} for each parameter")
    if sum(group["params"] for group in groups) != len(rows):
        raise ValueError(f"the groups have {sum(group['params'] for group in groups)} parameters, and {len(rows)} are listed")
