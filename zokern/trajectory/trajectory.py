"""A run that was recorded: read from its log, and replayed."""

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput
from ..estimators.kinds import Kind
from ..optim import ZerothOrder
from .header import logged_class
from .reader import Reader
from .replay import Progress, replay
from .steps import Steps
from .text import Header


class Trajectory:
    """A run: what it began with, and what each of its steps was decided by. ``read`` makes it from a log.

    Attributes:
        header: dict: noise_spec, version, optimizer, groups (settings), parameters ([name, shape, dtype, hash]), fingerprint, notes.
        steps: a sequence of ``Step``: measurements, and the settings that changed.
        checksums: of the header and of each step's line, chained: array of unsigned integers.
        path: where it was read from.
        size: bytes there, without a line that was cut off.
        torn: whether the log's last line was cut off, as by a process that was killed, and left out.
    """

    def __init__(self, header: Header, steps: Steps, checksums: array, path: Path, size: int, torn: bool):
        self.header, self.steps, self.checksums, self.path, self.size, self.torn = header, steps, checksums, path, size, torn

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def read(cls, path: str | Path) -> "Trajectory":
        """Read a log, each line of which is checked.

        Args:
            path: of the log.

        Raises:
            BadInput: a ValueError: it is no log of a run, with the line.
            OSError: no such file.
        """
        path = Path(path)
        data = path.read_bytes()
        *lines, rest = data.split(b"\n")
        if not lines:
            raise BadInput(f"{path}, line 1 is cut off or missing: the run ended before its first step")
        reader, steps = Reader(path, lines[0]), Steps()
        checksums = array("L", [reader.crc])
        for line in lines[1:]:
            steps.append(*reader.step(line))
            checksums.append(reader.crc)
        return cls(reader.header, steps, checksums, path, len(data) - len(rest), bool(rest))

    def losses(self) -> np.ndarray:
        """What each step returned: the mean of its losses.

        Returns:
            float64 [steps]; NaN where one was not finite, or of a population where none was.
        """
        counts, measurements = np.diff(np.array(self.steps.ends, np.int64), prepend=0), np.array(self.steps.measurements)
        starts, means = np.cumsum(counts) - counts, np.full(len(counts), np.nan)
        cls = logged_class(self.header)
        losses = cls.losses_in(self.header["groups"][0])
        for count in np.unique(counts):
            (mine,) = np.nonzero(counts == count)
            these = measurements[starts[mine, None] + np.arange(count)[losses]]
            left = ~np.isnan(these) if cls.drops else np.ones_like(these, bool)
            with np.errstate(invalid="ignore"):
                means[mine] = np.where(left, these, 0).sum(1) / left.sum(1)
        return means

    def replay(
        self, params: Any, step: int | None = None, passes_per_sweep: int = 96, progress: Progress | None = None,
        perturbation: Kind | None = None,
    ) -> ZerothOrder:  # fmt: skip
        """Bring base weights, in place, to those after ``step`` steps of the run, bit for bit, without a forward pass.

        Parameters are matched by name where the log has names, else by order; other parts of a model are left alone. Everything is checked
        before anything moves, the values of the base weights too. Settings that changed in the run change again. With defer=True, the
        weights after a step are those that ``flush`` brings them to.

        Args:
            params: a model, a dict or list of named parameters, parameters, or groups; parameters, or plain tensors.
            step: in [0, len(self)]. Default None: all.
            passes_per_sweep: passes over the weights that are made in one read and write; without influence on the result. Those of
                anchor="copy" and of rules that are not linear in z are made one by one. Default 96.
            progress: called with the number of steps done, after each. What it raises ends the replay, with the weights at that step.
                Default None.
            perturbation: where theta is that is moved, of the kind that the run had: a ``zokern.engines.Pool``, at whose engines params are
                brought to that step. Default None: params itself.

        Returns:
            The optimizer at that step, with its state: training can go on from there, where params is the model also of streamed weights.
                An interrupt that comes from elsewhere leaves the weights at no step of the run: begin again from the base weights.

        Raises:
            BadInput: a ValueError: what differs between the log and params, or an argument out of range. Between two steps of the run
                something else changed the weights: they are then at the first of them.
            TypeError: ``params`` is one tensor, or holds what is none.
        """
        return replay(self, params, step, passes_per_sweep, progress, perturbation)
