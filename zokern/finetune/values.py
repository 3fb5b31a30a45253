"""Values of settings: what a field of an annotation may hold, and how its option is written on the command line."""

from dataclasses import fields, replace
from numbers import Integral, Real
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from ..errors import BadInput

KINDS = {bool: (bool, "true or false"), int: (Integral, "an integer"), float: (Real, "a number"), str: (str, "text")}


def fit(name: str, value, hint):
    """A value as a field of this annotation holds it: a bool, int, float or str, or a tuple or dict of these; None where it may be.

    Args:
        name: what an error calls it.
    Raises:
        BadInput: it is of another kind, an integer of more than 64 bits, or text that no file could be named by.
    """
    if value is None and isinstance(hint, UnionType):
        return None
    hint = _without_none(hint)
    if get_origin(hint) is tuple:
        _demand(isinstance(value, list | tuple), name, value, "a list")
        return tuple(fit(f"{name}, of which item {i}", item, get_args(hint)[0]) for i, item in enumerate(value, 1))
    if get_origin(hint) is dict:
        _demand(isinstance(value, dict), name, value, "a table")
        return {key: fit(f"{name}, of which {key!r}", item, get_args(hint)[1]) for key, item in value.items()}
    if hint is object:
        return value
    kind, words = KINDS[hint]
    _demand(isinstance(value, kind) and (hint is bool or not isinstance(value, bool)), name, value, words)
    if hint is str:
        whole = "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
        _demand(whole, name, value, "text without NUL and without half a character")
    elif isinstance(value, Integral):
        _demand(-(1 << 63) <= value < 1 << 63, name, value, f"{words} of 64 bits")
    return hint(value)


def fitting(settings, called=repr):
    """A dataclass with every field as ``fit`` has it; ``called`` makes of a field's name what an error calls it."""
    hints = get_type_hints(type(settings))
    return replace(settings, **{f.name: fit(called(f.name), getattr(settings, f.name), hints[f.name]) for f in fields(settings)})


def as_option(hint) -> type:
    """The type in which an option of this annotation is given: a tuple is text with commas."""
    hint = _without_none(hint)
    return hint if hint in (bool, int, float) else str


def parsed(name: str, text: str, hint):
    """The value that a text on the command line, or in a configuration file, stands for.

    Raises:
        BadInput: it stands for none of this annotation.
    """
    hint = _without_none(hint)
    several = get_origin(hint) is tuple
    kind = get_args(hint)[0] if several else hint
    try:
        if several:
            return tuple(kind(part.strip()) for part in text.split(",")) if text else ()
        return text if kind is bool else kind(text)
    except ValueError:
        words = f"{kind.__name__}s with commas between them" if several else KINDS[kind][1]
        raise BadInput(f"{name} {shown(text)}: pass {words}") from None


def written(value):
    """A value as its option takes it: of a tuple its items with commas between them."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def shown(value) -> str:
    """The same as a text that fits into a line."""
    text = str(written(value))
    return text if text.isprintable() and len(text) <= 80 else brief(text)


def brief(value) -> str:
    """A value of any kind and size, for a line."""
    if isinstance(value, Integral) and int(value).bit_length() > 64:
        return f"an integer of {int(value).bit_length()} bits"
    if value is None or isinstance(value, str | Real):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}..."
    return {list: "a list", tuple: "a list", dict: "a table"}.get(type(value), f"a {type(value).__name__}")


def _without_none(hint):
    if isinstance(hint, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _demand(holds, name, value, words):
    if not holds:
        raise BadInput(f"{name} is {brief(value)}: pass {words}")
