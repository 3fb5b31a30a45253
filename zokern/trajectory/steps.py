"""The steps of a run in columns: a million of them are a few tens of megabytes."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

_FLOAT = "d", 0  # the column of most


class Step(NamedTuple):
    """One step.

    Attributes:
        measurements: what it was decided by, in the order of evaluation; NaN for what was not finite.
        changes: name -> value of what is not as it was in the step before.
    """

    measurements: tuple[float, ...]
    changes: dict[str, Any]


class Column:
    """The values of one name, and the steps that they came with. ``width``: 0, or how many numbers a value has."""

    def __init__(self, code: str, width: int):
        self.width, self.steps, self.values = width, array("q"), array(code)

    def append(self, step: int, value: Any) -> None:
        self.steps.append(step)
        self.values.extend(value) if self.width else self.values.append(value)

    def at(self, step: int) -> Any:
        """The value that came with a step; None where none did."""
        i = bisect_left(self.steps, step)
        if i == len(self.steps) or self.steps[i] != step:
            return None
        return self.values[i * self.width : (i + 1) * self.width].tolist() if self.width else self.values[i]


class Steps:
    """A sequence of ``Step``."""

    def __init__(self) -> None:
        self.measurements, self.ends = array("d"), array("q")
        self.columns: dict[tuple[str, tuple[str, int]], Column] = {}  # by name and (type code, width)
        self.others: dict[int, dict[str, Any]] = {}  # step -> changes that are neither numbers nor lists of them

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Step]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, step: int) -> Step:
        if not -len(self) <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        step %= len(self)
        changes = {name: value for (name, *_), column in self.columns.items() if (value := column.at(step)) is not None}
        changes.update(self.others.get(step, {}))
        return Step(tuple(self.measurements[self.ends[step - 1] if step else 0 : self.ends[step]]), changes)

    def append(self, measurements: Iterable[float], changes: dict[str, Any]) -> None:
        step, own = len(self.ends), self.measurements
        own.extend(measurements)
        self.ends.append(len(own))
        for name, value in changes.items():
            if (kind := _FLOAT if type(value) is float else _kind(value)) is None:
                self.others.setdefault(step, {})[name] = value
                continue
            if (column := self.columns.get((name, kind))) is None:
                column = self.columns[name, kind] = Column(*kind)
            column.append(step, value)

    def counts(self) -> np.ndarray:
        """How many measurements each step has, int64 [steps]."""
        return np.diff(np.array(self.ends, np.int64), prepend=0)


def _kind(value: Any) -> tuple[str, int] | None:
    """The column that a value belongs in: (type code, width); None where none takes it as it is."""
    if type(value) is int and abs(value) < 1 << 63:
        return "q", 0
    if type(value) is list and value and all(type(x) is float for x in value):
        return "d", len(value)
    return None
