"""The options of a command, fields of its settings and settings that optimizers declare: what each may hold, and how it is written."""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, get_args, get_origin, get_type_hints

import torch

from ..errors import BadInput, nearest
from ..optim import Setting, optimizers

# How a setting of an optimizer is given, by its kind; other kinds are for Python alone.
HINTS: dict[Any, Any] = {kind: kind | None for kind in (float, int, str)}
HINTS |= {bool: bool, tuple: tuple[float, ...], torch.dtype: str | None}
KINDS = {bool: (bool, "true or false"), int: (Integral, "an integer"), float: (Real, "a number"), str: (str, "text")}
COMMANDS = ("config", "resume", "context")  # what a command takes beside its settings
DECIDED = ("maximize",)  # settings that follow from the command: finetune has losses, evolve rewards


@dataclass(frozen=True)
class Option:
    """An option of the command line and of configuration files.

    Attributes:
        name: of the setting: batch_size of --batch-size.
        hint: annotation of its value: a bool, int, float or str, or a tuple of one of these; bool | None of a flag that may be on without
            being given, so that there is a --no-... as well.
        aliases: other names of it, those of the Hugging Face Trainer or of peft.
        formerly: what earlier versions called it, in files that they wrote.
        several: of a tuple of texts: whether it is given once for each, and not with commas between them.
        choices: of a str: the values that there are, or a function that tells them.
    """

    name: str
    hint: Any
    help: str = ""
    default: Any = None
    aliases: tuple[str, ...] = ()
    formerly: tuple[str, ...] = ()
    several: bool = False
    choices: Any = None


def option(help: str | Callable[[], str], default: Any = None, *aliases: str, **more: Any) -> Any:
    """A field that is an option: ``help`` is its line, or makes it; ``more`` as of ``Option``."""
    return field(default=default, metadata={"help": help, "aliases": aliases, **more})


def options_of(settings: type) -> dict[str, Option]:
    """name -> Option of each field of a dataclass; in place of its field ``optimizer_settings`` of each setting that is declared."""
    found: dict[str, Option] = {}
    hints, own = get_type_hints(settings), {f.name for f in fields(settings)}
    for f in fields(settings):
        if f.name == "optimizer_settings":
            found |= {name: made for name, made in _optimizer_options().items() if name not in own}
        else:
            help = f.metadata["help"]
            more = dict(f.metadata, help=help() if callable(help) else help)
            found[f.name] = Option(f.name, hints[f.name], default=f.default, **more)
    return found


def _optimizer_options() -> dict[str, Option]:
    """name -> Option of every setting that a registered optimizer takes and that can be written."""
    taken: dict[str, dict[str, Setting]] = defaultdict(dict)
    for optimizer, cls in optimizers().items():
        for name, setting in cls.declared().items():
            if setting.kind in HINTS and name not in (*COMMANDS, *DECIDED):
                taken[name][optimizer] = setting
    return {name: _of_optimizers(name, by_optimizer) for name, by_optimizer in taken.items()}


def _of_optimizers(name: str, taken: dict[str, Setting]) -> Option:
    """One option of a setting, whose help says which optimizers take it where that is not every one that perturbs weights."""
    alike = defaultdict(list)  # what is said of it -> names of the optimizers
    for optimizer, setting in taken.items():
        values = "" if setting.kind is bool else f" ({', '.join(setting.choices) or setting.cure})"
        alike[f"{setting.help.removesuffix('.')}{values}."].append(optimizer)
    everyone = [other for other, cls in optimizers().items() if not cls.takes_model]
    help = " ".join(text if takers == everyone else f"{_names(takers, everyone)}: {text}" for text, takers in alike.items())
    on = any(setting.default is True for setting in taken.values())
    hint = bool | None if on else HINTS[next(iter(taken.values())).kind]
    return Option(name, hint, help, False if hint is bool else () if get_origin(hint) is tuple else None)


def _names(takers: list[str], everyone: list[str]) -> str:
    others = [name for name in everyone if name not in takers]
    return f"all but {', '.join(others)}" if 0 < len(others) < len(takers) else ", ".join(takers)


def fit(name: str, value: Any, hint: Any) -> Any:
    """A value as a field of this annotation holds it: a bool, int, float or str, or a tuple or dict of these; None where it may be.

    Args:
        name: what an error calls it.

    Raises:
        BadInput: it is of another kind, an integer of more than 64 bits, or text that no file could be named by.
    """

    def demand(holds: bool, words: str) -> None:
        if not holds:
            raise BadInput(f"{name} is {brief(value)}: pass {words}")

    if hint is object or value is None and type(None) in get_args(hint):
        return value
    hint = _without_none(hint)
    if get_origin(hint) is tuple:
        demand(isinstance(value, list | tuple), "a list")
        return tuple(fit(f"{name}, of which item {i}", item, get_args(hint)[0]) for i, item in enumerate(value, 1))
    if get_origin(hint) is dict:
        demand(isinstance(value, dict), "a table")
        return {key: fit(f"{name}, of which {key!r}", item, get_args(hint)[1]) for key, item in value.items()}
    kind, words = KINDS[hint]
    demand(isinstance(value, kind) and (hint is bool or not isinstance(value, bool)), words)
    if hint is str:
        demand("\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value), "text without NUL and without half a character")
    elif isinstance(value, Integral):
        demand(-(1 << 63) <= int(value) < 1 << 63, f"{words} of 64 bits")
    return hint(value)


def fitting(settings: Any) -> Any:
    """A dataclass of options with every field as ``fit`` has it, in the range that its annotation tells, and one of its choices."""
    hints = get_type_hints(type(settings))
    made = replace(settings, **{name: fit(title(name), value, hints[name]) for name, value in vars(settings).items()})
    ranges = get_type_hints(type(settings), include_extras=True)
    for f in fields(made):
        value, choices = getattr(made, f.name), f.metadata.get("choices", ())
        cure, holds = getattr(_without_none(ranges[f.name]), "__metadata__", ("", None))
        if value is not None and holds is not None and not holds(value):
            raise BadInput(f"{title(f.name)} {shown(value)}: pass {cure}")
        if value is not None and choices:
            choose(f.name, value, choices() if callable(choices) else choices)
    return made


def choose(name: str, value: Any, choices: Collection[str]) -> None:
    if value not in choices:
        raise BadInput(f"{title(name)} {shown(value)}: pass one of {', '.join(choices)}{nearest(value, choices)}")


def parsed(name: str, text: str, hint: Any) -> Any:
    """The value that a text on the command line, or in a configuration file, stands for."""
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


def as_option(hint: Any) -> type:
    """The type in which an option of this annotation is given: a tuple is text with commas."""
    hint = _without_none(hint)
    return hint if hint in (bool, int, float) else str


def written(value: Any) -> Any:
    """A value as its option takes it: of a tuple its items with commas between them."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    """The same as a text that fits into a line."""
    text = str(written(value))
    return text if text.isprintable() and len(text) <= 80 else brief(text)


def brief(value: Any) -> str:
    """A value of any kind and size, for a line."""
    if isinstance(value, Integral) and int(value).bit_length() > 64:
        return f"an integer of {int(value).bit_length()} bits"
    if value is None or isinstance(value, str | Real):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}..."
    return "a list" if isinstance(value, list | tuple) else "a table" if isinstance(value, dict) else f"a {type(value).__name__}"


def title(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def _without_none(hint: Any) -> Any:
    return next(kind for kind in get_args(hint) if kind is not type(None)) if type(None) in get_args(hint) else hint
