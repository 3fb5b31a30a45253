"""The checkpoints of a run: what one must hold to resume the run bit for bit, which there are, and which are deleted."""

import errno
import hashlib
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.trainer import TRAINING_ARGS_NAME

from ..errors import BadInput, writing

SUMS = "SHA256SUMS"  # of what is read again; written last, and what `sha256sum -c SHA256SUMS` reads, too
READ = (".safetensors", ".bin", ".pt", ".pth", ".json")
STATE = "trainer_state.json"  # what Trainer writes last
NEEDED = (STATE, "optimizer.pt", "scheduler.pt")


def all_of(folder: str | Path) -> dict[int, Path]:
    """step -> checkpoint, in the order of steps, whenever they were written. Other folders, such as checkpoint-best, are left out."""
    named = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(folder).glob("checkpoint-*") if path.is_dir()}
    return dict(sorted((int(found[1]), path) for path, found in named.items() if found))


def newest(folder: str | Path) -> Path | None:
    """The checkpoint after the most steps of those that were saved to the end."""
    return next(filter(_is_complete, reversed(all_of(folder).values())), None)


def to_resume(given: str | bool | None, args: Any) -> str | None:
    """The checkpoint that ``train(resume_from_checkpoint=given)`` resumes, True for the newest. BadInput: as of ``check``, or of none."""
    folder = newest(args.output_dir) if given is True else given
    if given is True and folder is None:
        raise BadInput(f"resume_from_checkpoint=True: {args.output_dir!r} holds no checkpoint that was saved to its end: leave it out")
    if not folder:
        return None
    check(folder, "rng_state.pth" if args.world_size <= 1 else f"rng_state_{args.process_index}.pth")
    return str(folder)


def check(folder: str | Path, rng: str | None = None) -> None:
    """Refuse a checkpoint that is not what was saved. One without digests (Trainer's own, or an earlier zokern's) must be readable.

    Args:
        rng: the file of this process's random numbers, if a run is to be resumed. Default None: the weights are all that is wanted.

    Raises:
        BadInput: a part is missing, empty or damaged, by name.
    """
    folder = Path(folder)
    parts, sums = _parts(folder), _sums(folder)
    for name in (*(sums or ()), *((*NEEDED, rng) if rng else ())):
        if name not in parts:
            raise _refusal(folder, name, "is missing")
        if sums and name not in sums:
            raise _refusal(folder, SUMS, f"does not list {name}")
    if not any(path.suffix in (".safetensors", ".bin") for path in parts.values()):
        raise _refusal(folder, "model.safetensors, or an adapter's", "is missing")
    for name, path in parts.items():
        if not path.stat().st_size:
            raise _refusal(folder, name, "is empty")
        if not (_is_readable(path) if sums is None else name not in sums or sha256(path) == sums[name]):
            raise _refusal(folder, name, "is damaged: its bytes are not those that were saved")
    if sums is None:
        who = "Trainer or an earlier zokern saved it, or a process that was killed then"
        what = f"{str(folder)!r} has no {SUMS} ({who}): all of its parts are there, but a change of single bits would not be seen"
        warnings.warn(what, RuntimeWarning, stacklevel=4)


@contextmanager
def saving(folder: Path, trainer: Any) -> Iterator[None]:
    """Around Trainer's saving of a checkpoint: it is complete once its digests are written, and only then older ones are deleted. Trainer
    would delete before that, by the time of the last change, and any folder named checkpoint-..."""
    args = trainer.args
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        with writing(folder):
            if args.should_save:
                _mark_incomplete(folder)
            yield
    finally:
        args.save_total_limit = limit
    trainer.accelerator.wait_for_everyone()  # each process has a part
    if args.should_save:
        with writing(folder):
            torch.save(args, folder / TRAINING_ARGS_NAME)  # with their own save_total_limit
            sums = "".join(f"{sha256(path)}  {name}\n" for name, path in _parts(folder).items())
            (folder / f".{SUMS}").write_text(sums, encoding="utf-8")
            (folder / f".{SUMS}").replace(folder / SUMS)
        _rotate(folder, limit, trainer.state.best_model_checkpoint)
    trainer.accelerator.wait_for_everyone()


def _rotate(saved: Path, limit: int | None, best: str | None) -> None:
    """Keep ``limit`` checkpoints, with the one just saved and the best. Those of later steps are an earlier run's, and deleted first."""
    found = all_of(saved.parent)
    done = next(step for step, path in found.items() if path == saved)
    order = sorted(found, key=lambda step: (step <= done, step))
    others = [found[step] for step in order if found[step] not in (saved, best and Path(best))]
    for path in others[: max(0, len(found) - limit)] if limit and limit > 0 else ():
        _mark_incomplete(path)
        shutil.rmtree(path, ignore_errors=True)


def _mark_incomplete(folder: Path) -> None:
    """Of a checkpoint that is to be written over or deleted."""
    for name in (SUMS, STATE):
        (folder / name).unlink(missing_ok=True)


def _is_complete(folder: Path) -> bool:
    return (folder / SUMS).is_file() or ((folder / STATE).is_file() and _is_readable(folder / STATE))


def _parts(folder: Path) -> dict[str, Path]:
    """name -> path of what is read again."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.suffix in READ and path.is_file()}
    return {name: path for name, path in found.items() if name != TRAINING_ARGS_NAME}


def _sums(folder: Path) -> dict[str, str] | None:
    """name -> digest; None where there are none."""
    if not (folder / SUMS).is_file():
        return None
    lines = (folder / SUMS).read_bytes().decode(errors="replace").splitlines()
    if not lines or not all(re.fullmatch("[0-9a-f]{64}  .+", line) for line in lines):
        raise _refusal(folder, SUMS, "is damaged")
    return {line[66:]: line[:64] for line in lines}


def sha256(path: str | Path) -> str:
    """The digest of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _is_readable(path: Path) -> bool:
    """Whether a file can be read as what its name says: torch's are zip files, with a checksum of each entry."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".safetensors":
            safe_open(path, "pt")
        else:
            with zipfile.ZipFile(path) as file:
                return file.testzip() is None
    except Exception as error:  # of json, safetensors and zipfile, which seeks where a damaged offset says: EINVAL
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        return False
    return True


def _refusal(folder: Path, name: str, what: str) -> BadInput:
    earlier = takewhile(lambda path: path.name != folder.name, all_of(folder.absolute().parent).values())
    before = [path.name for path in earlier if _is_complete(path)]
    cure = f"move it elsewhere to go on from {before[-1]}" if before else "restore it, or move it elsewhere to begin again"
    return BadInput(f"checkpoint {str(folder)!r}: {name} {what}: {cure}")
