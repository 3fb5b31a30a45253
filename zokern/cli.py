"""python -m zokern: the commands."""

from typing import Annotated

import typer

DATA = (
    "csv, tsv, json, jsonl or parquet file, or a hub data set (name or name:config). "
    "Without it: sentences from the docstrings of networkx and sympy, to be told apart."
)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def zokern():
    """Zeroth-order fine-tuning of language models: two forward passes a step, no gradients."""


def _option(text):
    """An option whose default the text tells."""
    return typer.Option(help=text, show_default=False)


@app.command()
def finetune(
    model: Annotated[str | None, _option("Local folder or hub id. Without it: a small MiniLM, with LoRA.")] = None,
    data: Annotated[str | None, _option(DATA)] = None,
    eval_data: Annotated[str | None, _option("The same, for held-out rows. Without it: a fifth of --data.")] = None,
    text: Annotated[list[str] | None, _option("Text column; twice, or 'a,b', for pairs of texts. Without it: by name.")] = None,
    label: Annotated[str | None, _option("Label column. Without it: by name.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train LoRA adapters (peft) and the head instead of every parameter.")] = False,
    lr: Annotated[float | None, _option("Learning rate. Without it: 3e-2 with LoRA, 2e-3 after a probe, 1e-6 without LoRA.")] = None,
    eps: Annotated[float | None, _option("Perturbation radius. Without it: 1e-2 with LoRA, 1e-3 without.")] = None,
    head: Annotated[str, typer.Option(help="Begin with the head as loaded (random if new), or with a linear probe.")] = "loaded",
    schedule: Annotated[str, typer.Option(help="How the learning rate ends: linear, cosine or constant.")] = "linear",
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay: theta shrinks by lr times this a step.")] = 0.0,
    q: Annotated[int, typer.Option(help="Directions a step, averaged; a step costs 2 q forward passes.")] = 1,
    seed: Annotated[int, typer.Option(help="Fixes the split, the head's first values, the batches and the noise.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 400,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 16,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on held-out rows.")] = 100,
    max_length: Annotated[int, typer.Option(help="Tokens a row; longer rows are cut.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, _option("cpu, cuda, cuda:1, ... Without it: a GPU where there is one.")] = None,
    out: Annotated[str | None, _option("Folder for model, curve and log. Without it: zokern-finetune, or -2, ...")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
):
    """Fine-tune a sequence classifier with MeZO. With no options: a demonstration that needs no network."""
    settings = dict(locals(), text=tuple(part.strip() for given in text or () for part in given.split(",")))
    try:
        from .finetune import BadInput
        from .finetune import finetune as run
        from .finetune.settings import Settings
    except ModuleNotFoundError as missing:
        _fail(f"{missing.name} is not installed: pip install 'zokern[demo]'")
    try:
        result = run(Settings(**settings), say=typer.echo)
    except BadInput as error:
        _fail(str(error))
    typer.echo("\n".join(result.lines()))
    if result.interrupted:
        raise typer.Exit(130)


def _fail(message):
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
