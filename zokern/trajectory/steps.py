"""The steps of a run in columns: a million of them are a few tens of megabytes."""

import json
from array import array
from bisect import bisect_left
from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """One step.

    Attributes:
        readings: what it was decided by, in the order of evaluation; NaN for what was not finite.
        changes: name -> value of what is not as it was in the step before.
    """

    readings: tuple[float, ...]
    changes: dict


class Column:
    """The values of one name, and the steps that they came with. ``width``: 0, or how many numbers a value has."""

    def __init__(self, code, width):
        self.width, self.steps, self.values = width, array("q"), array(code)

    def append(self, step, value):
        self.steps.append(step)
        self.values.extend(value) if self.width else self.values.append(value)

    def at(self, step):
        """The value that came with a step; None where none did."""
        i = bisect_left(self.steps, step)
        if i == len(self.steps) or self.steps[i] != step:
            return None
        return self.values[i * self.width : (i + 1) * self.width].tolist() if self.width else self.values[i]


class Steps:
    """A sequence of ``Step``."""

    def __init__(self):
        self.readings, self.ends = array("d"), array("q")
        self.columns = {}  # (name, (type code, width)) -> Column
        self.others = {}  # step -> changes that are neither numbers nor lists of them

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, step: int) -> Step:
        if not -len(self) <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        step %= len(self)
        changes = {name: value for (name, *_), column in self.columns.items() if (value := column.at(step)) is not None}
        changes.update(self.others.get(step, {}))
        return Step(tuple(self.readings[self.ends[step - 1] if step else 0 : self.ends[step]]), changes)

    def append(self, readings, changes) -> None:
        step = len(self.ends)
        self.readings.extend(readings)
        self.ends.append(len(self.readings))
        for name, value in changes.items():
            if (kind := _kind(value)) is None:
                self.others.setdefault(step, {})[name] = value
                continue
            if (name, kind) not in self.columns:
                self.columns[name, kind] = Column(*kind)
            self.columns[name, kind].append(step, value)

    def counts(self) -> np.ndarray:
        """How many readings each step has, int64 [steps]."""
        return np.diff(np.array(self.ends, np.int64), prepend=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name, readings in float32 where that loses nothing."""
        readings = np.array(self.readings, np.float64)
        with np.errstate(over="ignore"):
            small = readings.astype(np.float32)
        arrays = {"readings": small if np.array_equal(small, readings, equal_nan=True) else readings, "counts": self.counts()}
        for (name, (code, width)), column in self.columns.items():
            title = f"{name}.{code}{width}"
            arrays[f"{title}.steps"] = np.array(column.steps, np.int64)
            arrays[f"{title}.values"] = np.array(column.values, code).reshape(-1, width) if width else np.array(column.values, code)
        others = json.dumps(sorted(self.others.items()), separators=(",", ":"))
        arrays["others"] = np.frombuffer(others.encode(), np.uint8)
        return arrays

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Steps":
        """What ``arrays`` gave.

        Raises:
            KeyError, ValueError: arrays of another making.
        """
        steps = cls()
        steps.readings = array("d", arrays["readings"].astype(np.float64).tobytes())
        steps.ends = array("q", np.cumsum(arrays["counts"], dtype=np.int64).tobytes())
        if steps.ends and steps.ends[-1] != len(steps.readings):
            raise ValueError(f"{len(steps.readings)} readings, where the counts add up to {steps.ends[-1]}")
        for title in (key.removesuffix(".values") for key in arrays if key.endswith(".values")):
            name, kind = title.rsplit(".", 1)
            column = Column(kind[0], int(kind[1:]))
            column.steps = array("q", arrays[f"{title}.steps"].astype(np.int64).tobytes())
            column.values = array(kind[0], arrays[f"{title}.values"].tobytes())
            steps.columns[name, (column.values.typecode, column.width)] = column
        steps.others = {int(step): changes for step, changes in json.loads(arrays["others"].tobytes())}
        return steps


def _kind(value):
    """The column that a value belongs in: (type code, width); None where none takes it as it is."""
    if type(value) is float:
        return "d", 0
    if type(value) is int and abs(value) < 1 << 63:
        return "q", 0
    if type(value) is list and value and all(type(x) is float for x in value):
        return "d", len(value)
    return None
