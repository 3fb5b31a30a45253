"""A run from end to end: prepared, trained, reported."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import cast

from . import output, processes
from .prepare import Run, prepare
from .report import Result, report
from .runs import opened, prolonged
from .settings import Settings


def finetune(settings: Settings, say: Callable[[str], None] = print) -> Result:
    """Fine-tune as the settings say and write model, curve and logs into ``settings.out``.

    Args:
        say: called with each line that the user should read. Default print.
    Raises:
        BadInput: anything about the settings, the data or the model that prevents it. Nothing is written then.
    """
    settings = settings.checked()
    processes.join(settings)
    settings = processes.told(settings)
    assert (out := settings.out)
    say = say if processes.leads() else _unheard
    with processes.owned(lambda: output.claimed(out, settings.overwrite), Path(out).expanduser().absolute()) as path:
        return _done(processes.together(lambda: prepare(settings, path, say)), say)


def resume(folder: str, say: Callable[[str], None] = print, steps: int | None = None, trust_remote_code: bool = False) -> Result:
    """Go on with a run that was stopped, from its newest checkpoint, as if it had not been: bit for bit. Or with one that is done.

    Args:
        folder: the ``out`` of the run.
        say: as of ``finetune``.
        steps: more than the run was asked for. With a constant schedule it ends where a run of so many steps does, bit for bit; with
            another one the learning rate is, from the newest checkpoint on, that of a run of so many steps. Default None: as many as it
            was asked for.
        trust_remote_code: run the code that comes with the model. Default False, whatever the run was begun with.
    Raises:
        BadInput: there is no such run, it is done and no more steps are asked for, or the data or the model are not what they were.
            Nothing is written then.
    """
    processes.join(output.run_of(folder)[0])  # there is one
    path = Path(folder).expanduser().absolute()
    say = say if processes.leads() else _unheard
    with processes.owned(lambda: output.locked(path), path):
        settings, record = output.run_of(folder)
        settings = prolonged(settings, folder, steps, "steps", trust_remote_code)
        return _done(processes.together(lambda: prepare(settings, path, say, record)), say)


def _done(run: Run, say: Callable[[str], None]) -> Result:
    from .train import go_on, train  # transformers, which takes seconds to import

    with opened(run, output.FINETUNE) if processes.leads() else nullcontext():
        processes.agree()  # the folder is there
        if run.resumed is not None:
            go_on(run, run.resumed, say)
        processes.agree()  # each has read what it goes on from
        training = train(run, say)
        result = report(run, training) if processes.leads() else None
        return cast(Result, processes.told(result))


def _unheard(line: str) -> None:
    """Of a process whose words the first one says."""
