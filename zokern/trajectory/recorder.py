"""The log of a run, written as it goes: the header at once, then one line a step."""

import json
import os
import warnings
import weakref
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed

from ..errors import BadInput
from ..optim import ClosureOptimizer, ZerothOrder
from ..shards import is_sharded, local, processes
from .header import check_same_run, header_of, logged_settings, replayable_class
from .json_settings import merged, to_json
from .position import Writes, check_position, position_of
from .reader import Reader
from .text import header_line, step_line
from .weights import check_base, check_frozen, parameters_of, table

Waiting = tuple[list[torch.Tensor], dict[str, list], dict[str, bool]]  # a step: measurements, settings (one value a group), marks


class Log:
    """The file, and the steps that are not in it yet. Whole lines are in the file, or none of them.

    Args:
        path: of the file, of which the first ``size`` bytes are kept.
        reader: that has read them.
        writes: False where another process writes the file, and this one comes to the same lines and checksums.
    """

    def __init__(self, path: Path, size: int, reader: Reader, writes: bool = True):
        self.path, self.size, self._check_change = path, size, reader.check_change
        self.crc, self.written, self.now = reader.crc, reader.steps, reader.now
        self.waiting: list[Waiting] = []
        self._torn, self.owner = False, os.getpid()
        self.writes = writes
        self.file = os.open(path if writes else os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._truncate()

    def _truncate(self) -> None:
        if self.writes:
            os.ftruncate(self.file, self.size)

    @property
    def step(self) -> int:
        """The next one to be taken."""
        return self.written + len(self.waiting)

    def append(self, text: str, crc: int, now: dict[str, Any]) -> None:
        """Write whole lines, after which nothing waits: ``crc`` is the checksum up to there, ``now`` the settings that they leave.

        Raises:
            OSError: there is no room, or another fault, with the path. Of these lines, none is left in the file.
        """
        data = memoryview(text.encode())
        size, step = self.size + len(data), self.step
        if self._torn:  # an interrupt came after a write and before the counts below: what it wrote goes
            self._truncate()
        self._torn = True
        try:
            while data:
                data = data[os.write(self.file, data) :]
        except BaseException as error:
            self._truncate()
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            raise
        # Nothing is called here, so that an interrupt comes before all of it or after.
        self.size, self.crc, self.now, self.written, self.waiting, self._torn = size, crc, now, step, [], False

    def flush(self) -> None:
        """Write what waits. Reading it waits for the device, once. Errors as in ``append``: then it goes on waiting."""
        if not self.waiting or self._closed:
            return
        measured = [x for measurements, *_ in self.waiting for x in measurements]
        numbers = iter(torch.stack(measured).tolist() if measured else [])
        text, crc, now = [], self.crc, dict(self.now)
        for step, (measurements, settings, marks) in enumerate(self.waiting, self.written):
            values = {name: merged([to_json(name, v) for v in each]) for name, each in settings.items()}
            changes = {name: value for name, value in values.items() if now[name] != value}
            for name, value in changes.items():
                try:
                    self._check_change(name, value)
                except ValueError as error:
                    raise BadInput(f"step {step} cannot be logged in {self.path}, which ends before it: {error}") from None
            now.update(changes)
            line, crc = step_line(step, [next(numbers) for _ in measurements], changes | marks, crc)
            text.append(line)
        self.append("".join(text), crc, now)

    def close(self) -> None:
        if self._closed:
            return
        try:
            self.flush()
        finally:
            os.close(self.file)
            self.file = -1

    @property
    def _closed(self) -> bool:
        """Whether the file is not open, or that of the process that this one was forked from."""
        return self.file < 0 or self.owner != os.getpid()


class Recorder:
    """Writes a line to the log after each step of an optimizer, until it is closed. A context manager. Made by ``record``.

    Attributes:
        path: of the log.
        every: steps between writes.
    """

    def __init__(self, optimizer: ZerothOrder, log: Log, every: int, flushed: bool, disturbed: str | None = None):
        self.log, self.path, self.every, self._warned = log, log.path, every, False
        self._flushed, self._disturbed = flushed, disturbed  # before recording began, for the next step's line
        self._optimizer, self._table, self._layout = weakref.ref(optimizer), table(parameters_of(optimizer)), optimizer.layout
        self._names, self._writes = logged_settings(optimizer), Writes.of(optimizer)
        self._hook = optimizer.register_step_post_hook(self._after)
        self._end = weakref.finalize(self, log.close)  # also when Python exits
        optimizer.logged = self._position

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

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _after(self, optimizer: Any, *_: object) -> None:
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
            if self._table != table(parameters_of(optimizer)):
                raise RuntimeError(f"parameters were added at step {step}, for which a log has no place: close {self.path} before")
            self._layout = optimizer.layout
        given = {name: [group[name] for group in optimizer.param_groups] for name in self._names}
        settings = {name: [v.clone() if isinstance(v, torch.Tensor) else v for v in each] for name, each in given.items()}
        self.log.waiting.append((optimizer.measurements, settings, self._marks(optimizer, step)))
        optimizer.logged = self._position  # load_state_dict puts what was saved there
        if len(self.log.waiting) >= self.every:
            self.log.flush()

    def _marks(self, optimizer: ZerothOrder, step: int) -> dict[str, bool]:
        """Whether, since the step before, the weights were flushed, and whether something else moved them."""
        before, self._writes = self._writes, Writes.of(optimizer)
        disturbed = self._disturbed or before.disturbed_until(self._writes, step)
        # load_state_dict makes other PerturbedWeights, and flushes
        flushed = self._flushed or self._writes.flushes > before.flushes or (step and self._writes.weights is not before.weights)
        self._flushed, self._disturbed = False, None
        if disturbed and not self._warned:
            self._warned = True
            warnings.warn(
                f"{disturbed} between steps {step - 1} and {step}: from {self.path} the weights can be made again up to step {step}, not "
                "later",
                RuntimeWarning,
                stacklevel=2,
            )
        return {name: True for name, is_so in (("flushed", flushed), ("disturbed", disturbed)) if is_so}

    def _position(self, optimizer: ZerothOrder) -> dict[str, Any]:
        """What a state that is saved now says of the log."""
        self.log.flush()
        disturbed = self._disturbed or self._writes.disturbed_until(Writes.of(optimizer), self.log.step)
        return position_of(optimizer, self.log.written, self.log.crc, disturbed is not None)


def record(
    optimizer: Any, path: str | Path, notes: Any = None, every: int = 1, resume: bool = False, model: torch.nn.Module | None = None
) -> Recorder:
    """Write a log of a run, from which ``zokern.Trajectory`` makes its weights again at any step, bit for bit.

    Registers a step hook: ``step(closure)`` and ``measure`` with ``step()`` are recorded; what was measured before is dropped. Of several
    processes that train together, let one record: their optimizers take the same steps. Where they hold shards of one model (DTensor),
    trained or frozen, all of them call this, and the first writes: the log is that of the whole model, and is replayed on it, or on other
    shards. A line reaches the operating system at once, so that it survives the process.

    Args:
        optimizer: any of zokern's but Hybrid, or a wrapper that has it as ``.optimizer``; at step 0, without state.
        path: of the log, which is new or empty; JSON lines (docs/trajectories.md).
        notes: anything for the header that JSON can hold. Default None: {}.
        every: steps between writes. Each waits for the device once, and what was not written is lost with the process; ``flush``, ``close``
            and Python's exit write it. Default 1.
        resume: go on with the log at the optimizer's step, after ``load_state_dict``: lines of that step and later ones are dropped. The
            weights must be those that the state was saved with, while this log was recorded or after; where the state does not say, the log
            can be replayed up to there. At step 0 the log may also be missing. Default False.
        model: the torch.nn.Module that the parameters are of: digests of its other weights go into the header, and a replay into a module,
            or a resumed run, is refused over others. Default None: they are not looked at.

    Returns:
        The recorder. ``close`` it, or leave its ``with`` block, when the run is done.

    Raises:
        BadInput: a ValueError: the path holds something, or cannot be resumed, with what differs. Nothing is changed then.
        TypeError: an optimizer that cannot be replayed; notes that JSON cannot hold.
        OSError: the file cannot be written.
    """
    while not isinstance(optimizer, ClosureOptimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    replayable_class(optimizer)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise BadInput(f"every={every!r}: pass an integer >= 1")
    try:
        notes = json.loads(json.dumps({} if notes is None else notes, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"notes cannot be written as JSON ({error}): pass numbers, strings, lists and dicts") from None
    path = Path(path)
    before, writes = _before(path, [*optimizer.layout.params, *(model.parameters() if model is not None else ())])
    if before and not resume:
        raise BadInput(f"{path} exists and is not empty: pass another path, or resume=True to go on with it")
    optimizer.flush()
    optimizer._measured, step = None, optimizer.param_groups[0]["step"]
    if resume and (step or b"\n" in before):
        return _resumed(optimizer, path, before, writes, step, every, model)
    if step or any(held.keys() - {"theta"} or _beyond(p, **held) for p, held in optimizer.state.items()):
        state = f"at step {step}" if step else "at step 0 and has state"
        raise BadInput(f"the optimizer is {state}: record from a new optimizer on, or pass resume=True with the log of its run")
    line = header_line(header_of(optimizer, notes, model))
    reader = Reader(path, line[:-1].encode())
    log = Log(path, 0, reader, writes)
    try:
        log.append(line, reader.crc, reader.now)
    except BaseException:
        log.close()
        raise
    return Recorder(optimizer, log, every, flushed=False)


def _before(path: Path, weights: list[torch.Tensor]) -> tuple[bytes, bool]:
    """-> (what the file holds, whether this process is the one to write it): of a sharded model the first process reads it for all."""
    if not any(map(is_sharded, weights)):
        return _read(path), True
    if len(processes(weights)) < distributed.get_world_size():
        raise BadInput("the model is sharded over some of the processes, and a log is written by all: shard it over all of them")
    writes, told = distributed.get_rank() == 0, [b"", ""]
    if writes:
        try:
            told[0] = _read(path)
        except (BadInput, OSError) as error:
            told[1] = str(error)
    distributed.broadcast_object_list(told, src=0)
    if told[1]:
        raise BadInput(told[1])
    return cast(bytes, told[0]), writes


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is no file: pass the name of one")
    return path.read_bytes() if path.exists() else b""


def _beyond(p: torch.Tensor, theta: torch.Tensor) -> bool:
    """Whether theta is more than the parameter shows of it, so that the run does not begin with what the header tells of."""
    return not bool((local(theta) == local(p)).all())


def _resumed(
    optimizer: ZerothOrder, path: Path, before: bytes, writes: bool, step: int, every: int, model: torch.nn.Module | None
) -> Recorder:
    lines = before.split(b"\n")[:-1]  # after the last line feed comes nothing, or a line that was cut off
    if not lines:
        raise BadInput(f"{path} holds no run, the optimizer is at step {step}: pass the log of its run")
    reader = Reader(path, lines[0])
    for line in lines[1 : step + 1]:
        reader.step(line)
    if reader.steps < step:
        raise BadInput(f"{path} ends after {reader.steps} steps, the optimizer is at step {step}: resume from an earlier state")
    named, disturbed = parameters_of(optimizer), None
    check_same_run(reader.header, optimizer, reader.now, path)
    check_frozen(reader.header, model, named, path)
    if step:
        disturbed = check_position(optimizer, path, step, reader.crc)
    else:
        check_base(reader.header, named, path)
    log = Log(path, sum(len(line) + 1 for line in lines[: step + 1]), reader, writes)
    return Recorder(optimizer, log, every, bool(step) and optimizer.leaves_pending, disturbed)
