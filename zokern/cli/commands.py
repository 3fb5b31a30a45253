"""The commands."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import BadInput, need
from ..finetune import Settings, finetune, resume
from ..finetune.options import Option, options_of, title
from ..finetune.restore import Evaluation, as_lines, evaluate, folder_and_log, read, replay, steps_of
from ..trajectory import describe, lines
from .options import command_of
from .streams import fail, failing, tell

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def zokern() -> None:
    """Zeroth-order fine-tuning of language models: two forward passes a step, no gradients.

    Exit codes: 0 done, 2 input that cannot be used, 130 interrupted, 141 done, but nobody read to the end what was printed.
    """


RESUME = Option("resume", str | None, "Go on with the run in this folder from its newest checkpoint, or to more --steps; no other options.")


@app.command("finetune")
@command_of(options_of(Settings) | {"resume": RESUME})
def train(values: dict[str, Any], given: set[str]) -> None:
    """Fine-tune a language model by forward passes. With no options: a demonstration that needs no network."""
    run = values.pop("resume")
    settings = Settings.flat(values)
    if run is None:
        result = finetune(settings, say=tell)
    elif others := given - {"resume", "steps", "trust_remote_code"}:
        options = ", ".join(map(title, sorted(others)))
        raise BadInput(f"--resume {run} goes on with that run's own settings, and takes --steps alone: leave out {options}")
    else:
        result = resume(run, tell, settings.steps if "steps" in given else None, settings.trust_remote_code)
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
    run: Annotated[str, typer.Argument(help="A run's folder (--out of finetune), or the trajectory in it.")],
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
    with need("tqdm").tqdm(total=steps, unit="step", dynamic_ncols=True, delay=0.01) as bar:
        replay(run, out, steps, model, passes_per_sweep, lambda done: bar.update(done - bar.n), trust_remote_code)
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
