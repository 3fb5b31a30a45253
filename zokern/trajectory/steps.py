"""The steps of a run: their measurements in one array, and by name what changed at which of them."""

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One step.

    Attributes:
        measurements: what it was decided by, in the order of evaluation; NaN for what was not finite.
        changes: name -> value of what is not as it was in the step before.
    """

    measurements: tuple[float, ...]
    changes: dict[str, Any]


class Steps:
    """A sequence of ``Step``.

    Attributes:
        measurements (array[float]): of all steps, one after the other.
        ends (array[int]): how many measurements there are up to the end of each step.
        changes: name -> {step: value that it came with}.
    """

    def __init__(self) -> None:
        self.measurements, self.ends = array("d"), array("q")
        self.changes: dict[str, dict[int, Any]] = {}

    def append(self, measurements: list[float], changes: dict[str, Any]) -> None:
        """Add a step, by its ``measurements`` and the ``changes`` of settings that it came with."""
        step = len(self.ends)
        self.measurements.extend(measurements)
        self.ends.append(len(self.measurements))
        for name, value in changes.items():
            self.changes.setdefault(name, {})[step] = value

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, step: int) -> Step:
        if not -len(self) <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        step %= len(self)
        begin, end = self.ends[step - 1] if step else 0, self.ends[step]
        return Step(tuple(self.measurements[begin:end]), {name: values[step] for name, values in self.changes.items() if step in values})

    def __iter__(self) -> Iterator[Step]:
        return map(self.__getitem__, range(len(self)))
