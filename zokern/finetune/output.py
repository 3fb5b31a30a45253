"""The folder of a run: what it holds, and what may be replaced.

run.json            settings, classes, versions: what makes the run again, and a file for --config
initial.safetensors the parameters that the base model lacks (adapters, a new head), as training began
trajectory.jsonl    every step (zokern.record); not of --optimizer hybrid
checkpoints/        the newest checkpoints, from which --resume goes on; with --keep best that of the best evaluation, too
log.jsonl           losses and metrics as logged
metrics.json        the result, once the run is done; with the model, its tokenizer, adapter/ and curve.png
"""

import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from ..documents import Unreadable, of_json
from ..errors import BadInput, need, writing
from .options import fit, shown
from .run_settings import Made
from .settings import Settings

RUN, INITIAL, TRAJECTORY, CHECKPOINTS = "run.json", "initial.safetensors", "trajectory.jsonl", "checkpoints"
# In run.json, beside the settings.
HELD: dict[str, Any] = {"labels": tuple[str, ...], "digest": str, "initial": str | None, "zokern": str, "extended": tuple[int, ...] | None}
HELD |= dict.fromkeys(("before", "probed"), dict[str, float])
FINETUNE, EVOLVE = "finetune", "evolve"  # the commands whose runs there are; run.json of the first says none
LOG, METRICS, CURVE = "log.jsonl", "metrics.json", "curve.png"
LOCK = ".zokern-lock"  # there while a process writes into the folder
DRAFT = ".zokern-draft."  # how the name of what is not whole yet begins
WEIGHTS = ".zokern-weights.safetensors"  # what a model computes with that lives in a file, while it does


class Another(BadInput):
    """A folder holds the run of another command."""


@contextmanager
def claimed(out: str, overwrite: bool | None = None) -> Iterator[Path]:
    """Yields the absolute path of ``out``, which nobody else writes into meanwhile.

    Args:
        overwrite: whether an earlier run in it is to be replaced. Default None: nobody can ask for that.
    """
    path = _check(out, overwrite)
    half = _half(path)
    with locked(path, clean=not half):
        if not half:
            _check(out, overwrite)  # another process may just have left
        yield path


def _half(path: Path) -> bool:
    """Whether a process ended as the contents of a folder that is no run came into place: then they may come again."""
    return path.is_dir() and not (path / RUN).exists() and any(held.is_dir() for held in path.glob(f"{DRAFT}*"))


def _check(out: str, overwrite: bool | None) -> Path:
    path = Path(out).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise BadInput(f"--out {out!r} is a file: pass a folder")
    held = {held.name for held in _contents(path)} if path.is_dir() else set()
    if not held or _half(path) and (overwrite is None or held == {INITIAL}):  # a new run would remove what it finds
        return path
    if not overwrite:
        unfinished = (path / RUN).is_file() and not (path / METRICS).is_file()
        more = ", or --overwrite" if overwrite is False else ""
        more += f", or --resume {out} to go on with the run in it" if more and unfinished else ""
        raise BadInput(f"--out {out!r} exists and is not empty: pass another folder{more}")
    if not (path / RUN).is_file():
        raise BadInput(f"--out {out!r} holds no earlier run ({RUN} is missing), which is all that --overwrite replaces: pass another")
    return path


def _contents(path: Path) -> list[Path]:
    """What a folder holds, other than the lock, drafts and the weights that a process computes with."""
    return [held for held in path.iterdir() if not held.name.startswith((LOCK, DRAFT, WEIGHTS))]


@contextmanager
def locked(path: Path, clean: bool = True) -> Iterator[None]:
    """The folder is this process's alone until it leaves the block, or ends anyhow. It is made if need be, and goes if it stays empty.

    Args:
        clean: remove the drafts that processes have left which did not end well.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(file, path)
        if clean:
            _remove(path.glob(f"{DRAFT}*"))
        _remove(path.glob(f"{WEIGHTS}*"))
        try:
            yield
        finally:
            with suppress(OSError):  # read-only by now, say: a lock that is left is nobody's
                _remove(path.glob(f"{WEIGHTS}*"))
                (path / LOCK).unlink()
    finally:
        os.close(file)
        with suppress(OSError):  # it holds something
            for folder in made:
                folder.rmdir()


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        theirs = not os.fstat(file).st_nlink
    except OSError as error:
        theirs = isinstance(error, BlockingIOError)
        if not theirs:
            warnings.warn(f"{path} cannot be locked ({error.strerror}): let no other process write into it", RuntimeWarning, stacklevel=4)
    if theirs:
        raise BadInput(f"another process writes into {str(path)!r}: wait until it is done, or pass another folder")


def begin(path: Path, record: dict[str, Any], initial: dict[str, torch.Tensor]) -> None:
    """Fill the folder of a new run, in place of an earlier one, which stays until the new one's files are on the disk.

    Args:
        record: of run.json. initial: the parameters of initial.safetensors, by name.
    """
    with whole(path) as draft:
        tensors = {name: p.detach().cpu().contiguous() for name, p in initial.items()}
        need("safetensors.torch").save_file(tensors, draft / INITIAL)
        record = {**record, "initial": need("zokern.hf.checkpoint").sha256(draft / INITIAL)}
        (draft / RUN).write_text(json.dumps(record, indent=1), encoding="utf-8")
        clear(path, but=RUN)  # with that it is a run that --overwrite replaces, whenever this process ends


def clear(path: Path, but: str = "") -> None:
    """Remove what a folder holds, other than one name, the lock and drafts."""
    _remove(held for held in _contents(path) if held.name != but)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def extend(path: Path, record: dict[str, Any], settings: dict[str, Any]) -> Callable[[], None]:
    """Make a run one of more steps that is not done. -> what undoes it.

    Args:
        record: what run.json says; it keeps the steps that were asked for before, under "extended".
        settings: with more steps.
    """
    before = {name: (path / name).read_text(encoding="utf-8") for name in (RUN, METRICS) if (path / name).is_file()}
    extended = [*record.get("extended", []), record["settings"]["steps"]]
    write(path / RUN, json.dumps({**record, "settings": settings, "extended": extended}, indent=1))
    (path / METRICS).unlink(missing_ok=True)

    def undo() -> None:
        for name, text in before.items():
            write(path / name, text)

    return undo


def command_of(folder: str | Path) -> str:
    """The command whose run is in a folder; as of finetune where its run.json does not say, or cannot be read."""
    try:
        return str(of_json((Path(folder).expanduser() / RUN).read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, LookupError, TypeError):
        return FINETUNE


def run_of(folder: str | Path) -> tuple[Settings, dict[str, Any]]:
    """-> (the settings of the run of zokern finetune in a folder, all that its run.json says)."""
    return recorded(folder, FINETUNE, Settings, HELD)


def recorded(folder: str | Path, command: str, settings: type[Made], held: dict[str, Any]) -> tuple[Made, dict[str, Any]]:
    """-> (the settings of the run in a folder, all that its run.json says).

    Args:
        command: whose run it is. settings: their class.
        held: name -> kind of what run.json holds beside them.
    """
    path = Path(folder).expanduser() / RUN
    try:
        record = of_json(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
            raise BadInput("it holds no settings")
        own = fit("'command'", record.get("command", FINETUNE), str)
        if own != command:
            raise Another(f"{str(folder)!r} holds a run of zokern {shown(own)}: pass the --out of one of zokern {command}")
        for name, kind in held.items():
            fit(repr(name), record.get(name), kind)
    except Another as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        why = f"{RUN} is missing" if isinstance(error, FileNotFoundError) else f"{RUN}: {error.strerror}"
        raise BadInput(f"{str(folder)!r} holds no run of zokern {command} ({why}): pass the --out of one") from None
    except ValueError as error:
        line = f", line {error.line}" if isinstance(error, Unreadable) else ""
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else error
        raise BadInput(f"{str(path)!r}{line} is damaged: {reason}; restore the file") from None
    try:
        return settings.of(record["settings"]), record
    except BadInput as error:  # another zokern wrote them, or they are none
        raise BadInput(f"{str(path)!r}, of zokern {shown(record['zokern'])}: in its settings {error}; or restore the file") from None


def write(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    draft = path.with_name(f"{DRAFT}{path.name}.{os.getpid()}")
    with writing(path):
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None


def append(path: Path, text: str) -> None:
    """Lines at the end of a text file. A process that ends here may leave a part of them."""
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)


def load_initial(folder: Path, record: dict[str, Any], model: torch.nn.Module) -> None:
    """Bring the parameters with which a run began, as its record knows them, into a model."""
    path, safetensors = folder / INITIAL, need("safetensors")
    own, digest = dict(model.named_parameters()), record.get("initial")  # a run of an earlier zokern has none
    try:
        if digest and need("zokern.hf.checkpoint").sha256(path) != digest:
            raise BadInput(f"{str(path)!r} is not the file that the run began with: restore it, or begin the run again")
        with safetensors.safe_open(str(path), "pt") as file, torch.no_grad():
            for name in file.keys():
                own[name].copy_(file.get_tensor(name))
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"{str(path)!r} cannot be read ({error}): it belongs beside {RUN}; restore it, or begin the run again") from None
    except (KeyError, RuntimeError) as error:
        raise BadInput(f"{str(path)!r} does not fit the model ({error}): pass the model that the run began with") from None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose contents move into ``path`` when all went well and vanish when anything did not. A move that is cut
    short, by Ctrl-C as by a kill, leaves what has not moved yet: by that a later command sees what happened (``_half``)."""
    with writing(path):
        draft = Path(mkdtemp(prefix=DRAFT, dir=path))  # a name of its own: what another process left stays until all has moved
        try:
            yield draft
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        for made in sorted(draft.iterdir(), key=lambda made: made.name == RUN):  # with that it is a run
            target = path / made.name
            if target.is_dir():
                shutil.rmtree(target)
            made.replace(target)
        _remove(path.glob(f"{DRAFT}*"))
