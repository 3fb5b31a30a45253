"""What the command says: on streams that may be full or have lost their reader, of files that others wrote."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import typer

from ..errors import BadInput, first_line


def tell(text: str, err: bool = False) -> None:
    """Print lines, on standard output or error. What is no character to be seen, such as the escapes that a terminal obeys, is printed as
    its code."""
    typer.echo("\n".join(map(visible, text.split("\n"))), err=err)


def fail(error: object) -> NoReturn:
    """End the command with one line and exit code 2."""
    typer.echo(f"error: {visible(str(error))}", err=True)
    raise typer.Exit(2) from None


@contextmanager
def failing() -> Iterator[None]:
    """Input that cannot be used ends the command with one line and code 2."""
    try:
        yield
    except BadInput as error:
        fail(error)
    except OSError as error:
        what = "a file" if error.filename is None else repr(os.fsdecode(error.filename))
        fail(f"{what} cannot be used ({error.strerror or first_line(error)}): check that it is there, and may be read or written")
    except torch.OutOfMemoryError as error:
        cure = "pass a smaller --batch-size, fewer tokens, or --dtype bfloat16"
        fail(f"no memory is left on the device ({first_line(error)}): {cure}")
    except RuntimeError as error:
        if str(error) != "Could not determine home directory.":  # pathlib's
            raise
        fail("a path begins with ~ and the name of no user here: write it out")
    except ModuleNotFoundError as missing:
        fail(f"{missing.name} is not installed: pip install 'zokern[demo]'")


def visible(line: str) -> str:
    """With codes in place of what is no character to be seen."""
    return line if line.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class Lasting:
    """A stream whose failure ends nothing: from the first error on, which is kept, what is written goes nowhere.

    A run does not lose its steps because nobody reads on.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable, *given: str) -> None:
        try:
            act(*given)
        except OSError as error:
            self.error = self.error or error
            with open(os.devnull, "w") as nowhere:  # where Python flushes at exit what the stream still holds
                os.dup2(nowhere.fileno(), self.stream.fileno())


def lasting(command: Callable[[], None]) -> None:
    """Run a command that ends in SystemExit; where its output was not all written, the exit code says so.

    Raises:
        SystemExit: the command's; where that is 0, 141 after a broken pipe, and 2 with a line after any other error.
    """
    stdout, stderr = (Lasting(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))
    sys.stdout, sys.stderr = stdout, stderr
    try:
        command()
    except SystemExit as end:
        stdout.flush()
        if end.code or stdout.error is None:
            raise
        if stdout.error.errno == errno.EPIPE:
            raise SystemExit(141) from None  # what a shell says of a process that SIGPIPE ended: 128 + 13
        print(f"error: standard output cannot be written ({stdout.error.strerror}): send it elsewhere; files are whole", file=sys.stderr)
        raise SystemExit(2) from None
