"""From settings to options, and from a configuration file to both."""

import inspect
import json
import types
from dataclasses import fields
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import typer

from ..errors import BadInput
from ..finetune.settings import nearest


def command_of(settings, run, **others):
    """A function that typer makes a command of: one option a field of the dataclass ``settings``, --config, and ``others``, parameters.

    It calls run(make, given, ...) with a function that makes the settings, the names of those that the user gave, and the others.
    """
    hints = get_type_hints(settings)
    parameters = [_parameter(f, hints[f.name]) for f in fields(settings)] + list(others.values())
    parameters.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=CONFIG))
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    def command(context, config=None, **values):
        more = {name: values.pop(name) for name in others}
        given = {name for name in values if context.get_parameter_source(name).name != "DEFAULT"}
        return run(lambda: settings(**{name: _value(name, value, hints[name]) for name, value in values.items()}), given, **more)

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
    """A value as the settings hold it."""
    if getattr(hint, "__origin__", None) is not tuple:
        return value
    inside = get_args(hint)[0]
    try:
        return tuple(inside(part.strip()) for part in value.split(",")) if value else ()
    except ValueError:
        raise BadInput(f"--{name.replace('_', '-')} {value}: pass {inside.__name__}s with commas between them") from None


def _configure(context: typer.Context, path: Path | None):
    """What a configuration file says becomes the options' default."""
    if path is None or context.resilient_parsing:
        return path
    try:
        found = _of_a_run(path, context.info_name, _read(path))
        known = {p.name for p in context.command.params} - {"config", "help"}
        values = {}
        for key, value in found.items():
            name = str(key).replace("-", "_")
            if name not in known:
                raise BadInput(f"--config {path}: {key!r} is no option of {context.info_name}{nearest(name, known)}: remove or correct it")
            if name in values:
                raise BadInput(f"--config {path}: {key!r} is there twice: remove one")
            if isinstance(value, dict):
                raise BadInput(f"--config {path}: {key!r} holds a table: give one value, or a list")
            if value is not None:  # as if it were not there
                values[name] = ",".join(map(str, value)) if isinstance(value, list) else value
    except BadInput as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _of_a_run(path, command, found):
    """Of a run's record the settings, but where its results were: those of another run go elsewhere."""
    if not isinstance(found.get("settings"), dict):
        return found
    if command != "finetune":
        raise BadInput(f"--config {path} is the record of a run, for finetune: pass the run's folder, {path.parent}, as --model")
    return {name: value for name, value in found["settings"].items() if name not in ("out", "overwrite")}


def _read(path):
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise BadInput(f"--config {path} cannot be read ({reason}): pass a YAML or JSON file") from None
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadInput(f"--config {path}, line {error.lineno}: not JSON ({error.msg}): correct it") from None
    elif path.suffix.lower() in (".yaml", ".yml"):
        from ..errors import need

        yaml = need("yaml")
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
            raise BadInput(f"--config {path}, line {line}: not YAML ({getattr(error, 'problem', error)}): correct it") from None
    else:
        raise BadInput(f"--config {path} ends in {path.suffix!r}: pass a .yaml, .yml or .json file")
    if not isinstance(found, dict):
        raise BadInput(f"--config {path} holds no options: write one 'name: value' a line")
    return found


CONFIG = Annotated[
    Path | None,
    typer.Option(help="YAML or JSON file with any of these options; the command line goes before it.", callback=_configure, is_eager=True),
]
