"""From settings to options, and from a configuration file to both."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..documents import Unreadable, of_json, of_yaml
from ..errors import BadInput, nearest
from ..finetune.options import Option, as_option, brief, fit, parsed, title, written
from ..finetune.run_settings import EACH_TIME
from .looks import JSON, QUIET, Looks
from .streams import failing


def command_of(options: dict[str, Option]) -> Callable[[Callable], Callable]:
    """Makes of run(values by name, names of those that the user gave, looks) what typer makes a command of, with these options, --config,
    --quiet and --json."""
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [*map(_parameter, options.values()), _config(options), _flag("quiet", QUIET), _flag("json", JSON), context]

    def made(run: Callable) -> Callable:
        @failing()
        def command(context: typer.Context, config: Path | None = None, quiet: bool = False, json: bool = False, **values: Any) -> None:
            given = {name for name in values if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"}
            texts = {name: value for name, value in values.items() if isinstance(value, str)}
            values |= {name: parsed(title(name), text, options[name].hint) for name, text in texts.items()}
            run(values, given, Looks(quiet, json))

        command.__doc__, command.__annotations__ = run.__doc__, {p.name: p.annotation for p in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return made


def _parameter(option: Option) -> inspect.Parameter:
    flags = [title(name) for name in (option.name, *option.aliases)]  # given twice, the last one holds
    if option.hint == bool | None:  # of other flags what is not asked for is off
        flags = [f"{flags[0]}/--no-{flags[0][2:]}"]
    shown = typer.Option(*flags, help=option.help, show_default=option.default not in (None, (), False))
    hint: Any = option.hint if as_option(option.hint) is bool else as_option(option.hint) | None
    default, where = written(option.default), inspect.Parameter.KEYWORD_ONLY
    if option.several:
        hint, default = list[str], list(option.default)
    return inspect.Parameter(option.name, where, default=default, annotation=Annotated[hint, shown])


def _flag(name: str, text: str) -> inspect.Parameter:
    """Of every run of a command anew, which no file sets."""
    annotation = Annotated[bool, typer.Option(f"--{name}", help=text)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)


def _config(options: dict[str, Option]) -> inspect.Parameter:
    """The parameter --config: what a file says becomes the default of the options."""

    @failing()
    def configure(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None and not context.resilient_parsing:
            values = configured(path, context.info_name or "", options)
            texts = {name: list(value) if options[name].several else written(value) for name, value in values.items()}
            context.default_map = {**(context.default_map or {}), **texts}
        return path

    text = "YAML or JSON file with any of these options; the command line goes before it."
    option = Annotated[Path | None, typer.Option(help=text, callback=configure, is_eager=True)]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


def configured(path: Path, command: str, options: dict[str, Option]) -> dict[str, Any]:
    """Options of a command by name, as a configuration file has them; of a run's record its settings, but where its results were."""
    found = _read(path)
    if isinstance(found.get("settings"), dict):
        if command != (own := found.get("command", "finetune")):
            raise BadInput(f"--config {path} is the record of a run, for {own}: pass the run's folder, {path.parent}, as --model")
        found = {name: value for name, value in found["settings"].items() if name not in EACH_TIME}
    names = {spelling: name for name, option in options.items() for spelling in (name, *option.aliases, *option.formerly)}
    values: dict[str, Any] = {}
    seen: dict[str, Any] = {}  # option -> what the file calls it
    for key, value in found.items():
        spelling, what = str(key).replace("-", "_"), f"--config {path}: {key!r}"
        if spelling == "trust_remote_code":
            raise BadInput(f"{what} is of the command line alone: remove it, and pass it there if you trust the model")
        if spelling in ("quiet", "json"):
            raise BadInput(f"{what} is of the command line alone: remove it, and pass it there")
        if spelling not in names:
            raise BadInput(f"--config {path}: {brief(key)} is no option of {command}{nearest(spelling, names)}: remove or correct it")
        name = names[spelling]
        if name in seen:
            raise BadInput(f"{what} is there twice as {seen[name]!r}: remove one")
        seen[name], hint = key, options[name].hint
        if value is not None:  # as if it were not there
            if isinstance(value, str):
                value = [value] if options[name].several else parsed(what, value, hint)
            values[name] = fit(what, value, hint)
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
