"""The whole job: data, model, training, files, summary."""

import platform
import time

import torch
from tqdm import tqdm

from .. import __version__, backends
from ..errors import need, require
from . import output
from .data import load as load_data
from .model import load as load_model
from .model import settle_network
from .report import Result, draw, peak_mib
from .settings import Settings
from .train import evaluate, train


def finetune(settings: Settings, say=print) -> Result:
    """Fine-tune as the settings say and write model, curve and log into ``settings.out``.

    Args:
        say: called with each line that the user should read. Default print.
    Raises:
        BadInput: anything about the settings, the data or the model that prevents it. Nothing is written then.
    """
    begin = time.perf_counter()
    settings = settings.checked()
    output.check(settings.out, settings.overwrite)
    settle_network(settings)
    require("transformers", "matplotlib", *["peft"] * settings.lora)  # before any work, not after it
    data = load_data(settings)
    classifier = load_model(settings, data.labels)
    method = "LoRA + head" if settings.lora else "full"
    trained = sum(p.numel() for _, p in classifier.trained())
    new = ", new classification head" if classifier.fresh_head else ""
    say(f"{classifier.name} on {data.name}: {method}, {trained:,} parameters, lr {settings.lr:g}, eps {settings.eps:g}{new}")
    train_rows, held_out_rows = classifier.tokenize(data.train), classifier.tokenize(data.held_out)
    with output.folder(settings.out, settings.overwrite) as draft:
        with output.log(draft) as log, tqdm(total=settings.steps, unit="step", dynamic_ncols=True) as bar:
            log({"settings": settings.record(), "labels": data.labels, **_versions()})
            history = train(classifier, train_rows, held_out_rows, settings, log, bar)
            bar.close()
            if history.interrupted:
                say(f"stopped after step {len(history.losses)} of {settings.steps}: saving what there is")
            parameters = sum(p.numel() for p in classifier.model.parameters())
            classifier.save(draft)
            loss, accuracy = evaluate(classifier, held_out_rows)
            draw(history, f"{classifier.name}, {method}", draft / "curve.png")
            probed = settings.head == "probe"
            result = Result(
                model=classifier.name,
                method=method,
                data=data.name,
                labels=tuple(data.labels),
                train_rows=len(data.train),
                held_out_rows=len(data.held_out),
                trained_parameters=trained,
                parameters=parameters,
                accuracy_before=history.evaluations[0][2],
                accuracy_probe=history.evaluations[1][2] if probed else None,
                accuracy_after=accuracy,
                loss_before=history.evaluations[0][1],
                loss_probe=history.evaluations[1][1] if probed else None,
                loss_after=loss,
                steps=len(history.losses),
                forwards=history.forwards,
                skipped=history.skipped,
                interrupted=history.interrupted,
                train_seconds=history.seconds,
                seconds=time.perf_counter() - begin,
                steps_per_second=len(history.losses) / history.seconds,
                peak_mib=peak_mib(classifier.device),
                out=settings.out,
            )
            log({"result": result.record()})
    return result


def _versions():
    return {
        "zokern": __version__,
        "torch": torch.__version__,
        "transformers": need("transformers").__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backends": backends(),
    }
