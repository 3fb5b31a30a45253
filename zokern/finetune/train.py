"""The training: ZOTrainer's loop, held-out rows judged now and then, a run that can be stopped and gone on with."""

import json
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadInput, first_line, need, writing
from . import optimizers, output
from .features import TOGETHER, FrozenBody, head_of, seen_by
from .metrics_of_model import metrics_of
from .model import LoadedModel
from .options import title
from .report import best_of
from .settings import ZO, Settings

SHOWN = ("loss", "eval_loss", "eval_accuracy", "eval_f1", "eval_matthews")  # beside the bar
SECONDS = "train_seconds"  # of a log's entries
PATIENCE = 10  # steps on end without a finite loss after which a run is given up
KEPT = 2  # checkpoints: should the machine stop while one is written, there is the one before


class Training:
    """A run of ``settings.steps`` steps in the folder ``path``.

    Attributes:
        seconds: in training steps, without judging and saving, those before the checkpoint that the run goes on from included.
        here: training steps of this process.
        history: what was logged, in the order of steps, as Trainer keeps it: dicts with "step".
        interrupted: whether the user stopped the run before its last step.
    """

    def __init__(self, loaded: LoadedModel, settings: Settings, data, features, path: Path):
        self.loaded, self.settings, self.data, self.path = loaded, settings, data, path
        self.seconds, self.here, self.interrupted, self.bar = 0.0, 0, False, None
        self.reader, (train, self.held_out) = self._reader(features)
        self.trainer = self._trainer(train)

    @property
    def history(self) -> list[dict]:
        return self.trainer.state.log_history

    @property
    def steps(self) -> int:
        return self.trainer.state.global_step

    @property
    def forwards(self) -> int:
        """Batches that went through the model for the optimizer, those of an anchor's full batch included."""
        settings, optimizer = self.settings, self.trainer.zeroth_order
        anchors = -(-self.steps // optimizer.param_groups[0]["q"]) if optimizer.full_batch else 0
        full = -(-(settings.full_batch or len(self.data.train)) // TOGETHER)
        return optimizer.forwards * settings.accumulate * (self.steps - anchors) + 2 * full * anchors

    @property
    def backwards(self) -> int:
        """Of those batches, how many went back through the model."""
        return self.trainer.zeroth_order.backwards * self.settings.accumulate * self.steps

    @property
    def best(self) -> dict | None:
        """The best evaluation so far, as of ``best_of``."""
        return best_of(self.history, self.data.task.metric)

    @property
    def skipped(self) -> int:
        return self.trainer.zeroth_order.skipped

    def judge(self) -> dict:
        """The model on the held-out rows."""
        self.trainer.flush()
        return metrics_of(self.loaded, self.data.held_out, self.held_out, self.reader)

    def run(self, resume=None):
        """Train to the end, from the checkpoint ``resume`` if there is one. With ``keep="best"`` the weights are then the best ones'.

        Raises:
            BadInput: the losses of many steps on end were not finite, or the state of a checkpoint does not fit.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "step .* was skipped", RuntimeWarning)  # they are counted in the summary
            warnings.filterwarnings("ignore", category=UserWarning, module="torch.utils.data")  # pinned memory without a GPU
            try:
                self.trainer.train(resume_from_checkpoint=resume and str(resume))
            except BadInput:
                raise
            except OSError as error:
                if not str(error.filename).startswith(str(self.path)):
                    raise
                with writing(self.path):
                    raise
            except ValueError as error:
                raise BadInput(first_line(error)) from None
            except RuntimeError as error:  # NotImplementedError is one
                zeroth = self.settings.zeroth_class
                if isinstance(error, NotImplementedError) and zeroth and zeroth.derivative == "forward":
                    what = "--zo" if self.settings.halves else "--optimizer"
                    raise BadInput(f"{what} {self.settings.zeroth}: {' '.join(str(error).split())}: pass {what} {ZO}") from None
                if resume and not self.steps and str(error).startswith("Error(s) in loading state_dict"):
                    raise BadInput(f"checkpoint {str(resume)!r} is of another model: restore the --model that the run began with") from None
                raise
            finally:
                if self.bar is not None:
                    self.bar.close()
        if self.settings.keep == "best" and self.best and self.best["step"] != self.steps:
            kept = self.path / output.CHECKPOINTS / f"checkpoint-{self.best['step']}"
            need("zokern.hf.checkpoint").check(kept)
            self.trainer._load_from_checkpoint(str(kept))

    def _reader(self, features):
        """Who is asked in training: the head alone, where nothing else is trained and it sees one vector a row."""
        train, held_out = features
        loaded = self.loaded
        head = head_of(loaded.model, len(loaded.reader.task.labels)) if self.settings.task_type == "head" else None
        if head is None or {id(p) for _, p in loaded.trained()} != {id(p) for p in head.parameters()}:
            return loaded.reader, features
        vectors = [seen_by(head, loaded, rows) for rows in features]
        if any(v is None for v in vectors):
            return loaded.reader, features
        frozen = FrozenBody(loaded.reader, head)
        return frozen, [frozen.features(v, rows) for v, rows in zip(vectors, (train, held_out))]

    def _trainer(self, rows):
        transformers, hf, settings = need("transformers"), need("zokern.hf"), self.settings
        cls, options = optimizers.make(settings, self.loaded.model)
        arguments = transformers.TrainingArguments(
            output_dir=str(self.path / output.CHECKPOINTS),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=TOGETHER,  # of an anchor's full batch
            gradient_accumulation_steps=settings.accumulate,
            dataloader_drop_last=True,
            lr_scheduler_type=settings.schedule,
            **({} if cls.takes_model else {"learning_rate": settings.lr}),
            seed=settings.seed,
            use_cpu=settings.device == "cpu",
            logging_steps=min(10, settings.eval_every),
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=settings.save_every,
            save_total_limit=KEPT,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        if arguments.device.type == "cuda":
            arguments._n_gpu = 1  # Trainer would spread the batch over all that it sees
        chosen = {"optimizer_cls_and_kwargs": (cls, options)}
        if settings.lr_ratio is not None:
            lr = options.pop("lr")
            chosen = {"optimizers": (hf.lora_plus(self.loaded.model, cls, lr, settings.lr_ratio, **options), None)}
        trainer = hf.ZOTrainer(
            self.loaded.model,
            arguments,
            train_dataset=rows,
            data_collator=self.reader.collate,
            objective=self.reader,
            full_batch=settings.full_batch or "train",
            trajectory=str(self.path / output.TRAJECTORY) if cls.replayable else None,
            check=not settings.no_check,
            callbacks=[_watch(self)],
            **chosen,
        )
        trainer.remove_callback(transformers.PrinterCallback)  # it prints what is logged
        return trainer


def _watch(training):
    """The callback that judges, writes the log, and stops."""
    transformers, tqdm = need("transformers"), need("tqdm").tqdm

    class Watch(transformers.TrainerCallback):
        def __init__(self):
            self.stopped, self.begin, self.seen, self.shown, self.logged = [], 0.0, (0, 0), {}, 0

        def on_train_begin(self, args, state, control, lr_scheduler, **kwargs):
            self.bar = training.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)
            if state.global_step == 0:
                self._judge(state)
            training.seconds = max((entry.get(SECONDS, 0.0) for entry in state.log_history), default=0.0)
            if state.global_step:  # the checkpoint's learning rate is that of the steps that were then asked for
                lr_scheduler.last_epoch -= 1
                lr_scheduler.step()
            self.begin = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            training.here += 1
            if training.here == 1:
                self.begin += training.trainer.check_seconds
            self.bar.update()
            if state.global_step % training.settings.eval_every == 0 or state.global_step == state.max_steps:
                self._clock()
                self._judge(state)
                self.begin = time.perf_counter()
                if training.best["step"] == state.global_step:
                    state.best_global_step = state.global_step  # whose checkpoint, if there is one, Trainer does not remove
                    control.should_save = control.should_save or training.settings.keep == "best"
            if self.stopped and state.global_step < state.max_steps:
                training.interrupted = True
                control.should_training_stop = control.should_save = True
            if control.should_save or state.global_step % args.save_steps == 0:
                control.should_log = True  # a checkpoint knows the seconds so far

        def on_save(self, args, state, control, **kwargs):
            self.begin = time.perf_counter()  # as a run sees it that goes on from there

        def on_train_end(self, args, state, control, **kwargs):
            self._clock()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                self._clock()
                state.log_history[-1][SECONDS] = round(training.seconds, 3)
            self.shown |= {name: logs[name] for name in SHOWN if logs and name in logs}
            self.bar.set_postfix_str(", ".join(f"{name} {value:.3f}" for name, value in self.shown.items()), refresh=False)
            skipped = (logs or {}).get("skipped_steps")
            if skipped is not None:
                steps, before = self.seen
                if skipped - before == state.global_step - steps >= PATIENCE:
                    last = f"{state.global_step - steps} steps up to step {state.global_step}"
                    rates = {title(name): rate for name in ("lr", "fo_lr") if (rate := getattr(training.settings, name))}
                    shown = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
                    raise BadInput(f"the loss was not finite in {last}, {shown}: pass a smaller {' or '.join(rates)}")
                if skipped - before < state.global_step - steps:
                    self.seen = state.global_step, skipped
            lines = (json.dumps({name: _json(value) for name, value in entry.items()}) for entry in state.log_history[self.logged :])
            write = output.append if self.logged else output.write  # at first all that the checkpoint knows: what came later comes again
            write(training.path / output.LOG, "".join(f"{line}\n" for line in lines))
            self.logged = len(state.log_history)

        def _clock(self):
            now = time.perf_counter()
            training.seconds, self.begin = training.seconds + now - self.begin, now

        def _judge(self, state):
            found = training.judge()
            training.trainer.log({f"eval_{name}": value for name, value in found.items()})

    watch = Watch()
    watch.stopped = training.stopped = []
    return watch


def _json(value):
    """JSON has no NaN: what is not finite has no figure."""
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value


@contextmanager
def interruptible(stopped):
    """Ctrl-C fills the list, to be looked at between steps; a second one interrupts as ever.

    A step is never left half done, so that the weights are always those of a whole number of steps.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears of signals
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_):
        stopped.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
