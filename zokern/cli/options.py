"""From settings to options, and from a configuration file to both."""

import inspect
import types
from dataclasses import fields
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import typer

from ..documents import Unreadable, of_json, of_yaml
from ..errors import BadInput
from ..finetune.settings import EACH_TIME, nearest, shown, title
from ..finetune.values import KINDS, brief, fit
from .streams import fail


def command_of(settings, run, **others):
    """A function that typer makes a command of: one option a field of the dataclass ``settings``, --config, and ``others``, parameters.

    It calls run(make, given, ...) with a function that makes the settings, the names of those that the user gave, and the others.
    """
    hints = get_type_hints(settings)
    parameters = [_parameter(f, hints[f.name]) for f in fields(settings)] + list(others.values())
    parameters.append(_config(hints | dict.fromkeys(others, str | None)))
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    def command(context, config=None, **values):
        more = {name: values.pop(name) for name in others}
        given = {name for name in values if context.get_parameter_source(name).name != "DEFAULT"}
        return run(lambda: settings(**{name: _value(title(name), value, hints[name]) for name, value in values.items()}), given, **more)

    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(f, hint):
    kind = _plain(hint)
    flags = [f"--{f.name.replace('_', '-')}"]  # a flag has no --no-...: what is not asked for is off
    text = typer.Option(*flags, help=f.metadata["help"], show_default=f.default not in (None, (), False))
    optional = hint if kind is bool else kind | None
    default = _shown(f.default) if isinstance(f.default, tuple) else f.default
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[optional, text])


def _plain(hint):
    """The type an option is given in: a tuple is written 'a,b'."""
    if isinstance(hint, types.UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    return str if hint not in (bool, int, float) else hint


def _shown(value):
    return (",".join(map(str, value)) or None) if isinstance(value, tuple) else str(value)


def _value(name, value, hint):
    """A value as the settings hold it, of one as it is written."""
    several = get_origin(hint) is tuple
    if several and value is None:
        return ()
    kind = get_args(hint)[0] if several else _plain(hint)
    if not isinstance(value, str) or kind is bool:
        return value
    try:
        if several:
            return tuple(kind(part.strip()) for part in value.split(",")) if value else ()
        return kind(value)
    except ValueError:
        words = f"{kind.__name__}s with commas between them" if several else KINDS[kind][1]
        raise BadInput(f"{name} {shown(value)}: pass {words}") from None


def _config(hints):
    """The parameter --config: what a file says becomes the default of the options, whose annotations are ``hints``."""

    def configure(context: typer.Context, path: Path | None):
        if path is None or context.resilient_parsing:
            return path
        try:
            values = configured(path, context.info_name, hints)
        except BadInput as error:
            fail(error)
        shown = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
        context.default_map = {**(context.default_map or {}), **shown}
        return path

    text = "YAML or JSON file with any of these options; the command line goes before it."
    option = Annotated[Path | None, typer.Option(help=text, callback=configure, is_eager=True)]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


def configured(path: Path, command: str, hints: dict) -> dict:
    """Options of a command by name, as a configuration file has them; of a run's record its settings, but where its results were.

    Args:
        hints: annotations of the command's options.
    Raises:
        BadInput: the file cannot be read, or holds what is no option, no value of its kind, or for the command line alone.
    """
    found = _read(path)
    if isinstance(found.get("settings"), dict):
        if command != "finetune":
            raise BadInput(f"--config {path} is the record of a run, for finetune: pass the run's folder, {path.parent}, as --model")
        found = {name: value for name, value in found["settings"].items() if name not in EACH_TIME}
    values = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name == "trust_remote_code":
            raise BadInput(f"--config {path}: {key!r} is of the command line alone: remove it, and pass it there if you trust the model")
        if name not in hints:
            raise BadInput(f"--config {path}: {brief(key)} is no option of {command}{nearest(name, hints)}: remove or correct it")
        if name in values:
            raise BadInput(f"--config {path}: {key!r} is there twice: remove one")
        if isinstance(value, str):
            value = _value(f"--config {path}: {key!r}", value, hints[name])
        if value is not None:  # as if it were not there
            values[name] = fit(f"--config {path}: {key!r}", value, hints[name])
    return values


def _read(path):
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise BadInput(f"--config {path} ends in {path.suffix!r}: pass a .yaml, .yml or .json file")
    try:
        found = (of_json if suffix == ".json" else of_yaml)(path.read_text(encoding="utf-8-sig"))
    except Unreadable as error:
        raise BadInput(f"--config {path}, line {error.line}: {error}: correct it") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise BadInput(f"--config {path} cannot be read ({reason}): pass a YAML or JSON file") from None
    if not isinstance(found, dict):
        raise BadInput(f"--config {path} holds no options: write one 'name: value' a line")
    return found
