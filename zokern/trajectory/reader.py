"""The log read line by line, each checked whole, for itself and against those before it, before anything of it is used."""

from pathlib import Path
from typing import Any

from ..errors import BadInput
from .header import check_header, logged_class, settings_of
from .json_settings import from_json, per_group
from .text import parse_header, parse_step, shown

MARKS = ("flushed", "disturbed")  # what a step line may hold beside settings


class Reader:
    """Goes through a log.

    Args:
        path: for messages.
        line: the first line.

    Attributes:
        header; crc: the checksum up to the newest line; steps: how many were read; now: the settings as the newest line leaves them.

    Raises:
        BadInput: the line is no header that this zokern can use.
    """

    def __init__(self, path: Path, line: bytes):
        self.path, self.steps = path, 0
        self.header, self.crc = parse_header(path, line)
        try:
            check_header(self.header)
        except ValueError as error:
            raise BadInput(f"{path}, line 1: {error}; use the zokern that wrote it, or restore it") from None
        self.now = settings_of(self.header)
        self._cls, first = logged_class(self.header), self.header["groups"][0]
        self._settings = {name: self._cls.declared()[name] for name in self.now}
        self._group = {name: from_json(name, setting, first[name]) for name, setting in self._settings.items()}
        self._blocks = len({b for g in self.header["groups"] for b in g.get("block", [0])})
        self._due: int | None = None  # how many measurements a step has, until a setting that all groups share changes

    def step(self, line: bytes) -> tuple[list[float], dict[str, Any]]:
        """-> (measurements, changes) of the next line.

        Raises:
            BadInput: it is not that line as it was written, or no step of such a run.
        """
        number = self.steps + 2
        measurements, changes, self.crc = parse_step(self.path, number, line, self.steps, self.crc)
        try:
            for name, value in changes.items():
                if name not in MARKS:
                    self._group[name] = self.check_change(name, value)
                    self.now[name] = value
                    if self._settings[name].shared:
                        self._due = None
                elif value is not True:
                    raise ValueError(f"{name}={shown(value)}: it is true, or not there")
            if len(measurements) != self._due or self._cls.full_batch:
                self._check_count(len(measurements))
        except ValueError as error:
            raise BadInput(f"{self.path}, line {number}: {error}; use the zokern that wrote it, or cut the log off before it") from None
        self.steps += 1
        return measurements, changes

    def check_change(self, name: str, value: Any) -> Any:
        """A setting that a step came with, of all groups or a list of one each. -> that of the first group, as the optimizer has it.

        Raises:
            ValueError: this optimizer has no such setting, or it cannot be that, or not from a step on.
        """
        setting, groups = self._settings.get(name), len(self.header["groups"])
        if setting is None:
            raise ValueError(f"{name!r} is no setting of this zokern's {self.header['optimizer']}")
        if type(value) is float and setting.kind is float and setting.holds(value):
            return value  # as a schedule changes it at every step
        if setting.kept:
            raise ValueError(f"{name}={shown(value)} is new in the middle of a run, which no {self.header['optimizer']} can follow")
        values = per_group(setting, value, groups)
        if len(values) != groups:
            raise ValueError(f"{name} has {len(values)} values for {groups} groups")
        first, *_ = [from_json(name, setting, own) for own in values]
        return first

    def _check_count(self, count: int) -> None:
        self._group["step"] = self.steps
        self._due = self._cls.measurements_in(self._group, self._blocks)
        while count != self._due and not self.steps and self._blocks > 1:  # a block may have no memory of its own
            self._blocks -= 1
            self._due = self._cls.measurements_in(self._group, self._blocks)
        if count != self._due:
            raise ValueError(f"{count} measurements, where a step of this {self.header['optimizer']} has {int(self._due)}")
