"""The options of a command: the fields of its settings, and the settings that optimizers declare."""

from collections import defaultdict
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import get_type_hints

import torch

from ..optim import Setting, optimizers

# How a setting of an optimizer is given, by its kind; other kinds are for Python alone.
KINDS = {float: float | None, int: int | None, bool: bool, str: str | None, tuple: tuple[float, ...], torch.dtype: str | None}
COMMANDS = ("config", "resume", "context")  # what a command takes beside its settings


@dataclass(frozen=True)
class Option:
    """An option of the command line and of configuration files.

    Attributes:
        name: of the setting: batch_size of --batch-size.
        hint: annotation of its value.
        aliases: other names of it, those of the Hugging Face Trainer or of peft.
        formerly: what earlier versions called it, in files that they wrote.
        negatable: a flag that may be on without being given, so that there is a --no-... as well.
    """

    name: str
    hint: object
    help: str
    default: object = None
    aliases: tuple[str, ...] = ()
    formerly: tuple[str, ...] = ()
    negatable: bool = False


def option(help, default=None, *aliases, formerly=()):
    """A field that is an option: ``help`` is its line, or makes it."""
    return field(default=default, metadata={"help": help, "aliases": aliases, "formerly": formerly})


def options_of(settings: type) -> dict[str, Option]:
    """name -> Option of each field of a dataclass; in place of its field ``optimizer_settings`` of each setting that is declared."""
    found, hints, own = {}, get_type_hints(settings), {f.name for f in fields(settings)}
    for f in fields(settings):
        if f.name == "optimizer_settings":
            found |= {name: made for name, made in optimizer_options().items() if name not in own}
        else:
            help = f.metadata["help"]
            more = dict(f.metadata, help=help() if callable(help) else help)
            found[f.name] = Option(f.name, hints[f.name], default=f.default, **more)
    return found


def optimizer_options() -> dict[str, Option]:
    """name -> Option of every setting that a registered optimizer takes and that can be written."""
    taken = defaultdict(dict)
    for optimizer, cls in optimizers().items():
        for name, setting in cls.declared().items():
            if setting.kind in KINDS and name not in COMMANDS:
                taken[name][optimizer] = setting
    return {name: _of_optimizers(name, by_optimizer) for name, by_optimizer in taken.items()}


def _of_optimizers(name, taken: dict[str, Setting]) -> Option:
    """One option of a setting, whose help says which optimizers take it where that is not every one that perturbs weights."""
    alike = defaultdict(list)
    for optimizer, setting in taken.items():
        alike[_help(setting)].append(optimizer)
    everyone = [other for other, cls in optimizers().items() if not cls.takes_model]
    help = " ".join(text if takers == everyone else f"{_names(takers, everyone)}: {text}" for text, takers in alike.items())
    first, on = next(iter(taken.values())), any(setting.default is True for setting in taken.values())
    hint = bool | None if on else KINDS[first.kind]
    return Option(name, hint, help, {bool: False, tuple[float, ...]: ()}.get(hint), negatable=on)


def _help(setting):
    if setting.kind is bool:
        return setting.help
    return f"{setting.help.removesuffix('.')} ({', '.join(setting.choices) or setting.cure})."


def _names(takers, everyone):
    others = [name for name in everyone if name not in takers]
    return f"all but {', '.join(others)}" if 0 < len(others) < len(takers) else ", ".join(takers)


def title(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def nearest(name: str, known) -> str:
    """ " (did you mean ...?)" where something known is near."""
    close = get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
