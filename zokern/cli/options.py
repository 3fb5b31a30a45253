"""From settings to options, and from a configuration file to both."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..documents import Unreadable, of_json, of_yaml
from ..errors import BadInput, nearest
from ..finetune.options import Option, as_option, brief, fit, options_of, parsed, title, written
from ..finetune.settings import EACH_TIME
from .streams import fail


def command_of(settings: type, make: Callable, run: Callable, **others: inspect.Parameter) -> Callable[..., None]:
    """A function that typer makes a command of: the options of the dataclass ``settings``, --config, and ``others``, parameters.

    It calls run(made, given, ...) with a function that returns make(values by name), the names of the options that the user gave, and
    the others.
    """
    options = options_of(settings)
    parameters = [_parameter(option) for option in options.values()] + list(others.values())
    parameters.append(_config(options | {name: Option(name, str | None) for name in others}))
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    def command(context: typer.Context, config: Path | None = None, **values: Any) -> None:
        more = {name: values.pop(name) for name in others}
        given = {name for name in values if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"}

        def made() -> Any:
            texts = {name: value for name, value in values.items() if isinstance(value, str)}
            return make(values | {name: parsed(title(name), text, options[name].hint) for name, text in texts.items()})

        run(made, given, **more)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(option: Option) -> inspect.Parameter:
    flags = [title(name) for name in (option.name, *option.aliases)]  # given twice, the last one holds
    if option.hint == bool | None:  # of other flags what is not asked for is off
        flags = [f"{flags[0]}/--no-{flags[0][2:]}"]
    shown = typer.Option(*flags, help=option.help, show_default=option.default not in (None, (), False))
    hint: Any = option.hint if as_option(option.hint) is bool else as_option(option.hint) | None
    default, where = written(option.default), inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, where, default=default, annotation=Annotated[hint, shown])


def _config(options: dict[str, Option]) -> inspect.Parameter:
    """The parameter --config: what a file says becomes the default of the options."""

    def configure(context: typer.Context, path: Path | None) -> Path | None:
        if path is None or context.resilient_parsing:
            return path
        try:
            values = configured(path, context.info_name or "", options)
        except BadInput as error:
            fail(error)
        context.default_map = {**(context.default_map or {}), **{name: written(value) for name, value in values.items()}}
        return path

    text = "YAML or JSON file with any of these options; the command line goes before it."
    option = Annotated[Path | None, typer.Option(help=text, callback=configure, is_eager=True)]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


def configured(path: Path, command: str, options: dict[str, Option]) -> dict[str, Any]:
    """Options of a command by name, as a configuration file has them; of a run's record its settings, but where its results were.

    Args:
        options: of the command, by name.
    """
    found = _read(path)
    if isinstance(found.get("settings"), dict):
        if command != "finetune":
            raise BadInput(f"--config {path} is the record of a run, for finetune: pass the run's folder, {path.parent}, as --model")
        found = {name: value for name, value in found["settings"].items() if name not in EACH_TIME}
    names = {spelling: name for name, option in options.items() for spelling in (name, *option.aliases, *option.formerly)}
    values: dict[str, Any] = {}
    seen: dict[str, Any] = {}  # option -> what the file calls it
    for key, value in found.items():
        spelling, what = str(key).replace("-", "_"), f"--config {path}: {key!r}"
        if spelling == "trust_remote_code":
            raise BadInput(f"{what} is of the command line alone: remove it, and pass it there if you trust the model")
        if spelling not in names:
            raise BadInput(f"--config {path}: {brief(key)} is no option of {command}{nearest(spelling, names)}: remove or correct it")
        name = names[spelling]
        if name in seen:
            as_well = "" if key == seen[name] else f" as {seen[name]!r}"
            raise BadInput(f"{what} is there twice{as_well}: remove one")
        seen[name], hint = key, options[name].hint
        if value is not None:  # as if it were not there
            values[name] = fit(what, parsed(what, value, hint) if isinstance(value, str) else value, hint)
    return values


def _read(path: Path) -> dict:
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
