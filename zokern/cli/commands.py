"""The commands."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import evolve, finetune
from ..errors import BadInput, need
from ..evolve.restore import replay as replay_evolved
from ..finetune.options import Option, options_of, title
from ..finetune.output import EVOLVE
from ..finetune.output import command_of as command_of_run
from ..finetune.restore import Evaluation, as_lines, evaluate, folder_and_log, read, replay, steps_of
from ..finetune.run_settings import RunSettings
from ..trajectory import describe, lines
from .options import command_of
from .streams import fail, failing, tell

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def zokern() -> None:
    """Zeroth-order fine-tuning of language models: two forward passes a step, no gradients.

    Exit codes: 0 done, 2 input that cannot be used, 130 interrupted, 141 done, but nobody read to the end what was printed.
    """


RESUME = Option("resume", str | None, "Go on with the run in this folder, or to more --steps; no other options.")


@app.command("finetune")
@command_of(options_of(finetune.Settings) | {"resume": RESUME})
def train(values: dict[str, Any], given: set[str]) -> None:
    """Fine-tune a language model by forward passes. With no options: a demonstration that needs no network."""
    _run(finetune.Settings, finetune.finetune, finetune.resume, values, given)


@app.command("evolve")
@command_of(options_of(evolve.Settings) | {"resume": RESUME})
def climb(values: dict[str, Any], given: set[str]) -> None:
    """Fine-tune a language model by rewards of what it writes, with evolution strategies."""
    _run(evolve.Settings, evolve.evolve, evolve.resume, values, given)


def _run(kind: type[RunSettings], begin: Callable, go_on: Callable, values: dict[str, Any], given: set[str]) -> None:
    run = values.pop("resume")
    settings: Any = kind.flat(values)
    if run is None:
        result = begin(settings, say=tell)
    elif others := given - {"resume", "steps", "trust_remote_code"}:
        options = ", ".join(map(title, sorted(others)))
        raise BadInput(f"--resume {run} goes on with that run's own settings, and takes --steps alone: leave out {options}")
    else:
        result = go_on(run, tell, settings.steps if "steps" in given else None, settings.trust_remote_code)
    if finetune.leads():
        tell("\n".join(result.lines()))
    if result.interrupted:
        raise typer.Exit(130)


@app.command("evaluate")
@command_of(options_of(Evaluation))
def judge(values: dict[str, Any], given: set[str]) -> None:
    """Judge a model: of a run on its own held-out and test rows, or any on a task or a table."""
    tell("\n".join(as_lines(evaluate(Evaluation(**values)))))


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
) -> None:
    """Make a fine-tuned model again from the base model and a trajectory, without a forward pass, bit for bit."""
    steps = steps_of(run, step)
    again = replay_evolved if command_of_run(folder_and_log(run)[0]) == EVOLVE else replay
    with need("tqdm").tqdm(total=steps, unit="step", dynamic_ncols=True, delay=0.01) as bar:
        again(run, out, steps, model, passes_per_sweep, lambda done: bar.update(done - bar.n), trust_remote_code)
    tell(f"saved      {out}: the model after step {steps} of {run}")


@app.command()
@failing()
def info(
    log: Annotated[str, typer.Argument(help="A trajectory, or a run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a trajectory holds."""
    trajectory = read(str(folder_and_log(log)[1]))
    tell(json.dumps(describe(trajectory), indent=1) if as_json else "\n".join(lines(trajectory)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure this machine, in a checkout of the repository; takes what python -m bench takes (zokern bench --help)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        fail("the benchmarks are in zokern's repository, not in the package: clone it, pip install -e '.[bench]'")
    sys.path.insert(0, str(root))
    raise typer.Exit(import_module("bench.__main__").main(context.args, prog="zokern bench"))
