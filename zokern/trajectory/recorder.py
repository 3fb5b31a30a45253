"""The log of a run, written as it goes: the header at once, then one line a step."""

import json
import os
import warnings
import weakref
from pathlib import Path

import torch

from ..errors import BadInput
from ..optim import ZerothOrder
from .header import check_base, check_frozen, class_of, collapsed, header_of, listed, names, plain, same_run, table
from .reader import Reader, check_change
from .standing import Seen, standing, why_disturbed
from .text import header_line, step_line


class Log:
    """The file, and the steps that are not in it yet. Whole lines are in the file, or none of them.

    Args:
        path: of the file, of which the first ``size`` bytes are kept.
        reader: that has read them.
    """

    def __init__(self, path: Path, size: int, reader: Reader):
        self.path, self.size, self.header = path, size, reader.header
        self.crc, self.written, self.now = reader.crc, reader.steps, reader.now
        self.waiting, self._torn = [], False
        self.owner, self.file = os.getpid(), os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.ftruncate(self.file, size)

    @property
    def step(self) -> int:
        """The next one to be taken."""
        return self.written + len(self.waiting)

    def append(self, text: str, crc: int, now: dict) -> None:
        """Write whole lines, after which nothing waits: ``crc`` is that of the last, ``now`` the settings that it leaves.

        Raises:
            OSError: there is no room, or another fault, with the path. Of these lines, none is left in the file.
        """
        data = memoryview(text.encode())
        size, step = self.size + len(data), self.step
        if self._torn:  # an interrupt came before all of what was written counted
            os.ftruncate(self.file, self.size)
        self._torn = True
        try:
            while data:
                data = data[os.write(self.file, data) :]
        except BaseException as error:
            os.ftruncate(self.file, self.size)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            raise
        # Nothing is called here, so that an interrupt comes before all of it or after.
        self.size, self.crc, self.now, self.written, self.waiting, self._torn = size, crc, now, step, [], False

    def take(self, measurements, settings: dict, marks: dict) -> None:
        """A step, for the next ``flush``. settings: name -> [one value a group]."""
        self.waiting.append((measurements, settings, marks))

    def flush(self) -> None:
        """Write what waits. Reading it waits for the device, once. Errors as in ``append``: then it goes on waiting."""
        if not self.waiting or not self._mine:
            return
        read = _fetched(self.waiting)
        text, crc, now = [], self.crc, dict(self.now)
        for step, (measurements, settings, marks) in enumerate(self.waiting, self.written):
            settings = {name: collapsed([plain(name, read(v)) for v in values]) for name, values in settings.items()}
            changes = {name: value for name, value in settings.items() if now[name] != value}
            for name, value in changes.items():
                try:
                    check_change(self.header, name, value)
                except ValueError as error:
                    raise BadInput(f"step {step} cannot be logged in {self.path}, which ends before it: {error}") from None
            now.update(changes)
            line, crc = step_line(step, [read(reading) for reading in measurements], changes | marks, crc)
            text.append(line)
        self.append("".join(text), crc, now)

    def close(self) -> None:
        if not self._mine:
            return
        try:
            self.flush()
        finally:
            os.close(self.file)
            self.file = None

    @property
    def _mine(self):
        """Whether the file is open, and not that of the process that this one was forked from."""
        return self.file is not None and self.owner == os.getpid()


class Recorder:
    """Writes a line to the log after each step of an optimizer, until it is closed. A context manager. Made by ``record``."""

    def __init__(self, optimizer: ZerothOrder, log: Log, every: int, flushed: bool, why: str | None = None):
        self.log, self.every, self._flushed, self._why, self._warned = log, every, flushed, why, False
        self._optimizer, self._table, self._layout = weakref.ref(optimizer), table(listed(optimizer)), optimizer.layout
        self._names, self._seen = names(optimizer), Seen.of(optimizer)
        self._hook = optimizer.register_step_post_hook(self._after)
        self._end = weakref.finalize(self, log.close)  # also when Python exits
        optimizer.logged = self._standing

    @property
    def path(self) -> Path:
        return self.log.path

    def flush(self) -> None:
        """Write the steps that wait for ``every``. Waits for the device.

        Raises:
            OSError: there is no room, or another fault, with the path. What was to be written waits for the next time.
        """
        self.log.flush()

    def close(self) -> None:
        """Flush, and record no more. Errors as in ``flush``."""
        self._hook.remove()
        self._end.detach()
        self.log.close()
        optimizer = self._optimizer()
        if optimizer is not None and optimizer.param_groups[0]["step"] != self.log.step:
            warnings.warn(
                f"{self.path} has {self.log.step} steps, the optimizer is at step {optimizer.param_groups[0]['step']}: only step() is "
                "recorded; apply(), zokern.graph and Hybrid's steps are not",
                RuntimeWarning,
                stacklevel=2,
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _after(self, optimizer, *_):
        step = optimizer.param_groups[0]["step"] - 1
        if step == self.log.step - 1:
            return  # a step that moved nothing, or the second of two hooked steps of a class and its base
        if step != self.log.step:
            raise RuntimeError(
                f"the optimizer made step {step} where {self.path} expects step {self.log.step}: steps by apply() or zokern.graph are not "
                "recorded, nor is one that was interrupted after it had moved the weights; after load_state_dict, close this recorder and "
                "pass zokern.record(..., resume=True)"
            )
        if optimizer.layout is not self._layout:
            if self._table != table(listed(optimizer)):
                raise RuntimeError(f"parameters were added at step {step}, for which a log has no place: close {self.path} before")
            self._layout = optimizer.layout
        measurements, settings = (
            optimizer.measurements,
            {name: [_kept(group[name]) for group in optimizer.param_groups] for name in self._names},
        )
        self.log.take(measurements, settings, self._marks(optimizer, step))
        optimizer.logged = self._standing  # load_state_dict puts what was saved there
        if len(self.log.waiting) >= self.every:
            self.log.flush()

    def _marks(self, optimizer, step) -> dict:
        """What else there is to say of a step."""
        before, self._seen = self._seen, Seen.of(optimizer)
        why, self._why = self._why or before.why(self._seen, step), None
        # load_state_dict makes other PerturbedWeights, and flushes
        flushed = self._flushed or self._seen.flushes > before.flushes or (step and self._seen.weights is not before.weights)
        self._flushed = False
        if why and not self._warned:
            self._warned = True
            warnings.warn(
                f"{why} between steps {step - 1} and {step}: from {self.path} the weights can be made again up to step {step}, not later",
                RuntimeWarning,
                stacklevel=2,
            )
        return {name: True for name, is_so in (("flushed", flushed), ("disturbed", why)) if is_so}

    def _standing(self, optimizer) -> dict:
        """What a state that is saved now says of the log."""
        self.log.flush()
        why = self._why or self._seen.why(Seen.of(optimizer), self.log.step)
        return standing(optimizer, self.log.written, self.log.crc, why is not None)


def record(optimizer: ZerothOrder, path, notes: dict | None = None, every: int = 1, resume: bool = False, model=None) -> Recorder:
    """Write a log of a run, from which ``zokern.Trajectory`` makes its weights again at any step, bit for bit.

    Registers a step hook: ``step(closure)`` and ``measure`` with ``step()`` are recorded; what was measured before is dropped. Of several
    processes that train together, let one record: their optimizers take the same steps. A line reaches the operating system at once, so
    that it survives the process.

    Args:
        optimizer: any of zokern's but Hybrid, or a wrapper that has it as ``.optimizer``; at step 0, without state.
        path: of the log, which is new or empty; JSON lines (docs/trajectories.md).
        notes: anything for the header that JSON can hold. Default None: {}.
        every: steps between writes. Each waits for the device once, and what was not written is lost with the process; ``flush``,
            ``close`` and Python's exit write it. Default 1.
        resume: go on with the log at the optimizer's step, after ``load_state_dict``: lines of that step and later ones are dropped. The
            weights must be those that the state was saved with, while this log was recorded or after; where the state does not say, the
            log can be followed up to there. At step 0 the log may also be missing. Default False.
        model: the torch.nn.Module that the parameters are of: digests of its other weights go into the header, and a replay into a
            module, or a resumed run, is refused over others. Default None: they are not looked at.
    Returns:
        The Recorder. ``close`` it, or leave its ``with`` block, when the run is done.
    Raises:
        BadInput (a ValueError): the path holds something, or cannot be resumed, with what differs. Nothing is changed then.
        TypeError: an optimizer that cannot be replayed; notes that JSON cannot hold. OSError: the file cannot be written.
    """
    while not isinstance(optimizer, ZerothOrder) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    class_of(optimizer)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise BadInput(f"every={every!r}: pass an integer >= 1")
    try:
        notes = json.loads(json.dumps({} if notes is None else notes, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"notes cannot be written as JSON ({error}): pass numbers, strings, lists and dicts") from None
    path = Path(path)
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is no file: pass the name of one")
    held = path.read_bytes() if path.exists() else b""
    if held and not resume:
        raise BadInput(f"{path} exists and is not empty: pass another path, or resume=True to go on with it")
    optimizer.flush()
    optimizer._measured, step = None, optimizer.param_groups[0]["step"]
    if resume and (step or b"\n" in held):
        return _resumed(optimizer, path, held, step, every, model)
    if step or any(optimizer.state.values()):
        state = f"at step {step}" if step else "at step 0 and has state"
        raise BadInput(f"the optimizer is {state}: record from a new optimizer on, or pass resume=True with the log of its run")
    line = header_line(header_of(optimizer, notes, model))
    reader = Reader(path, line[:-1].encode())
    log = Log(path, 0, reader)
    try:
        log.append(line, reader.crc, reader.now)
    except BaseException:
        log.close()
        raise
    return Recorder(optimizer, log, every, flushed=False)


def _resumed(optimizer, path, held, step, every, model):
    lines = held.split(b"\n")[:-1]  # behind the last one is nothing, or a torn line
    if not lines:
        raise BadInput(f"{path} holds no run, the optimizer is at step {step}: pass the log of its run")
    reader = Reader(path, lines[0])
    for line in lines[1 : step + 1]:
        reader.step(line)
    if reader.steps < step:
        raise BadInput(f"{path} ends after {reader.steps} steps, the optimizer is at step {step}: resume from an earlier state")
    same_run(reader.header, optimizer, reader.now, path)
    check_frozen(reader.header, model, listed(optimizer), path)
    why = None
    if step:
        why = why_disturbed(optimizer, path, step, reader.crc)
    else:
        check_base(reader.header, listed(optimizer), path)
    size = sum(map(len, lines[: step + 1])) + step + 1
    return Recorder(optimizer, Log(path, size, reader), every, flushed=bool(step) and optimizer.leaves_pending, why=why)


def _kept(value):
    """A setting as it is now, whatever becomes of it."""
    return value.clone() if isinstance(value, torch.Tensor) else value


def _fetched(waiting):
    """-> function that gives a tensor's value as a number: those of measurements at once, where they are on a device."""
    measurements = [reading for given, *_ in waiting for reading in given]
    known = dict(zip(map(id, measurements), torch.stack(measurements).tolist())) if measurements else {}
    return lambda value: known.get(id(value), value)
