"""What runs of every command have in common: where they read, what they ran with, how they are opened, gone on with and stopped."""

import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from .. import __version__, backends
from ..errors import BadInput, Unwritable, need
from . import output
from .options import title
from .run_settings import PATHS, Made, RunSettings


class AnyRun(Protocol):
    """A run of any command."""

    settings: Any
    path: Path
    resumed: dict[str, Any] | None
    steps_made: int

    def record(self) -> dict[str, Any]:
        """Of run.json."""

    def initial(self) -> dict[str, torch.Tensor]:
        """The parameters that the model as loaded does not have, or has otherwise, by name."""


def refuse_within(settings: RunSettings, path: Path) -> None:
    """What is read may not lie in the folder that the run replaces."""
    for name in PATHS:
        given = getattr(settings, name)
        if given and Path(given).absolute().is_relative_to(path):
            raise BadInput(f"{title(name)} {given!r} is in --out {settings.out!r}, which the run would replace: pass another folder")


def versions() -> dict[str, Any]:
    """Of run.json: with what a run was made."""
    return {
        "zokern": __version__,
        "torch": torch.__version__,
        "transformers": need("transformers").__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backends": backends(),
    }


def prolonged(settings: Made, folder: str, steps: int | None, unit: str, trust_remote_code: bool) -> Made:
    """The settings of a run that is gone on with.

    Args:
        folder: the run's, as the user named it.
        steps: how many there are to be in all; None: as many as it was asked for.
        unit: what steps are called.

    Raises:
        BadInput: fewer than it was asked for, or no more, and it is done.
    """
    path, more = Path(folder).expanduser().absolute(), "a larger --steps"
    if steps is not None and steps < settings.steps:
        raise BadInput(f"--steps {steps} with --resume {folder!r}, a run of {settings.steps} {unit}: pass {more}, or leave it out")
    if steps in (None, settings.steps) and (path / output.METRICS).is_file():
        raise BadInput(f"--resume {folder!r}: that run is done ({output.METRICS} is there): pass {more}, or begin another with --out")
    new = dict(out=str(path), steps=steps or settings.steps, trust_remote_code=trust_remote_code)
    return cast(Made, replace(cast(Any, settings), **new))


@contextmanager
def opened(run: AnyRun, command: str) -> Iterator[None]:
    """The folder of a run while it is made: begun, or gone on with. Where that fails before the first step, it is as it was."""
    path = run.path
    undo: Callable[[], None] | None = None
    if run.resumed is None:
        output.begin(path, run.record(), run.initial())
        undo = partial(output.clear, path)  # nothing has been learnt in it
    elif run.resumed["settings"]["steps"] != run.settings.steps:
        undo = output.extend(path, run.resumed, run.settings.record())
    try:
        yield
    except Exception as error:
        if undo is not None and not run.steps_made:
            undo()
        elif isinstance(error, Unwritable):
            raise Unwritable(f"{error}, then zokern {command} --resume {path}") from error
        raise


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls ``stop``, which is to end a run between two steps, so that each is whole; a second one interrupts as ever."""
    before = signal.getsignal(signal.SIGINT)

    def heard(*_: Any) -> None:
        stop()
        signal.signal(signal.SIGINT, before)

    main = threading.current_thread() is threading.main_thread()  # which alone hears of signals
    if main:
        signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
