"""A run from end to end: prepared, trained, reported."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import cast

from . import output, processes
from .prepare import Run, prepare
from .progress import Progress, evaluations
from .report import Result, report
from .runs import opened, prolonged
from .settings import Settings


def finetune(settings: Settings, say: Callable[[str], None] = print, progress: Progress | None = None) -> Result:
    """Fine-tune as the settings say and write model, curve and logs into ``settings.out``.

    Args:
        settings: of the run.
        say: called with each line that the user should read. Default print.
        progress: called after each step, as ``zokern.finetune.progress`` says. Default None: ``say`` hears of each evaluation.

    Returns:
        The run in numbers. Of several processes the first one's, in each.

    Raises:
        BadInput: anything about the settings, the data or the model that prevents it. Nothing is written then.
    """
    settings = settings.checked()
    processes.join(settings)
    settings = processes.told(settings)
    assert (out := settings.out)
    say, progress = _heard(say, progress)
    with processes.owned(lambda: output.claimed(out, settings.overwrite), Path(out).expanduser().absolute()) as path:
        return _done(processes.together(lambda: prepare(settings, path, say)), say, progress)


def resume(
    folder: str,
    say: Callable[[str], None] = print,
    steps: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Go on with a run that was stopped, from its newest checkpoint, as if it had not been: bit for bit. Or with one that is done.

    Args:
        folder: the ``out`` of the run.
        say: called with each line that the user should read. Default print.
        steps: more than the run was asked for. With a constant schedule it ends where a run of so many steps does, bit for bit; with
            another one the learning rate is, from the newest checkpoint on, that of a run of so many steps. Default None: as many as it was
            asked for.
        trust_remote_code: run the code that comes with the model. Default False, whatever the run was begun with.
        progress: as of ``finetune``.

    Returns:
        The run in numbers, as of ``finetune``.

    Raises:
        BadInput: there is no such run, it is done and no more steps are asked for, or the data or the model are not what they were. Nothing
            is written then.
    """
    processes.join(output.run_of(folder)[0])  # there is one
    path = Path(folder).expanduser().absolute()
    say, progress = _heard(say, progress)
    with processes.owned(lambda: output.locked(path), path):
        settings, record = output.run_of(folder)
        settings = prolonged(settings, folder, steps, "steps", trust_remote_code)
        return _done(processes.together(lambda: prepare(settings, path, say, record)), say, progress)


def _done(run: Run, say: Callable[[str], None], progress: Progress) -> Result:
    from .train import go_on, train  # transformers, which takes seconds to import

    with opened(run, output.FINETUNE) if processes.leads() else nullcontext():
        processes.agree()  # the folder is there
        if run.resumed is not None:
            go_on(run, run.resumed, say)
        processes.agree()  # each has read what it goes on from
        training = train(run, say, progress)
        result = report(run, training) if processes.leads() else None
        return cast(Result, processes.told(result))


def _heard(say: Callable[[str], None], progress: Progress | None) -> tuple[Callable[[str], None], Progress]:
    """Nobody hears a process whose words the first one says."""
    if not processes.leads():
        say, progress = (lambda line: None), None
    return say, progress or evaluations(say)
