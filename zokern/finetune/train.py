"""The training of a run: its folder, ZOTrainer's loop, held-out rows judged now and then; it can be stopped and gone on with."""

import json
import signal
import threading
import time
import warnings
from contextlib import contextmanager

from ..errors import BadInput, Unwritable, first_line, need, writing
from . import optimizers, output
from .features import EVALUATED_AT_ONCE, FrozenBody, head_of, seen_by
from .metrics_of_model import best_of, metrics_of
from .options import title
from .prepare import Run
from .settings import ZO

SHOWN = ("loss", "eval_loss", "eval_accuracy", "eval_f1", "eval_matthews")  # beside the bar
SECONDS = "train_seconds"  # of a log's entries
PATIENCE = 10  # steps on end without a finite loss after which a run is given up
KEPT = 2  # checkpoints: should the machine stop while one is written, there is the one before


@contextmanager
def opened(run: Run, say):
    """The folder of a run while it is trained: begun, or gone on with. Where that fails before the first step, it is as it was.

    Raises:
        Unwritable: a file in it cannot be written, with how to go on.
    """
    path, before = run.path, None
    if run.resumed is None:
        output.begin(path, run.record(), run.initial())
    elif run.resumed["settings"]["steps"] != run.settings.steps:
        before = output.extend(path, run.resumed, run.settings.record())
    try:
        if run.resumed is not None:
            _go_on(run, say)
        yield
    except Exception as error:
        if run.resumed is None and not run.steps_made:
            output.clear(path)  # nothing has been learnt in it
        elif before is not None and not run.steps_made:
            output.restore(path, before)
        elif isinstance(error, Unwritable):
            raise Unwritable(f"{error}, then zokern finetune --resume {path}") from error
        raise


def _go_on(run, say):
    steps, schedule, before = run.settings.steps, run.settings.schedule, run.resumed["settings"]["steps"]
    if run.checkpoint is None:
        say(f"no checkpoint is left in {run.path}: from the first step on")
        output.load_initial(run.path, run.resumed, run.loaded.model)
        (run.path / output.TRAJECTORY).unlink(missing_ok=True)
    elif steps != before and schedule != "constant":
        done = int(run.checkpoint.name.rpartition("-")[2])
        as_of = f"--schedule {schedule} over {steps} steps"
        say(f"from step {done + 1} on the learning rate is that of {as_of}; up to there it was as over {before}")


def train(run: Run, say) -> "Training":
    """Train to the last step, or until Ctrl-C."""
    training = Training(run)
    with interruptible(training.stopped):
        training.train()
    if training.interrupted:
        say(f"stopped after step {training.steps} of {run.settings.steps}: zokern finetune --resume {run.path}")
    return training


class Training:
    """The steps of a run.

    Attributes:
        seconds: in training steps, without judging and saving, those before the checkpoint that the run goes on from included.
        history: what was logged, in the order of steps, as Trainer keeps it: dicts with "step".
        interrupted: whether the user stopped the run before its last step.
    """

    def __init__(self, run: Run):
        self.run, self.settings = run, run.settings
        self.seconds, self.interrupted, self.bar = 0.0, False, None
        self.reader, (train, self.held_out) = self._reader()
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
        full = -(-(settings.full_batch or len(self.run.data.train)) // EVALUATED_AT_ONCE)
        return optimizer.forwards * settings.accumulate * (self.steps - anchors) + 2 * full * anchors

    @property
    def backwards(self) -> int:
        """Of those batches, how many went back through the model."""
        return (self.trainer.zeroth_order.derivative == "backward") * self.settings.accumulate * self.steps

    @property
    def best(self) -> dict | None:
        """The best evaluation so far, as of ``best_of``."""
        return best_of(self.history, self.run.data.task.metric)

    @property
    def skipped(self) -> int:
        return self.trainer.zeroth_order.skipped

    def judge(self) -> dict:
        """The model on the held-out rows."""
        self.trainer.flush()
        return metrics_of(self.run.loaded, self.run.data.held_out, self.held_out, self.reader)

    def train(self):
        """Train to the end, from the run's checkpoint if there is one. With ``keep="best"`` the weights are then the best ones'.

        Raises:
            BadInput: the losses of many steps on end were not finite, or the state of a checkpoint does not fit.
        """
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
                    raise BadInput(f"{what} {self.settings.zeroth}: {' '.join(str(error).split())}: pass {what} {ZO}") from None
                if resume and not self.steps and str(error).startswith("Error(s) in loading state_dict"):
                    raise BadInput(f"checkpoint {str(resume)!r} is of another model: restore the --model that the run began with") from None
                raise
            finally:
                if self.bar is not None:
                    self.bar.close()
        if self.settings.keep == "best" and self.best and self.best["step"] != self.steps:
            kept = path / output.CHECKPOINTS / f"checkpoint-{self.best['step']}"
            need("zokern.hf.checkpoint").check(kept)
            self.trainer._load_from_checkpoint(str(kept))

    def _reader(self):
        """-> (reader, features of the training and the held-out rows): of the head alone where nothing else is trained and it sees one
        vector a row."""
        loaded, features = self.run.loaded, (self.run.train, self.run.held_out)
        head = head_of(loaded.model, len(loaded.reader.task.labels)) if self.settings.task_type == "head" else None
        if head is None or {id(p) for _, p in loaded.trained()} != {id(p) for p in head.parameters()}:
            return loaded.reader, features
        vectors = [seen_by(head, loaded, rows) for rows in features]
        if any(v is None for v in vectors):
            return loaded.reader, features
        frozen = FrozenBody(loaded.reader, head)
        return frozen, [frozen.features(v, rows) for v, rows in zip(vectors, features)]

    def _trainer(self, rows):
        transformers, hf, settings = need("transformers"), need("zokern.hf"), self.settings
        cls, options = optimizers.make(settings, self.run.loaded.model)
        arguments = transformers.TrainingArguments(
            output_dir=str(self.run.path / output.CHECKPOINTS),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=EVALUATED_AT_ONCE,  # of an anchor's full batch
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
            chosen = {"optimizers": (hf.lora_plus(self.run.loaded.model, cls, lr, settings.lr_ratio, **options), None)}
        trainer = hf.ZOTrainer(
            self.run.loaded.model,
            arguments,
            train_dataset=rows,
            data_collator=self.reader.collate,
            objective=self.reader,
            full_batch=settings.full_batch or "train",
            trajectory=str(self.run.path / output.TRAJECTORY) if cls.replayable else None,
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
            training.run.steps_made += 1
            if training.run.steps_made == 1:
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
            write(training.run.path / output.LOG, "".join(f"{line}\n" for line in lines))
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
