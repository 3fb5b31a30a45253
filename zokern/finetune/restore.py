"""What can be done with the folder of a run: judge its model, and make the model of any step again."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import tasks
from ..errors import BadInput, first_line, need
from ..optim import named
from ..trajectory import Trajectory
from . import output
from .data import Data, table_task
from .data import load as load_data
from .metrics_of_model import best_of, metrics_of
from .model import LoadedModel, settle_network
from .model import load as load_model
from .options import fitting, option, shown, title
from .settings import Natural, Settings


@dataclass(frozen=True)
class Evaluation:
    """What to judge, on what; ``help`` in each field's metadata says what it is."""

    model: str | None = option("A run's folder (--out of finetune), a model's or an adapter's folder, a GGUF file, or a hub id.")
    trust_remote_code: bool = option("Run the Python code that comes with --model. Read it first.", False)
    task: str | None = option("A task that zokern knows (docs/tasks.md). Without it, of a run: what the run was judged by.")
    data: str | None = option("With --task: a local copy of it. Else as of finetune.")
    text: tuple[str, ...] = option("Text column of --data; 'a,b' for pairs of texts. Without it: by name.", ())
    label: str | None = option("Label column of --data. Without it: by name.")
    split: str = option("Of a task: train, validation or test.", "validation")
    sample: Natural | None = option("Of that split: so many rows, drawn by --seed. Without it: all.")
    rows: tuple[int, ...] = option("Of a task, as of finetune: judge what a run with these --rows and --seed holds out and tests by.", ())
    seed: int = option("Draws the rows.", 0)
    task_type: str | None = option(
        "What the model predicts: a class by its head, or the words of a task's prompt, masked or causal. Without it: as in the run, or "
        "head.",
        formerly=("ask",),
    )
    max_length: int | None = option("Tokens a row; longer texts are cut. Without it: as the run did, or 128.")
    dtype: str | None = option("float32, bfloat16 or float16. Without it: as the run did, or float32.")
    device: str | None = option("cpu or cuda. Without it: as the run did, or a GPU where there is one.")
    metrics: str | None = option("Write the metrics into this file, as JSON.")


def evaluate(what: Evaluation) -> dict[str, Any]:
    """Judge a model. -> {"model", "data", and for each set of rows {"rows", "loss", metrics}}.

    Raises:
        BadInput: the model or the data cannot be used.
    """
    what = fitting(what)
    if what.model is None:
        raise BadInput("--model is missing: pass a run's folder, a model's or an adapter's folder, a GGUF file, or a hub id")
    run, adapter = _folders_of(what.model)
    own = what.task is None and what.data is None
    if own and run is None and output.command_of(what.model) == output.EVOLVE:
        judged = f"was judged by its rewards, which are in its {output.LOG}: pass --task or --data, to judge it by something else"
        raise BadInput(f"--model {what.model!r} is a run of zokern evolve, and {judged}")
    if own and run is None:
        raise BadInput(f"--task and --data are missing, and {what.model!r} is no run's folder, which knows its own: pass one of them")
    ran = output.run_of(run)[0] if run else Settings()
    how = {name: getattr(what, name) or getattr(ran, name) for name in ("task_type", "max_length", "dtype")}
    how |= {"device": what.device, "trust_remote_code": what.trust_remote_code}
    _check(what, own)
    if not own:
        given = {name: getattr(what, name) for name in ("task", "data", "text", "label", "seed")}
        how |= given | {"batch_size": 1, "rows": what.rows or Settings.rows}
    settings = replace(ran if own else Settings(), **how).checked()
    if not own:
        settle_network(settings)
    data, sets = _rows(settings, what, own)
    plain = replace(settings, adapter=("full",), rank=None, lr_ratio=None, virtual_tokens=None, offload=ran.offload)
    if adapter:
        loaded = _adapted(what.model, adapter, plain, data, ran if run else None)
    else:
        loaded = load_model(replace(plain, model=what.model), data)
    if loaded.fresh_head:
        classes = ", ".join(data.task.labels)
        raise BadInput(f"--model {what.model!r} has no head for the classes {classes}: pass a model that was trained on them")
    found: dict[str, Any] = {"model": what.model, "data": f"{data.name}, {data.described()}" if data.columns else data.name}
    for name, examples in sets.items():
        if examples:
            features = [loaded.reader.encode(example) for example in examples]
            found[name] = {"rows": len(examples), **metrics_of(loaded, examples, features)}
    if what.metrics:
        output.write(Path(what.metrics).expanduser(), json.dumps(found, indent=1) + "\n")
    return found


def _folders_of(model: str) -> tuple[Path | None, Path | None]:
    """-> (the folder of the run that a model is of, or None; the folder of its adapter, where it is nothing but that, or None)."""
    path = Path(os.path.expanduser(model)).absolute()
    inside = {"adapter": path.parent, output.CHECKPOINTS: path.parent.parent}  # of a run
    around = [p for p in (path, inside.get(path.name), inside.get(path.parent.name)) if p and (p / output.RUN).is_file()]
    run = next((p for p in around if output.command_of(p) == output.FINETUNE), None)
    adapters = () if (path / "config.json").is_file() else (path, path / "adapter")
    return run, next((p for p in adapters if (p / "adapter_config.json").is_file()), None)


def _adapted(name: str, adapter: Path, settings: Settings, data: Data, ran: Settings | None) -> LoadedModel:
    """The model of peft's that an adapter makes of its base model, which is that of the run that it is of, if any."""
    peft, base = need("peft"), None
    try:
        base = ran.model if ran else peft.PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
        if ran is None and not base:
            raise BadInput("its adapter_config.json names no base_model_name_or_path: write it in")
        loaded = load_model(replace(settings, model=base), data)
        loaded.model = need("zokern.hf").both_names(peft.PeftModel.from_pretrained(loaded.model, str(adapter))).eval()
        with need("safetensors").safe_open(str(adapter / "adapter_model.safetensors"), "pt") as file:
            held = tuple(file.keys())
    except BadInput as error:
        raise BadInput(f"--model {name!r} is an adapter: {error}") from None
    except Exception as error:  # peft's, safetensors', and torch's where shapes differ
        known = "the MiniLM" if ran else "its base model"
        what = f"--model {name!r} is an adapter that cannot be loaded onto {base or known} ({first_line(error)})"
        raise BadInput(f"{what}: pass one that was trained on that model and these classes, {', '.join(data.task.labels)}") from None
    loaded.fresh_head = loaded.fresh_head and not all(any(key.endswith(new) for key in held) for new in loaded.new)
    return loaded


def _check(what: Evaluation, own: bool) -> None:
    """Refuse options that would say nothing."""
    if len(what.rows) == 1:
        raise BadInput(f"--rows {what.rows[0]}: pass three integers, as to finetune, or --sample {what.rows[0]}")
    if what.rows and (what.split != "validation" or what.sample is not None):
        other = "--sample" if what.sample is not None else "--split"
        raise BadInput(f"--rows judges the rows that finetune holds out and tests by, and {other} draws others: pass one of them")
    if what.metrics and not Path(what.metrics).expanduser().absolute().parent.is_dir():
        raise BadInput(f"--metrics {what.metrics!r}: its folder does not exist: make it first")
    plain = Evaluation()
    of_tasks, of_tables = ("split", "sample", "rows", "seed"), ("text", "label")
    for name in (of_tasks if what.task is None else ()) + (of_tables if what.task or own else ()):
        if getattr(what, name) != getattr(plain, name):
            belongs = "--task" if name in of_tasks else "--data without --task"
            raise BadInput(f"{title(name)} {shown(getattr(what, name))} goes with {belongs}: leave it out")


def _rows(settings: Settings, what: Evaluation, own: bool) -> tuple[Data, dict[str, list[tasks.Example]]]:
    """-> (data, the rows that are to be judged, by what they are called)."""
    if own or what.rows:
        data = load_data(settings)
        return data, {"held_out": data.held_out, "test": data.test}
    if settings.task is None:
        data = load_data(replace(settings, eval_data=settings.data))  # all rows are judged
        return data, {"rows": data.held_out}
    task = tasks.get(settings.task)
    examples = [example for example in task.load(settings.data, what.split) if example.label is not None or example.answers]
    if not examples:
        raise BadInput(f"--split {what.split} of {task.name} has no labels: pass --split validation")
    if what.sample is not None:
        if what.sample > len(examples):
            rows = f"{len(examples)} rows of --split {what.split}"
            raise BadInput(f"--sample {what.sample} is more than the {rows}: pass less, or leave it out")
        examples = tasks.split(examples, what.seed, 0, 0, what.sample).test
    return Data(f"{task.name} ({what.split})", task, [], [], examples), {what.split: examples}


def replay(
    run: str,
    out: str,
    step: int | None = None,
    model: str | None = None,
    passes_per_sweep: int = 96,
    progress: Callable[[int], None] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """The model as it was after a step of a run, made again from the base model and the run's trajectory without a forward pass.

    Args:
        run: the run's folder, or the trajectory in it.
        out: a new folder, for model and tokenizer.
        step: steps to make. Default None: all.
        model: the base model, where it is no longer found under the run's --model.
        passes_per_sweep: passes over the weights that are made in one read and write. Default 96.
        progress: called with the number of steps made.
        trust_remote_code: run the code that comes with the base model. Default False, whatever the run was made with.

    Raises:
        BadInput: the run, its trajectory or the base model cannot be used; with what differs.
    """
    path, log = folder_and_log(run)
    with output.claimed(out) as target:
        settings, record = output.run_of(path)
        trajectory = read(str(log))
        if step is not None and not 0 <= step <= len(trajectory):
            raise BadInput(f"--step {step}: the trajectory has {len(trajectory)} steps: pass 0 to {len(trajectory)}")
        offload = "disk" if settings.offload == "disk" else None
        settings = replace(settings, device="cpu", offload=offload, model=model or settings.model, trust_remote_code=trust_remote_code)
        settle_network(replace(settings, data=None, eval_data=None, task=None))
        loaded = load_model(settings, Data("", _task_of(settings, record), [], [], []), target / output.WEIGHTS)
        output.load_initial(path, record, loaded.model)
        with loaded.writing():
            trajectory.replay(loaded.model, step=step, passes_per_sweep=passes_per_sweep, progress=progress)
        with output.whole(target) as draft:
            loaded.save(draft)


def steps_of(run: str, step: str | None = None) -> int:
    """How many steps of a run are meant: a number as text, "best" (those up to the best evaluation), or None: all."""
    path, log = folder_and_log(run)
    if step is None:
        return len(read(str(log)))
    if step != "best":
        if not step.isdecimal():
            raise BadInput(f"--step {step}: pass a number of steps, or best")
        return int(step)
    metric = "reward" if output.command_of(path) == output.EVOLVE else _task_of(*output.run_of(path)).metric
    judged = path / output.LOG
    try:
        lines = judged.read_text(encoding="utf-8").split("\n")[:-1]  # behind the last one is nothing, or what a killed process left of it
        best = best_of([json.loads(line) for line in lines], metric)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"--step best: {str(judged)!r} cannot be read ({first_line(error)}): pass a number of steps") from None
    if best is None or not isinstance(best["step"], int):
        raise BadInput(f"--step best: {str(judged)!r} holds no evaluation after a step: pass a number of steps")
    return best["step"]


def folder_and_log(run: str) -> tuple[Path, Path]:
    path = Path(run).expanduser()
    return (path, path / output.TRAJECTORY) if path.is_dir() else (path.parent, path)


def read(log: str) -> Trajectory:
    """A trajectory."""
    try:
        return Trajectory.read(log)
    except (OSError, ValueError) as error:
        run = Path(log).parent
        if not Path(log).exists() and (run / output.RUN).is_file() and output.command_of(run) == output.FINETUNE:
            name = output.run_of(run)[0].optimizer
            if not named(name).replayable:
                why = "which has no trajectory, since its first-order steps are not decided by a few numbers"
                where = "its model is in the folder itself, and its losses are in log.jsonl"
                raise BadInput(f"{str(run)!r} is a run of --optimizer {name}, {why}: {where}") from None
        if isinstance(error, FileNotFoundError):
            raise BadInput(f"{log!r} is not there: pass the --out of a zokern finetune or evolve, or the trajectory in it") from None
        raise BadInput(f"{log!r} cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)) from None


def _task_of(settings: Settings, record: dict[str, Any]) -> tasks.Task:
    """The task of a run; of a plain table as far as a model needs it."""
    return tasks.get(settings.task) if settings.task else table_task("", record["labels"])


def as_lines(found: dict[str, Any]) -> list[str]:
    """Metrics, to be read."""
    lines = [f"model      {found['model']}", f"data       {found['data']}"]
    for name, numbers in found.items():
        if isinstance(numbers, dict):
            shown = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items() if key != "rows")
            lines.append(f"{name:<10} {shown} on {numbers['rows']} rows")
    return lines
