"""The commands."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import evolve, finetune
from ..errors import BadInput
from ..evolve.restore import replay as replay_evolved
from ..finetune.options import Option, options_of, title
from ..finetune.output import EVOLVE
from ..finetune.output import command_of as command_of_run
from ..finetune.restore import Evaluation, as_lines, evaluate, folder_and_log, read, replay, steps_of
from ..finetune.run_settings import RunSettings
from ..trajectory import describe, facts, lines
from ..version import __version__
from .doctor import doctor
from .looks import JSON, QUIET, Looks, live
from .options import command_of
from .streams import fail, failing, tell

PRETTY: Any = "rich" if live(sys.stdout) else None  # of help and of typer's errors
WIDE = {"max_content_width": 1000}  # of plain help, where the user has set COLUMNS
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=PRETTY, context_settings=WIDE
)


def _version(asked: bool) -> None:
    if asked:
        tell(f"zokern {__version__}")
        raise typer.Exit


@app.callback()
def zokern(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Zeroth-order fine-tuning of language models: two forward passes a step, no gradients.

    Results go to standard output, as tables on a terminal and elsewhere as lines. Progress goes to standard error: a bar on a terminal,
    elsewhere a line name=value ... at each evaluation, and every minute without one.

    Exit codes: 0 done, 2 input that cannot be used, 130 interrupted, 141 done, but nobody read to the end what was printed.
    """


RESUME = Option("resume", str | None, "Go on with the run in this folder, or to more --steps; no other options.")


@app.command("finetune")
@command_of(options_of(finetune.Settings) | {"resume": RESUME})
def train(values: dict[str, Any], given: set[str], looks: Looks) -> None:
    """Fine-tune a language model by forward passes. With no options: a demonstration that needs no network."""
    _run(finetune.Settings, finetune.finetune, finetune.resume, values, given, looks)


@app.command("evolve")
@command_of(options_of(evolve.Settings) | {"resume": RESUME})
def climb(values: dict[str, Any], given: set[str], looks: Looks) -> None:
    """Fine-tune a language model by rewards of what it writes, with evolution strategies."""
    _run(evolve.Settings, evolve.evolve, evolve.resume, values, given, looks)


def _run(kind: type[RunSettings], begin: Callable, go_on: Callable, values: dict[str, Any], given: set[str], looks: Looks) -> None:
    run = values.pop("resume")
    settings: Any = kind.flat(values)
    others = given - {"resume", "steps", "trust_remote_code"}
    if run is not None and others:
        options = ", ".join(map(title, sorted(others)))
        raise BadInput(f"--resume {run} goes on with that run's own settings, and takes --steps alone: leave out {options}")
    with looks.progress() as progress:
        if run is None:
            result = begin(settings, say=looks.say, progress=progress)
        else:
            steps = settings.steps if "steps" in given else None
            result = go_on(run, looks.say, steps, settings.trust_remote_code, progress=progress)
    if finetune.leads():
        looks.show(asdict(result), result.lines(), result.facts(), result.numbers())
    if result.interrupted:
        raise typer.Exit(130)


@app.command("evaluate")
@command_of(options_of(Evaluation))
def judge(values: dict[str, Any], given: set[str], looks: Looks) -> None:
    """Judge a model: of a run on its own held-out and test rows, or any on a task or a table."""
    found = evaluate(Evaluation(**values))
    sets = {name: of for name, of in found.items() if isinstance(of, dict)}
    numbers = {name: {key: f"{x:.4f}" if key != "rows" else str(x) for key, x in of.items()} for name, of in sets.items()}
    looks.show(found, as_lines(found), [(name, found[name]) for name in ("model", "data")], numbers)


@app.command("replay")
@failing()
def make(
    run: Annotated[str, typer.Argument(help="A run's folder (--out of finetune or evolve), or the trajectory in it.")],
    out: Annotated[str, typer.Option(help="A new folder for model and tokenizer.")],
    step: Annotated[str | None, typer.Option(help="Steps to make, or best. Without it: all.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="The base model, where it has moved.", show_default=False)] = None,
    passes_per_sweep: Annotated[int, typer.Option(help="Passes over the weights that are made in one read and write.")] = 96,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the base model. Read it first.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help=QUIET)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Make a fine-tuned model again from the base model and a trajectory, without a forward pass, bit for bit."""
    looks, steps = Looks(quiet, as_json), steps_of(run, step)
    again = replay_evolved if command_of_run(folder_and_log(run)[0]) == EVOLVE else replay
    with looks.progress() as progress:
        again(run, out, steps, model, passes_per_sweep, lambda done: progress("step", done, steps, {}), trust_remote_code)
    saved = f"{out}: the model after step {steps} of {run}"
    looks.show({"run": run, "out": out, "step": steps}, [f"saved      {saved}"], [("saved", saved)])


@app.command()
@failing()
def info(
    log: Annotated[str, typer.Argument(help="A trajectory, or a run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a trajectory holds."""
    trajectory = read(str(folder_and_log(log)[1]))
    Looks(as_json=as_json).show(describe(trajectory), lines(trajectory), facts(trajectory))


app.command("doctor")(doctor)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure this machine, in a checkout of the repository; takes what python -m bench takes (zokern bench --help)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        fail("the benchmarks are in zokern's repository, not in the package: clone it, pip install -e '.[bench]'")
    sys.path.insert(0, str(root))
    raise typer.Exit(import_module("bench.__main__").main(context.args, prog="zokern bench"))
