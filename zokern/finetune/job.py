"""A run from end to end: prepared, trained, reported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import BadInput
from . import output
from .prepare import Run, prepare
from .report import Result, report
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
        more, done = "a larger --steps", (path / output.METRICS).is_file()
        if steps is not None and steps < settings.steps:
            raise BadInput(f"--steps {steps} with --resume {folder!r}, a run of {settings.steps} steps: pass {more}, or leave it out")
        if steps in (None, settings.steps) and done:
            raise BadInput(f"--resume {folder!r}: that run is done ({output.METRICS} is there): pass {more}, or begin another with --out")
        settings = replace(settings, out=str(path), steps=steps or settings.steps, trust_remote_code=trust_remote_code)
        return _done(prepare(settings, path, say, record), say)


def _done(run: Run, say: Callable[[str], None]) -> Result:
    from .train import opened, train  # transformers, which takes seconds to import

    with opened(run, say):
        return report(run, train(run, say))
