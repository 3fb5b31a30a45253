"""What is wrong with what the user gave, or with the disk, in one line."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BadInput(ValueError):
    """An input cannot be used. The message is one line: the thing, its value and the cure."""


class Unwritable(BadInput, OSError):
    """A file cannot be written, whatever the reason. The message is one line: the file, the reason, the space left."""


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """What any library raises in here because a file cannot be written is an ``Unwritable``.

    Args:
        target: the file or folder that is written; an error that names its file itself goes before it.
    """
    try:
        yield
    except Unwritable:
        raise
    except Exception as error:
        reason, cure = _why(error)
        if reason is None:
            raise
        file = Path(getattr(error, "filename", None) or target).absolute()
        free = shutil.disk_usage(next(folder for folder in (file, *file.parents) if folder.is_dir())).free
        raise Unwritable(f"{str(file)!r} cannot be written ({reason}; {free / 2**20:.1f} MiB are free there): {cure}") from error


def _why(error: Exception) -> tuple[str | None, str | None]:
    """-> (what the operating system says, what helps); (None, None) of an error that is none of writing."""
    number, text = getattr(error, "errno", None), str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # safetensors
        number = int(found[1])
    if number is None and isinstance(error, RuntimeError) and re.search("inline_container|iostream", text):  # torch, which seldom says why
        reason = re.search("strerror: (.*)", text)
        return (reason[1], "make it writable") if reason else ("torch could not write all of it", "make room there")
    return (os.strerror(number), "make room there" if number in FULL else "make it writable") if number else (None, None)


def require(*modules: str) -> None:
    """Look for optional packages without loading them.

    Raises:
        BadInput: one is not installed.
    """
    for module in modules:
        if find_spec(module) is None:
            raise BadInput(f"{module} is not installed: pip install 'zokern[demo]'")


def need(module: str) -> Any:
    """Import an optional package, or raise as ``require`` does."""
    require(module)
    return import_module(module)


@contextmanager
def refusing(what: str, cure: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception) -> Iterator[None]:
    """What another library raises in here, of some kinds or any, is a ``BadInput``: what (the library's first line): cure."""
    try:
        yield
    except (BadInput, torch.OutOfMemoryError):
        raise
    except kinds as error:
        raise BadInput(f"{what} ({first_line(error)}): {cure}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" where something known is near."""
    close = get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: BaseException) -> str:
    """An exception of another library as part of a one-line message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}"
