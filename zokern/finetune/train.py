"""The training of a run: its folder, ZOTrainer's loop, held-out rows judged now and then; it can be stopped and gone on with."""

import json
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ..errors import BadInput, first_line, writing
from ..hf import ZOTrainer, checkpoint, lora_plus
from ..tasks import HeadReader, Reader
from . import offload, output, processes
from .features import EVALUATED_AT_ONCE, FrozenBody, head_of, seen_by
from .metrics_of_model import best_of, metrics_of
from .optimizers import make
from .options import title
from .prepare import Run
from .progress import Progress
from .runs import interruptible
from .settings import ZO

SECONDS = "train_seconds"  # of a log's entries
PATIENCE = 10  # steps on end without a finite loss after which a run is given up
KEPT = 2  # checkpoints: should the machine stop while one is written, there is the one before


def go_on(run: Run, record: dict[str, Any], say: Callable[[str], None]) -> None:
    """Say where a run is gone on from, and bring the parameters that it began with where that is the first step."""
    steps, schedule, before = run.settings.steps, run.settings.schedule, record["settings"]["steps"]
    if run.checkpoint is None:
        say(f"no checkpoint is left in {run.path}: from the first step on")
        output.load_initial(run.path, record, run.loaded.model)
        if processes.leads():
            (run.path / output.TRAJECTORY).unlink(missing_ok=True)
    elif steps != before and schedule != "constant":
        done = int(run.checkpoint.name.rpartition("-")[2])
        as_of = f"--schedule {schedule} over {steps} steps"
        say(f"from step {done + 1} on the learning rate is that of {as_of}; up to there it was as over {before}")


def train(run: Run, say: Callable[[str], None], progress: Progress) -> "Training":
    """Train to the last step, or to Ctrl-C."""
    training = Training(run, progress)
    with interruptible(training.stop):
        with training.own_memory.watched() if run.settings.offload == "disk" and run.settings.device == "cpu" else nullcontext():
            training.train()
    if training.interrupted:
        say(f"stopped after step {training.steps} of {run.settings.steps}: zokern finetune --resume {run.path}")
    return training


class OffloadTrainer(ZOTrainer):
    """Of a model that lives in a file: its checkpoints are written and read tensor by tensor."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None  # a checkpoint's
        offload.save(self.model, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        offload.load(self._offloaded.source, self.model, resume_from_checkpoint)


class Training(TrainerCallback):
    """The steps of a run. As a callback of its Trainer it judges the model, writes the log, and stops.

    Attributes:
        seconds: in training steps, without judging and saving, those before the checkpoint that the run goes on from included.
        stopped: knows whether the user has asked for the end, which comes after a whole step.
        interrupted: whether that was before the last step.
    """

    def __init__(self, run: Run, progress: Progress):
        self.run, self.settings, self._progress = run, run.settings, progress
        self.seconds, self.stopped, self.interrupted = 0.0, processes.Stop(), False
        self.own_memory = offload.OwnMemory()
        self._moved, self._skipped = 0, 0  # the last step logged at which not all since the one before were skipped; skipped up to there
        self._new: dict[str, float] = {}  # what was measured and not told yet
        self._logged = self._told = 0
        self.reader, (rows, self.held_out) = self._reader()
        self.trainer: Any = self._trainer(rows)

    def stop(self) -> None:
        """After the step that runs; of several processes, one or two later."""
        self.stopped.asked = True

    @property
    def steps(self) -> int:
        return self.trainer.state.global_step

    @property
    def passes(self) -> tuple[int, int]:
        """Batches that went forward through the model for the optimizer, those of a full batch included, and those that went back."""
        settings, optimizer = self.settings, self.trainer.zeroth_order
        own, full = optimizer.forwards_in(self.steps)
        forwards = own * settings.accumulate + full * math.ceil((settings.full_batch or len(self.run.data.train)) / EVALUATED_AT_ONCE)
        return forwards, (optimizer.derivative == "backward") * settings.accumulate * self.steps

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation so far, as of ``best_of``."""
        return best_of(self.trainer.state.log_history, self.run.data.task.metric)

    def train(self) -> None:
        """Train to the end, from the run's checkpoint if there is one. With ``keep="best"`` the weights are then the best ones'."""
        resume, path = self.run.checkpoint, self.run.path
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "step .* was skipped", RuntimeWarning)  # they are counted in the summary
            warnings.filterwarnings("ignore", category=UserWarning, module="torch.utils.data")  # pinned memory without a GPU
            try:
                self.trainer.train(resume_from_checkpoint=resume and str(resume))
            except BadInput:
                raise
            except OSError as error:
                if not str(error.filename).startswith(str(path)):
                    raise
                with writing(path):
                    raise
            except ValueError as error:
                raise BadInput(first_line(error)) from None
            except RuntimeError as error:  # NotImplementedError is one
                zeroth = self.settings.zeroth_class
                if isinstance(error, NotImplementedError) and zeroth and zeroth.derivative == "forward":
                    what = "--zo" if self.settings.halves else "--optimizer"
                    raise BadInput(f"{what} {zeroth.name}: {' '.join(str(error).split())}: pass {what} {ZO}") from None
                if resume and not self.steps and str(error).startswith("Error(s) in loading state_dict"):
                    raise BadInput(f"checkpoint {str(resume)!r} is of another model: restore the --model that the run began with") from None
                raise
        if self.settings.keep == "best" and self.best and self.best["step"] != self.steps:
            kept = path / output.CHECKPOINTS / f"checkpoint-{self.best['step']}"
            checkpoint.check(kept)
            self.trainer._load_from_checkpoint(str(kept))

    def _reader(self) -> tuple[Reader, tuple[list, list]]:
        """-> (reader, features of the training and the held-out rows): of the head alone where nothing else is trained and it sees one
        vector a row."""
        loaded, train, held_out = self.run.loaded, self.run.train, self.run.held_out
        reader, head = loaded.reader, head_of(loaded.model, len(loaded.reader.task.labels))
        trained = {id(p) for _, p in loaded.trained()}
        if loaded.streamed or not isinstance(reader, HeadReader) or head is None or trained != {id(p) for p in head.parameters()}:
            return reader, (train, held_out)
        seen, held_out_seen = seen_by(head, loaded, train), seen_by(head, loaded, held_out)
        if seen is None or held_out_seen is None:
            return reader, (train, held_out)
        frozen = FrozenBody(reader, head)
        return frozen, (frozen.features(seen, train), frozen.features(held_out_seen, held_out))

    def _trainer(self, rows: list) -> ZOTrainer:
        settings, model, path = self.settings, self.run.loaded.model, self.run.path
        assert settings.save_every  # of checked settings
        streamed = self.run.loaded.streamed
        cls, options = make(settings, model, streamed)
        rate: dict[str, Any] = {} if cls.takes_model else {"learning_rate": settings.lr}
        arguments = TrainingArguments(
            output_dir=str(path / output.CHECKPOINTS),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=EVALUATED_AT_ONCE,  # of an anchor's full batch
            gradient_accumulation_steps=settings.accumulate,
            dataloader_drop_last=True,
            lr_scheduler_type=settings.schedule,
            **rate,
            seed=settings.seed,
            use_cpu=settings.device == "cpu",
            logging_steps=min(10, settings.eval_every),
            logging_nan_inf_filter=False,
            save_steps=settings.save_every,
            save_total_limit=KEPT,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        if arguments.device.type == "cuda":
            arguments._n_gpu = 1  # Trainer would spread the batch over all that it sees
        chosen: dict[str, Any] = {"optimizer_cls_and_kwargs": (cls, options)}
        if settings.lr_ratio is not None:
            chosen = {"optimizers": (lora_plus(model, cls, ratio=settings.lr_ratio, **options), None)}
        trainer = (OffloadTrainer if settings.offload == "disk" else ZOTrainer)(
            model,
            arguments,
            train_dataset=rows,
            data_collator=self.reader.collate,
            objective=self.reader,
            full_batch=settings.full_batch or "train",
            trajectory=str(path / output.TRAJECTORY) if cls.replayable else None,
            directions=settings.directions or 1,
            check=not settings.no_check,
            callbacks=[self],
            **chosen,
        )
        trainer.remove_callback(PrinterCallback)  # it prints what is logged
        return trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._judge()
        self._tell(state)
        self.seconds = max((entry.get(SECONDS, 0.0) for entry in state.log_history), default=0.0)
        if state.global_step:  # the checkpoint's learning rate is that of the steps that were then asked for
            kwargs["lr_scheduler"].last_epoch -= 1
            kwargs["lr_scheduler"].step()
        self._since = time.perf_counter()  # when the steps began whose seconds are not counted yet

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.run.steps_made += 1
        if self.run.steps_made == 1:
            self._since += self.trainer.check_seconds
        if state.global_step % self.settings.eval_every == 0 or state.global_step == state.max_steps:
            self._clock()
            self._judge()
            self._since = time.perf_counter()
            if self.best and self.best["step"] == state.global_step:
                state.best_global_step = state.global_step  # whose checkpoint, if there is one, Trainer does not remove
                control.should_save = control.should_save or self.settings.keep == "best"
        if self.stopped.after(state.global_step) and state.global_step < state.max_steps:
            self.interrupted = control.should_training_stop = control.should_save = True
        if control.should_save or state.global_step % args.save_steps == 0:
            control.should_log = True  # a checkpoint knows the seconds so far

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > self._told:
            self._tell(state)  # of the step before, of which all is logged by now

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > self._told:
            self._tell(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()  # as a run sees it that goes on from there

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self._clock()
            state.log_history[-1][SECONDS] = round(self.seconds, 3)
        self._new |= {name: value for name, value in logs.items() if name == "loss" or name.startswith("eval_")}
        if "skipped_steps" in logs:
            self._give_up(state.global_step, logs["skipped_steps"])
        lines = (json.dumps({name: _json(value) for name, value in entry.items()}) for entry in state.log_history[self._logged :])
        if not processes.leads():
            return
        write = output.append if self._logged else output.write  # at first all that the checkpoint knows: what came later comes again
        write(self.run.path / output.LOG, "".join(f"{line}\n" for line in lines))
        self._logged = len(state.log_history)

    def _give_up(self, step: int, skipped: int) -> None:
        since = step - self._moved
        if skipped - self._skipped < since:
            self._moved, self._skipped = step, skipped
        elif since >= PATIENCE:
            rates = {title(name): rate for name in ("lr", "fo_lr") if (rate := getattr(self.settings, name))}
            shown = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
            last = f"{since} steps up to step {step}"
            raise BadInput(f"the loss was not finite in {last}, {shown}: pass a smaller {' or '.join(rates)}")

    def _tell(self, state: Any) -> None:
        self._progress("step", state.global_step, state.max_steps, self._new)
        self._told, self._new = state.global_step, {}

    def _clock(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _judge(self) -> None:
        """The model on the held-out rows, into the log."""
        self.trainer.flush()
        found = metrics_of(self.run.loaded, self.run.data.held_out, self.held_out, self.reader)
        self.trainer.log({f"eval_{name}": value for name, value in found.items()})


def _json(value: Any) -> Any:
    """JSON has no NaN: what is not finite has no figure."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
