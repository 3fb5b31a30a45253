"""Several processes that make one run, as torchrun and accelerate launch start them: the first owns its folder and speaks, the others
compute along. What the user has done wrong is an error in all of them."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from ..errors import BadInput, need
from ..optim.replicas import find, leave
from .options import title
from .settings import Settings

T = TypeVar("T")
STOP = "finetune/stop"  # where who is asked to stop leaves the step after which all do


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this is the first process, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def join(settings: Settings) -> None:
    """Begin to hear the others.

    Raises:
        BadInput: what a run of so many processes cannot do.
    """
    if count() % (settings.directions or 1):
        raise BadInput(f"{title('directions')} {settings.directions} of {count()} processes (torchrun's): pass a number that divides them")
    if count() == 1:
        return
    if settings.offload == "disk":
        raise BadInput(f"--offload disk with {count()} processes, which would all write into one file: pass --offload host, or start one")
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        raise BadInput(
            "accelerate's FSDP with zokern finetune, which saves whole models: leave it out, or shard them in zokern.hf.ZOTrainer"
        )
    need("accelerate").PartialState(cpu=settings.device == "cpu")
    atexit.register(_leave)


def _leave() -> None:
    """Before Python goes, or the threads of the process group would be cut off."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def told(value: T) -> T:
    """The value that the first process has."""
    if count() == 1:
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, src=0)
    first: T = values[0]
    return first


def agree(error: BadInput | None = None) -> None:
    """All processes come here, each with its error or without.

    Raises:
        BadInput: one of them has one.
    """
    every: list[Any] = [None] * count()
    if count() > 1:
        distributed.all_gather_object(every, error and str(error))
    if error:
        raise error
    for message in every:
        if message:
            raise BadInput(message)


def together(act: Callable[[], T]) -> T:
    """``act()``, where it has succeeded in all processes."""
    error = made = None
    try:
        made = act()
    except BadInput as caught:
        error = caught
    agree(error)
    assert made is not None
    return made


@contextmanager
def owned(claim: Callable[[], AbstractContextManager[Any]], path: Path) -> Iterator[Path]:
    """The folder of a run, which the first process claims for all."""
    with ExitStack() as held:
        together(lambda: (held.enter_context(claim()), path) if leads() else path)
        yield path


class Stop:
    """Whether a run is to end, which all processes are to do after the same step."""

    def __init__(self) -> None:
        self.asked = False
        self._left = False

    def after(self, step: int) -> bool:
        """Whether it ends after a step that was made."""
        if count() == 1:
            return self.asked
        if self.asked and not self._left:
            self._left = True
            leave(STOP, step + 2)  # nobody can have made that one: each takes all
        last = find(STOP)
        return last is not None and step >= last
