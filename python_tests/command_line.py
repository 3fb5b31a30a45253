"""The command line in this process, the settings of a run, and the models that it saves."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from zokern.cli import app
from zokern.finetune import Settings


def zokern(*arguments, code=0):
    """-> what the command prints; where it is to fail with another code, what it prints on standard error."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, (done.output, done.exception)
    return done.stderr if code else done.stdout


def changed(settings, **options):
    """The settings of a run with other options, those of its optimizer among them."""
    values = dict(vars(settings))
    return Settings.flat(values.pop("optimizer_settings") | values | options)


def tensors(folder):
    return load_file(Path(folder) / "model.safetensors")


def equal(a, b):
    """Whether two folders hold the same model, bit for bit."""
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)
