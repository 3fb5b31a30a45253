"""What is wrong with what the user gave, in one line."""

from importlib import import_module
from importlib.util import find_spec


class BadInput(ValueError):
    """An input cannot be used. The message is one line: the thing, its value and the cure."""


def require(*modules) -> None:
    """Look for optional packages without loading them.

    Raises:
        BadInput: one is not installed.
    """
    for module in modules:
        if find_spec(module) is None:
            raise BadInput(f"{module} is not installed: pip install 'zokern[demo]'")


def need(module):
    """Import an optional package, or raise as ``require`` does."""
    require(module)
    return import_module(module)


def first_line(error) -> str:
    """An exception of another library as part of a one-line message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}"
