"""The steps of a run: their lines, each parsed again when it is asked for, and all measurements in one array."""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .text import parse_step


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

    Args:
        path: of the log, for messages.
        crc: the checksum of its header.
    Attributes:
        checksums: up to the header and up to each step.
        measurements: of all steps, one after the other.
        changed: the names of all that steps changed.
    """

    def __init__(self, path: Path, crc: int):
        self.path, self.checksums, self.measurements = path, array("L", [crc]), array("d")
        self.changed: set[str] = set()
        self._lines: list[bytes] = []
        self._ends = array("q")  # of each step's measurements

    def append(self, line: bytes, crc: int, measurements: list[float], changes: dict[str, Any]) -> None:
        self._lines.append(line)
        self.checksums.append(crc)
        self.measurements.extend(measurements)
        self._ends.append(len(self.measurements))
        self.changed.update(changes)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, step: int) -> Step:
        if not -len(self) <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        step %= len(self)
        measurements, changes, _ = parse_step(self.path, step + 2, self._lines[step], step, self.checksums[step])
        return Step(tuple(measurements), changes)

    def __iter__(self) -> Iterator[Step]:
        return map(self.__getitem__, range(len(self)))

    def counts(self) -> np.ndarray:
        """How many measurements each step has, int64 [steps]."""
        return np.diff(np.array(self._ends, np.int64), prepend=0)
