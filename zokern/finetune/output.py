"""The folder of a run: what it holds, and what may be replaced.

run.json            settings, classes, versions: what makes the run again, and a file for --config
initial.safetensors the parameters that the base model lacks (adapters, a new head), as training began
trajectory.jsonl    every step (zokern.record); not of --optimizer hybrid
checkpoints/        the newest checkpoints, from which --resume goes on; with --keep best that of the best evaluation, too
log.jsonl           losses and metrics as logged
metrics.json        the result, once the run is done; with the model, its tokenizer, adapter/ and curve.png
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from ..documents import Unreadable, of_json
from ..errors import BadInput, need
from .values import fit

RUN, INITIAL, TRAJECTORY, CHECKPOINTS = "run.json", "initial.safetensors", "trajectory.jsonl", "checkpoints"
HELD = {  # in run.json, beside the settings
    "labels": tuple[str, ...],
    "digest": str,
    "zokern": str,
    **dict.fromkeys(("before", "probed"), dict[str, float]),
    "extended": tuple[int, ...] | None,
}
LOG, METRICS, CURVE = "log.jsonl", "metrics.json", "curve.png"


def check(out: str, overwrite: bool) -> Path:
    """-> the absolute path of ``out``.

    Raises:
        BadInput: it is a file, or holds what may not be replaced.
    """
    path = Path(out).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise BadInput(f"--out {out!r} is a file: pass a folder")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            unfinished = (path / RUN).is_file() and not (path / METRICS).is_file()
            resume = f", or --resume {out} to go on with the run in it" if unfinished else ""
            raise BadInput(f"--out {out!r} exists and is not empty: pass another folder, or --overwrite{resume}")
        if not (path / RUN).is_file():
            raise BadInput(f"--out {out!r} holds no earlier run ({RUN} is missing), which is all that --overwrite replaces: pass another")
    return path


def begin(path: Path, record: dict) -> None:
    """Make the folder of a new run, in place of an earlier one.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        write(path / RUN, json.dumps(record, indent=1))
    except OSError as error:
        raise BadInput(f"--out {str(path)!r} cannot be written ({error.strerror}): pass another folder") from None


def extend(path: Path, record: dict, settings: dict) -> dict:
    """Make a run one of more steps that is not done. -> what ``restore`` takes.

    Args:
        record: what run.json says; it keeps the steps that were asked for before, under "extended".
        settings: with more steps.
    """
    before = {name: (path / name).read_text(encoding="utf-8") for name in (RUN, METRICS) if (path / name).is_file()}
    extended = [*record.get("extended", []), record["settings"]["steps"]]
    write(path / RUN, json.dumps({**record, "settings": settings, "extended": extended}, indent=1))
    (path / METRICS).unlink(missing_ok=True)
    return before


def restore(path: Path, before: dict) -> None:
    """Undo ``extend``."""
    for name, text in before.items():
        write(path / name, text)


def run_of(folder: str) -> dict:
    """What run.json of a folder says.

    Raises:
        BadInput: there is none, or it is no such record.
    """
    path = Path(folder).expanduser() / RUN
    try:
        record = of_json(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
            raise BadInput("it holds no settings")
        for name, kind in HELD.items():
            fit(repr(name), record.get(name), kind)
        return record
    except OSError as error:
        reason = f"{RUN} is missing" if isinstance(error, FileNotFoundError) else f"{RUN}: {error.strerror}"
        raise BadInput(f"{folder!r} holds no run of zokern finetune ({reason}): pass the --out of one") from None
    except ValueError as error:
        line = f", line {error.line}" if isinstance(error, Unreadable) else ""
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else error
        raise BadInput(f"{str(path)!r}{line} is damaged: {reason}; restore the file") from None


def write(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise BadInput(f"{str(path)!r} cannot be written ({error.strerror}): pass a file in a folder that is there") from None


def save_parameters(path: Path, named: dict) -> None:
    """Parameters by name, as safetensors."""
    need("safetensors.torch").save_file({name: p.detach().cpu().contiguous() for name, p in named.items()}, path)


def load_parameters(path: Path, model) -> None:
    """What ``save_parameters`` wrote, into a model.

    Raises:
        BadInput: the file is not there or damaged, or holds what the model has not.
    """
    safetensors = need("safetensors")
    own = dict(model.named_parameters())
    try:
        with safetensors.safe_open(str(path), "pt") as file, need("torch").no_grad():
            for name in file.keys():
                own[name].copy_(file.get_tensor(name))
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"{str(path)!r} cannot be read ({error}): it belongs beside {RUN}; start the run again") from None
    except (KeyError, RuntimeError) as error:
        raise BadInput(f"{str(path)!r} does not fit the model ({error}): pass the model that the run began with") from None


@contextmanager
def whole(path: Path):
    """Yields a temporary folder, whose contents move into ``path`` when all went well and vanish when anything did not."""
    draft = path / f".draft.{os.getpid()}"
    draft.mkdir()
    try:
        yield draft
        for made in draft.iterdir():
            place = path / made.name
            if place.is_dir():
                shutil.rmtree(place)
            made.replace(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
