"""From settings to options, and from a configuration file to both."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from ..documents import Unreadable, of_json, of_yaml
from ..errors import BadInput
from ..finetune.options import Option, nearest, options_of, title
from ..finetune.settings import EACH_TIME
from ..finetune.values import as_option, brief, fit, parsed, written
from .streams import fail


def command_of(settings, make, run, **others):
    """A function that typer makes a command of: the options of the dataclass ``settings``, --config, and ``others``, parameters.

    It calls run(made, given, ...) with a function that returns make(values by name), the names of the options that the user gave, and
    the others.
    """
    options = options_of(settings)
    parameters = [_parameter(option) for option in options.values()] + list(others.values())
    parameters.append(_config(options | {name: Option(name, str | None, "") for name in others}))
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    def command(context, config=None, **values):
        more = {name: values.pop(name) for name in others}
        given = {name for name in values if context.get_parameter_source(name).name != "DEFAULT"}
        return run(lambda: make({name: _value(options[name], value) for name, value in values.items()}), given, **more)

    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(option):
    kind = as_option(option.hint)
    flags = [title(name) for name in (option.name, *option.aliases)]  # given twice, the last one holds
    if option.negatable:  # of other flags what is not asked for is off
        flags = [f"{flags[0]}/--no-{flags[0][2:]}"]
    shown = typer.Option(*flags, help=option.help, show_default=option.default not in (None, (), False))
    optional, default = option.hint if kind is bool else kind | None, None if option.default == () else written(option.default)
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[optional, shown])


def _value(option, value):
    """A value as the settings hold it, of one as it is written."""
    if value is None:
        return option.default if option.default == () else None
    return parsed(title(option.name), value, option.hint) if isinstance(value, str) else value


def _config(options):
    """The parameter --config: what a file says becomes the default of the options."""

    def configure(context: typer.Context, path: Path | None):
        if path is None or context.resilient_parsing:
            return path
        try:
            values = configured(path, context.info_name, options)
        except BadInput as error:
            fail(error)
        context.default_map = {**(context.default_map or {}), **{name: written(value) for name, value in values.items()}}
        return path

    text = "YAML or JSON file with any of these options; the command line goes before it."
    option = Annotated[Path | None, typer.Option(help=text, callback=configure, is_eager=True)]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


def configured(path: Path, command: str, options: dict[str, Option]) -> dict:
    """Options of a command by name, as a configuration file has them; of a run's record its settings, but where its results were.

    Args:
        options: of the command, by name.
    Raises:
        BadInput: the file cannot be read, or holds what is no option, no value of its kind, or for the command line alone.
    """
    found = _read(path)
    if isinstance(found.get("settings"), dict):
        if command != "finetune":
            raise BadInput(f"--config {path} is the record of a run, for finetune: pass the run's folder, {path.parent}, as --model")
        found = {name: value for name, value in found["settings"].items() if name not in EACH_TIME}
    names = {spelling: name for name, option in options.items() for spelling in (name, *option.aliases, *option.formerly)}
    values, seen = {}, {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name == "trust_remote_code":
            raise BadInput(f"--config {path}: {key!r} is of the command line alone: remove it, and pass it there if you trust the model")
        if name not in names:
            raise BadInput(f"--config {path}: {brief(key)} is no option of {command}{nearest(name, names)}: remove or correct it")
        name = names[name]
        if name in seen:
            as_well = "" if key == seen[name] else f" as {seen[name]!r}"
            raise BadInput(f"--config {path}: {key!r} is there twice{as_well}: remove one")
        seen[name], hint, what = key, options[name].hint, f"--config {path}: {key!r}"
        if isinstance(value, str):
            value = parsed(what, value, hint)
        if value is not None:  # as if it were not there
            values[name] = fit(what, value, hint)
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
