"""The whole job: data, model, training, files, summary."""

import platform
import time
from dataclasses import replace
from pathlib import Path

import torch

from .. import __version__, backends
from ..errors import BadInput, Unwritable, need, require
from . import output
from .data import load as load_data
from .features import head_of
from .metrics_of_model import metrics_of
from .model import load as load_model
from .model import settle_network
from .optimizers import make, with_rates
from .options import title
from .probe import probe
from .report import Result, draw, peak_mib
from .settings import PATHS, Settings
from .train import Training, interruptible
from .values import shown


def finetune(settings: Settings, say=print) -> Result:
    """Fine-tune as the settings say and write model, curve and logs into ``settings.out``.

    Args:
        say: called with each line that the user should read. Default print.
    Raises:
        BadInput: anything about the settings, the data or the model that prevents it. Nothing is written then.
    """
    settings = settings.checked()
    path = output.check(settings.out, settings.overwrite)
    for name in PATHS:
        given = getattr(settings, name)
        if given and Path(given).absolute().is_relative_to(path):
            raise BadInput(f"{title(name)} {given!r} is in --out {settings.out!r}, which the run would replace: pass another folder")
    with output.claimed(settings.out, settings.overwrite):
        return _run(settings, path, say)


def resume(folder: str, say=print, steps: int | None = None, trust_remote_code: bool = False) -> Result:
    """Go on with a run that was stopped, from its newest checkpoint, as if it had not been: bit for bit. Or with one that is done.

    Args:
        folder: the ``out`` of the run.
        steps: more than the run was asked for. With a constant schedule it ends where a run of so many steps does, bit for bit; with
            another one the learning rate is, from the newest checkpoint on, that of a run of so many steps. Default None: as many as it
            was asked for.
        trust_remote_code: run the code that comes with the model. Default False, whatever the run was begun with.
    Raises:
        BadInput: there is no such run, it is done and no more steps are asked for, or the data or the model are not what they were.
            Nothing is written then.
    """
    path = Path(folder).expanduser().absolute()
    output.run_of(folder)  # there is one
    with output.locked(path):
        return _resume(folder, path, say, steps, trust_remote_code)


def _resume(folder, path, say, steps, trust_remote_code):
    record = output.run_of(folder)
    settings = replace(settings_of(folder, record), out=str(path), trust_remote_code=trust_remote_code)
    more = "a larger --steps"
    if steps is not None and steps < settings.steps:
        raise BadInput(f"--steps {steps} with --resume {folder!r}, a run of {settings.steps} steps: pass {more}, or leave it out")
    if steps in (None, settings.steps) and (path / output.METRICS).is_file():
        raise BadInput(f"--resume {folder!r}: that run is done ({output.METRICS} is there): pass {more}, or begin another with --out")
    return _run(replace(settings, steps=steps or settings.steps), path, say, record)


def settings_of(folder: str, record: dict) -> Settings:
    """The settings in a run's record.

    Raises:
        BadInput: another zokern wrote them, or they are none.
    """
    try:
        return Settings.of(record["settings"])
    except BadInput as error:
        where = f"{str(Path(folder) / output.RUN)!r}, of zokern {shown(record['zokern'])}"
        raise BadInput(f"{where}: in its settings {error}; or restore the file") from None


def _run(settings, path, say, resumed=None):
    begin = time.perf_counter()
    settle_network(settings)
    require("transformers", "accelerate", "peft", "sklearn", "safetensors", "matplotlib", "tqdm")  # before any work, not after it
    settings = with_rates(settings)
    data = load_data(settings)
    if resumed and resumed["digest"] != data.digest():
        raise BadInput(f"--resume {str(path)!r}: the rows are not those that the run began with: restore --data, or begin another run")
    if data.columns:
        say(f"{data.name}: {data.described()}; {len(data.train)} training rows, {len(data.held_out)} held out")
    loaded = load_model(settings, data)
    make(settings, loaded.model)  # what it refuses, it refuses before anything is written
    method = " + ".join(settings.adapter)
    trained = loaded.trained()
    count = sum(p.numel() for _, p in trained)
    rates = [f"{title(name)[2:]} {value:g}" for name in ("lr", "eps", "fo_lr") if (value := getattr(settings, name))]
    halves = f" of {settings.zo} and {settings.fo}" if settings.halves else ""
    new = ", new classification head" if loaded.fresh_head else ""
    say(f"{loaded.name} on {data.name}: {settings.optimizer}{halves}, {method}, {count:,} parameters, {', '.join(rates)}{new}")
    features = [[loaded.reader.encode(example) for example in examples] for examples in (data.train, data.held_out)]
    checkpoint = need("zokern.hf.checkpoint").newest(path / output.CHECKPOINTS) if resumed else None
    record = {
        "settings": settings.record(),
        "labels": list(data.task.labels),
        "columns": data.columns,
        "digest": data.digest(),
        **versions(),
    }
    if resumed is None:
        before = probed = metrics_of(loaded, data.held_out, features[1])
    else:
        before, probed = resumed["before"], resumed["probed"]
        for name in (data.task.metric, *(() if data.task.writes else ("loss",))):
            if not {name} <= before.keys() & probed.keys():
                raise BadInput(f"{str(path / output.RUN)!r} lacks the {name} of before or probed: restore the file")
    if settings.head == "probe" and resumed is None:
        probe(loaded, features[0])
        probed = metrics_of(loaded, data.held_out, features[1])
    if resumed is None:
        output.begin(path, record | {"before": before, "probed": probed}, _initial(settings, loaded))
    if extended := resumed is not None and resumed["settings"]["steps"] != settings.steps:
        before_it = output.extend(path, resumed, settings.record())
        done, asked_for = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0, resumed["settings"]["steps"]
        if done and settings.schedule != "constant":
            as_of = f"--schedule {settings.schedule} over {settings.steps} steps"
            say(f"from step {done + 1} on the learning rate is that of {as_of}; up to there it was as over {asked_for}")
    if resumed is not None and checkpoint is None:
        say(f"no checkpoint is left in {path}: from the first step on")
        output.load_initial(path, resumed, loaded.model)
        (path / output.TRAJECTORY).unlink(missing_ok=True)
    training = None
    try:
        training = Training(loaded, settings, data, features, path)
        with interruptible(training.stopped):
            training.run(checkpoint)
        if training.interrupted:
            say(f"stopped after step {training.steps} of {settings.steps}: zokern finetune --resume {path}")
        with output.whole(path) as draft:
            loaded.save(draft)
            after = metrics_of(loaded, data.held_out, features[1])
            test = metrics_of(loaded, data.test, [loaded.reader.encode(example) for example in data.test]) if data.test else None
            draw(training.history, data.task.metric, f"{loaded.name}, {settings.optimizer}, {method}", draft / output.CURVE)
        result = Result(
            model=loaded.name,
            method=method,
            optimizer=settings.optimizer,
            data=data.name,
            labels=tuple(data.task.labels),
            columns=data.columns,
            metric=data.task.metric,
            train_rows=len(data.train),
            held_out_rows=len(data.held_out),
            test_rows=len(data.test),
            trained_parameters=count,
            parameters=sum(p.numel() for p in loaded.model.parameters()),
            before=before,
            probed=probed if settings.head == "probe" else None,
            after=after,
            best=training.best,
            kept=settings.keep,
            test=test,
            steps=training.steps,
            forwards=training.forwards,
            backwards=training.backwards,
            skipped=training.skipped,
            interrupted=training.interrupted,
            train_seconds=training.seconds,
            seconds=time.perf_counter() - begin,
            steps_per_second=training.steps / training.seconds if training.seconds else 0.0,
            peak_mib=peak_mib(next(loaded.model.parameters()).device),
            out=str(settings.out),
            load=loaded.load(str(settings.out)),
        )
        if not training.interrupted:
            output.write(path / output.METRICS, result.json())
    except Exception as error:
        if resumed is None and (training is None or not training.steps):
            output.clear(path)  # nothing has been learnt in it
        elif extended and (training is None or not training.here):
            output.restore(path, before_it)
        elif isinstance(error, Unwritable):
            raise Unwritable(f"{error}, then zokern finetune --resume {path}") from error
        raise
    return result


def _initial(settings, loaded):
    """The parameters that the model as loaded does not have, or has otherwise."""
    head = head_of(loaded.model, len(loaded.reader.task.labels)) if settings.head == "probe" else None
    fitted = set() if head is None else {id(p) for p in head.parameters()}
    return {name: p for name, p in loaded.model.named_parameters() if name in loaded.new or id(p) in fitted}


def versions() -> dict:
    """What made a run."""
    return {
        "zokern": __version__,
        "torch": torch.__version__,
        "transformers": need("transformers").__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backends": backends(),
    }
