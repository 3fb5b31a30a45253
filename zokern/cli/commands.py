"""The commands."""

import inspect
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput, first_line
from ..finetune.options import title
from ..finetune.restore import Evaluation
from ..finetune.settings import Settings
from .options import command_of
from .streams import fail, tell

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def zokern():
    """Zeroth-order fine-tuning of language models: two forward passes a step, no gradients.

    Exit codes: 0 done, 2 input that cannot be used, 130 interrupted, 141 done, but nobody read to the end what was printed.
    """


def failing(run):
    """-> what run() returns; input that cannot be used ends the command with one line and code 2."""
    try:
        return run()
    except BadInput as error:
        message = error
    except OSError as error:
        what = "a file" if error.filename is None else repr(os.fsdecode(error.filename))
        message = f"{what} cannot be used ({error.strerror or first_line(error)}): check that it is there, and may be read or written"
    except RuntimeError as error:
        import torch

        if str(error) == "Could not determine home directory.":  # pathlib's
            fail("a path begins with ~ and the name of no user here: write it out")
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        message = f"no memory is left on the device ({first_line(error)}): pass a smaller --batch-size or --max-length, or --dtype bfloat16"
    except ModuleNotFoundError as missing:
        message = f"{missing.name} is not installed: pip install 'zokern[demo]'"
    fail(message)


def _finetune(settings, given, resume):
    def run():
        from ..finetune import finetune
        from ..finetune import resume as go_on

        if resume is None:
            return finetune(settings(), say=tell)
        if others := given - {"steps", "trust_remote_code"}:
            options = ", ".join(map(title, sorted(others)))
            raise BadInput(f"--resume {resume} goes on with that run's own settings, and takes --steps alone: leave out {options}")
        more = settings()
        return go_on(resume, tell, more.steps if "steps" in given else None, more.trust_remote_code)

    result = failing(run)
    tell("\n".join(result.lines()))
    if result.interrupted:
        raise typer.Exit(130)


RESUME = Annotated[
    str | None, typer.Option(help="Go on with the run in this folder from its newest checkpoint, or to more --steps; no other options.")
]
app.command("finetune", help="Fine-tune a language model by forward passes. With no options: a demonstration that needs no network.")(
    command_of(
        Settings,
        Settings.flat,
        _finetune,
        resume=inspect.Parameter("resume", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=RESUME),
    )
)


def _evaluate(what, given):
    def run():
        from ..finetune.restore import as_lines, evaluate

        return as_lines(evaluate(what()))

    tell("\n".join(failing(run)))


app.command("evaluate", help="Judge a model: of a run on its own held-out and test rows, or any on a task or a table.")(
    command_of(Evaluation, lambda values: Evaluation(**values), _evaluate)
)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(help="A run's folder (--out of finetune), or the trajectory in it.")],
    out: Annotated[str, typer.Option(help="A new folder for model and tokenizer.")],
    step: Annotated[str | None, typer.Option(help="Steps to make, or best. Without it: all.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="The base model, where it has moved.", show_default=False)] = None,
    passes_per_sweep: Annotated[int, typer.Option(help="Passes over the weights that are made in one read and write.")] = 96,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the base model. Read it first.")
    ] = False,
):
    """Make a fine-tuned model again from the base model and a trajectory, without a forward pass, bit for bit."""

    def made():
        from ..errors import need
        from ..finetune.restore import replay as make
        from ..finetune.restore import steps_of

        steps = steps_of(run, step)
        with need("tqdm").tqdm(total=steps, unit="step", dynamic_ncols=True, delay=0.01) as bar:
            make(run, out, steps, model, passes_per_sweep, lambda done: bar.update(done - bar.n), trust_remote_code)
        return steps

    tell(f"saved      {out}: the model after step {failing(made)} of {run}")


@app.command()
def info(
    log: Annotated[str, typer.Argument(help="A trajectory, or a run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Print what a trajectory holds."""

    def read():
        from ..finetune.restore import read
        from ..trajectory import describe, lines

        path = Path(log).expanduser()
        trajectory = read(str(path / "trajectory.jsonl" if path.is_dir() else path))
        return json.dumps(describe(trajectory), indent=1) if as_json else "\n".join(lines(trajectory))

    tell(failing(read))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context):
    """Measure this machine, in a checkout of the repository; takes what python -m bench takes (zokern bench --help)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        typer.echo("error: the benchmarks are in zokern's repository, not in the package: clone it, pip install -e '.[bench]'", err=True)
        raise typer.Exit(2)
    sys.path.insert(0, str(root))
    raise typer.Exit(import_module("bench.__main__").main(context.args, prog="zokern bench"))
