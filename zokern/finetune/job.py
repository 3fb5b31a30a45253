"""A run from end to end: prepared, trained, reported."""

from collections.abc import Callable
from pathlib import Path

from . import output
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
    assert settings.out
    with output.claimed(settings.out, settings.overwrite) as path:
        return _done(prepare(settings, path, say), say)


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
    output.run_of(folder)  # there is one
    path = Path(folder).expanduser().absolute()
    with output.locked(path):
        settings, record = output.run_of(folder)
        settings = prolonged(settings, folder, steps, "steps", trust_remote_code)
        return _done(prepare(settings, path, say, record), say)


def _done(run: Run, say: Callable[[str], None]) -> Result:
    from .train import go_on, train  # transformers, which takes seconds to import

    with opened(run, output.FINETUNE):
        if run.resumed is not None:
            go_on(run, run.resumed, say)
        return report(run, train(run, say))
