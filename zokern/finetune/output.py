"""The folder of a run: it appears whole, under its name, or not at all."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadInput

LOG = "log.jsonl"


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
            raise BadInput(f"--out {out!r} exists and is not empty: pass another folder, or --overwrite")
        if not (path / LOG).is_file():
            raise BadInput(f"--out {out!r} holds no earlier run ({LOG} is missing), which is all that --overwrite replaces: pass another")
    return path


@contextmanager
def folder(out: str, overwrite: bool):
    """Yields a temporary folder beside ``out`` that takes its name when all went well and vanishes when anything did not.

    Args:
        out: where the outputs are to be.
        overwrite: whether they may replace those of an earlier run, and nothing else.
    Raises:
        BadInput: as ``check``, or the folder cannot be made.
    """
    path = check(out, overwrite)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"--out {out!r} cannot be written ({error.strerror}): pass another folder") from None
    try:
        yield draft
        check(out, overwrite)
        if path.exists():
            shutil.rmtree(path)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def log(draft: Path):
    """Yields a function that writes a dict as one line of the run's log."""
    with (draft / LOG).open("w", encoding="utf-8") as file:
        yield lambda record: file.write(json.dumps(record, allow_nan=False) + "\n")
