"""A run from end to end: prepared, evolved, reported."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from ..errors import BadInput, Unwritable
from ..finetune import output, processes
from ..finetune.progress import Progress, evaluations
from ..finetune.runs import opened, prolonged
from .prepare import Run, prepare
from .report import Result, report
from .restore import run_of
from .rewards import Function
from .settings import Settings
from .train import Training


def evolve(
    settings: Settings, say: Callable[[str], None] = print, rewards: Sequence[Function] = (), progress: Progress | None = None
) -> Result:
    """Fine-tune by rewards as the settings say and write model, curve and logs into ``settings.out``.

    Args:
        settings: of the run.
        say: called with each line that the user should read. Default print.
        rewards: functions in TRL's signature, ``reward(completions, **columns) -> list[float]``, or texts as of ``settings.reward``, in
            place of that. Default (): those of the settings.
        progress: called after each iteration, as ``zokern.finetune.progress`` says. Default None: ``say`` hears of each evaluation.

    Returns:
        The run in numbers.

    Raises:
        BadInput: anything about the settings, the data, the rewards or the model that prevents it. Nothing is written then. What a reward
            function does wrong in the middle of a run, too: the iterations before are in the folder, and can be gone on with.

    Reference:
        Qiu et al. 2025, "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning".
    """
    settings = settings.checked()
    _check_alone()
    assert settings.out
    with output.claimed(settings.out, settings.overwrite) as path:
        return _done(prepare(settings, path, say, rewards), say, progress or evaluations(say))


def resume(
    folder: str,
    say: Callable[[str], None] = print,
    steps: int | None = None,
    trust_remote_code: bool = False,
    rewards: Sequence[Function] = (),
    progress: Progress | None = None,
) -> Result:
    """Go on with a run that was stopped, or with one that is done, from its last iteration, as if it had not been: bit for bit.

    Args:
        folder: the ``out`` of the run.
        say: called with each line that the user should read. Default print.
        steps: more than the run was asked for. Default None: as many as it was asked for.
        trust_remote_code: run the code that comes with the model. Default False, whatever the run was begun with.
        rewards: as of ``evolve``: where the run was begun with functions, the same. Default (): those of its settings.
        progress: as of ``evolve``.

    Returns:
        The run in numbers.

    Raises:
        BadInput: there is no such run, it is done and no more iterations are asked for, or data, rewards or model are not what they were.
    """
    _check_alone()
    run_of(folder)  # there is one
    path = Path(folder).expanduser().absolute()
    with output.locked(path):
        settings, record = run_of(folder)
        settings = prolonged(settings, folder, steps, "iterations", trust_remote_code)
        return _done(prepare(settings, path, say, rewards, record), say, progress or evaluations(say))


def _check_alone() -> None:
    if (started := processes.count()) > 1:
        raise BadInput(f"{started} processes (torchrun's) with zokern evolve, which shares out members itself: start one, with --engines N")


def _done(run: Run, say: Callable[[str], None], progress: Progress) -> Result:
    """The iterations and what follows."""
    training = Training(run)
    with closing(run), opened(run, output.EVOLVE):
        if run.resumed is not None:
            output.load_initial(run.path, run.resumed, run.loaded.model)
        try:
            training.train(say, progress)
            return report(run, training)
        except Unwritable:
            raise
        except BadInput as error:
            if not run.steps_made:
                raise
            raise BadInput(f"{error}; the {training.steps} iterations before are whole: zokern evolve --resume {run.path}") from error
