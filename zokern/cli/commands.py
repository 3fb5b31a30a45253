"""The commands."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput
from ..finetune.settings import Settings
from .options import command_of

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def zokern():
    """Zeroth-order fine-tuning of language models: two forward passes a step, no gradients.

    Exit codes: 0 done, 2 input that cannot be used, 130 interrupted.
    """


def failing(run):
    """-> what run() returns; input that cannot be used ends the command with one line and code 2."""
    try:
        return run()
    except BadInput as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except ModuleNotFoundError as missing:
        typer.echo(f"error: {missing.name} is not installed: pip install 'zokern[demo]'", err=True)
        raise typer.Exit(2) from None


def _finetune(settings, given):
    def run():
        from ..finetune import finetune

        return finetune(settings, say=typer.echo, given=given)

    result = failing(run)
    typer.echo("\n".join(result.lines()))
    if result.interrupted:
        raise typer.Exit(130)


app.command("finetune", help="Fine-tune a language model by forward passes. With no options: a demonstration that needs no network.")(
    command_of(Settings, _finetune)
)


@app.command()
def bench(arguments: Annotated[list[str] | None, typer.Argument(help="What python -m bench takes.")] = None):
    """Measure this machine: python -m bench, in a checkout of the repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        typer.echo("error: the benchmarks are in zokern's repository, not in the package: clone it, pip install -e '.[bench]'", err=True)
        raise typer.Exit(2)
    raise typer.Exit(subprocess.run([sys.executable, "-m", "bench", *(arguments or [])], cwd=root).returncode)
