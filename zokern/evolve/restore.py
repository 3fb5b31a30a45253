"""The weights of any iteration again, from the folder of a run and the model that it began with, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..finetune import output
from ..finetune.model import Model, causal, settle_hub
from ..finetune.restore import folder_and_log, read
from .settings import Settings

# In run.json, beside the settings.
HELD: dict[str, Any] = {"rewards": tuple[str, ...], "digest": str, "initial": str | None, "zokern": str, "extended": tuple[int, ...] | None}
HELD |= {"before": dict[str, float], "folder": str | None}


def run_of(folder: str | Path) -> tuple[Settings, dict[str, Any]]:
    """-> (the settings of the run of zokern evolve in a folder, all that its run.json says)."""
    return output.recorded(folder, output.EVOLVE, Settings, HELD)


def replay(
    run: str,
    out: str,
    step: int | None = None,
    model: str | None = None,
    passes_per_sweep: int = 96,
    progress: Callable[[int], Any] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Make the model of any iteration again and write it into a new folder. Arguments and errors as of
    ``zokern.finetune.restore.replay``."""
    with output.claimed(out) as target:
        loaded = weights_at(run, step, model, passes_per_sweep, progress, trust_remote_code)
        with output.whole(target) as draft:
            loaded.save(draft)


def weights_at(
    run: str | Path,
    step: int | None,
    model: str | None = None,
    passes_per_sweep: int = 96,
    progress: Callable[[int], Any] | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """The model of a run after some iterations, on the CPU."""
    path, log = folder_and_log(str(run))
    settings, record = run_of(path)
    trajectory = read(str(log))
    if step is not None and not 0 <= step <= len(trajectory):
        raise BadInput(f"--step {step}: the trajectory has {len(trajectory)} steps: pass 0 to {len(trajectory)}")
    settings = replace(settings, device="cpu", model=model or settings.model, trust_remote_code=trust_remote_code)
    settle_hub(False, settings.model)
    loaded = causal(settings)
    output.load_initial(path, record, loaded.model)
    trajectory.replay(loaded.model, step=step, passes_per_sweep=passes_per_sweep, progress=progress)
    return loaded
