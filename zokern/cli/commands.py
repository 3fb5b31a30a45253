"""The commands."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..errors import BadInput, first_line, need
from ..finetune import Settings, finetune
from ..finetune import resume as go_on
from ..finetune.options import title
from ..finetune.output import TRAJECTORY
from ..finetune.restore import Evaluation, as_lines, evaluate, read, steps_of
from ..finetune.restore import replay as make
from ..trajectory import describe, lines
from .options import command_of
from .streams import fail, tell

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def zokern() -> None:
    """Zeroth-order fine-tuning of language models: two forward passes a step, no gradients.

    Exit codes: 0 done, 2 input that cannot be used, 130 interrupted, 141 done, but nobody read to the end what was printed.
    """


@contextmanager
def failing() -> Iterator[None]:
    """Input that cannot be used ends the command with one line and code 2."""
    try:
        yield
    except BadInput as error:
        fail(error)
    except OSError as error:
        what = "a file" if error.filename is None else repr(os.fsdecode(error.filename))
        fail(f"{what} cannot be used ({error.strerror or first_line(error)}): check that it is there, and may be read or written")
    except torch.OutOfMemoryError as error:
        cure = "pass a smaller --batch-size or --max-length, or --dtype bfloat16"
        fail(f"no memory is left on the device ({first_line(error)}): {cure}")
    except RuntimeError as error:
        if str(error) != "Could not determine home directory.":  # pathlib's
            raise
        fail("a path begins with ~ and the name of no user here: write it out")
    except ModuleNotFoundError as missing:
        fail(f"{missing.name} is not installed: pip install 'zokern[demo]'")


def _finetune(settings: Callable[[], Settings], given: set[str], resume: str | None) -> None:
    with failing():
        if resume is None:
            result = finetune(settings(), say=tell)
        else:
            if others := given - {"steps", "trust_remote_code"}:
                options = ", ".join(map(title, sorted(others)))
                raise BadInput(f"--resume {resume} goes on with that run's own settings, and takes --steps alone: leave out {options}")
            more = settings()
            result = go_on(resume, tell, more.steps if "steps" in given else None, more.trust_remote_code)
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


def _evaluate(what: Callable[[], Evaluation], given: set[str]) -> None:
    with failing():
        tell("\n".join(as_lines(evaluate(what()))))


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
) -> None:
    """Make a fine-tuned model again from the base model and a trajectory, without a forward pass, bit for bit."""

    with failing():
        steps = steps_of(run, step)
        with need("tqdm").tqdm(total=steps, unit="step", dynamic_ncols=True, delay=0.01) as bar:
            make(run, out, steps, model, passes_per_sweep, lambda done: bar.update(done - bar.n), trust_remote_code)
    tell(f"saved      {out}: the model after step {steps} of {run}")


@app.command()
def info(
    log: Annotated[str, typer.Argument(help="A trajectory, or a run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a trajectory holds."""

    with failing():
        path = Path(log).expanduser()
        trajectory = read(str(path / TRAJECTORY if path.is_dir() else path))
    tell(json.dumps(describe(trajectory), indent=1) if as_json else "\n".join(lines(trajectory)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure this machine, in a checkout of the repository; takes what python -m bench takes (zokern bench --help)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        typer.echo("error: the benchmarks are in zokern's repository, not in the package: clone it, pip install -e '.[bench]'", err=True)
        raise typer.Exit(2)
    sys.path.insert(0, str(root))
    raise typer.Exit(import_module("bench.__main__").main(context.args, prog="zokern bench"))
