"""A run that was recorded: read, kept, saved, and made again."""

import os
from pathlib import Path

import numpy as np

from ..errors import BadInput, first_line, need
from .replay import MARKS, replay
from .steps import Steps
from .text import header_line, parse_header, parse_step, step_line


class Trajectory:
    """A run: what it began with, and what each of its steps was decided by.

    Attributes:
        header: dict: noise_spec, version, optimizer, groups (settings), parameters ([name, shape, dtype, hash]), fingerprint, notes.
        steps: a sequence of ``Step``: readings, and the settings that changed.
        torn: whether the log's last line was cut off, as by a process that was killed, and left out.
        path, size: where it was read from, and bytes there. None for one that was not read.
    """

    def __init__(self, header: dict, steps: Steps, torn: bool = False, path: Path | None = None, size: int | None = None):
        self.header, self.steps, self.torn, self.path, self.size = header, steps, torn, path, size

    def __len__(self):
        return len(self.steps)

    @classmethod
    def read(cls, path) -> "Trajectory":
        """A log, or in .safetensors what ``save`` made of it.

        Raises:
            BadInput (a ValueError): no such log, with the line; OSError: no such file.
        """
        path = Path(path)
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            return cls(*_unpacked(path, data), False, path, len(data))
        *lines, rest = data.split(b"\n")
        if not lines:
            raise BadInput(f"{path}, line 1 is cut off or missing: the run ended before its first step")
        header, crc = parse_header(path, lines[0])
        steps = Steps()
        for step, line in enumerate(lines[1:]):
            readings, changes, crc = parse_step(path, step + 2, line, step, crc)
            steps.append(readings, changes)
        return cls(header, steps, bool(rest), path, len(data) - len(rest))

    def save(self, path) -> None:
        """Write all of it to a new file, or over one: .safetensors, or .jsonl as it was recorded. It appears whole or not at all.

        Raises:
            BadInput: another suffix, or safetensors is not installed. OSError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".safetensors", ".jsonl"):
            raise BadInput(f"path={str(path)!r}: pass a name in .safetensors or .jsonl")
        data = self._packed() if path.suffix == ".safetensors" else self._text().encode()
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_bytes(data)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def losses(self) -> np.ndarray:
        """What each step returned: the mean of its losses, float64 [steps]; NaN where one was not finite."""
        counts, readings = self.steps.counts(), np.array(self.steps.readings)
        starts, means = np.cumsum(counts) - counts, np.full(len(counts), np.nan)
        for count in np.unique(counts):
            (mine,) = np.nonzero(counts == count)
            means[mine] = readings[starts[mine, None] + self._losses_of(int(count))].mean(1)
        return means

    def replay(self, params, step: int | None = None, together: int = 96, progress=None):
        """Bring base weights, in place, to where the run stood after ``step`` steps, bit for bit, without a forward pass.

        Parameters are matched by name where the log has names, else by order; what a model has beside them is left alone. Everything is
        checked before anything moves, the values of the base weights too. Settings that changed in the run change again.

        With defer=True, the weights after a step are those that ``flush`` brings them to.

        Args:
            params: a model, a dict or list of named parameters, parameters, or groups; parameters, or plain tensors.
            step: in [0, len(self)]. Default None: all.
            together: passes over the weights that are made in one read and write; without influence on the result. anchor="copy" and the
                fused rules make theirs one by one. Default 96.
            progress: None, or called with the number of steps done, after each. What it raises ends the replay, with the weights at that
                step.
        Returns:
            The optimizer at that step, with its state: training can go on from there. An interrupt that comes from elsewhere leaves the
            weights at no step of the run: begin again from the base weights.
        Raises:
            BadInput (a ValueError): what differs between the log and params, or step or together out of range. A step of the run beside
            which something else moved the weights: they are then at the step before it.
        """
        return replay(self, params, step, together, progress)

    def _losses_of(self, count):
        """Places of the losses among the readings of a step."""
        name, group = self.header["optimizer"], self.header["groups"][0]
        if name == "ForwardGradient":
            return np.arange(0, count, 2)
        if name == "MeZOSVRG":
            return np.arange(2)
        if name == "ZOConservative":  # its candidates come last
            return np.arange(count - (2 if group["estimator"] == "one-sided" else 3))
        return np.arange(count)

    def _text(self) -> str:
        line = header_line(self.header)
        _, crc = parse_header(self.path, line[:-1].encode())
        order = [*self.header["groups"][0], *MARKS]
        text = [line]
        for i, (readings, changes) in enumerate(self.steps):
            line, crc = step_line(i, readings, {name: changes[name] for name in order if name in changes}, crc)
            text.append(line)
        return "".join(text)

    def _packed(self) -> bytes:
        need("safetensors")
        from safetensors.numpy import save

        return save(self.steps.arrays(), {"header": header_line(self.header)})


def _unpacked(path, data):
    need("safetensors")
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get("header", "")
        if not text:
            raise BadInput(f"{path} holds no trajectory: pass what Trajectory.save wrote")
        return parse_header(path, text.rstrip("\n").encode())[0], Steps.of(load(data))
    except BadInput:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({first_line(error)}): pass what Trajectory.save wrote") from None
