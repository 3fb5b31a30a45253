"""The loop: a MeZO step on each batch, an evaluation on the held-out rows now and then."""

import math
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ..errors import BadInput
from ..optim import MeZO
from .model import Classifier, loader
from .probe import probe
from .settings import Settings

PATIENCE = 10  # steps on end without a finite loss after which a run is given up


@dataclass
class History:
    """What a run went through.

    Attributes:
        losses: of every step: the mean over its two perturbed models.
        evaluations: [(step, held-out loss, held-out accuracy)], the first before anything; with --head probe a second one at step 0, of
            the probe.
        skipped: steps that moved nothing for want of a finite loss.
        forwards: batches evaluated by the optimizer.
        seconds: in training steps, without the evaluations.
        interrupted: whether the user stopped the run before its last step.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float, float]] = field(default_factory=list)
    skipped: int = 0
    forwards: int = 0
    seconds: float = 0.0
    interrupted: bool = False


def train(classifier: Classifier, train_rows: list[dict], held_out_rows: list[dict], settings: Settings, log, bar) -> History:
    """Fine-tune in place.

    Args:
        train_rows, held_out_rows: tokenized rows.
        log: called with a dict for every step and every evaluation.
        bar: a tqdm bar of ``settings.steps``.
    Raises:
        BadInput: the held-out loss is not finite, or the loss of many steps on end.
    """
    optimizer = MeZO(
        classifier.trained(), lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay, q=settings.q, seed=settings.seed
    )
    schedule = _schedule(optimizer, settings)
    history = History()
    in_a_row = 0

    def judge(step):
        loss, accuracy = evaluate(classifier, held_out_rows)
        history.evaluations.append((step, loss, accuracy))
        log({"step": step, "held_out_loss": loss, "held_out_accuracy": accuracy})

    judge(0)
    if settings.head == "probe":
        probe(classifier, train_rows)
        judge(0)
    with interruptible() as stopped, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "step .* was skipped", RuntimeWarning)  # they are counted in the summary
        for step, batch in enumerate(batches(classifier, train_rows, settings), 1):
            begin = time.perf_counter()
            lr = schedule.get_last_lr()[0]
            loss = float(optimizer.step(lambda: classifier.losses_and_hits(batch)[0].mean()))  # noqa: B023
            schedule.step()
            history.seconds += time.perf_counter() - begin
            history.forwards += len(optimizer.last.losses)
            history.losses.append(loss)
            skipped = bool(optimizer.last.skipped)
            # JSON has no NaN: a step that was skipped has no figures.
            measured = {} if skipped else {"loss": loss, "projected_grad": optimizer.last.projected_grad.tolist()}
            log({"step": step, **measured, "lr": lr, "skipped": skipped})
            in_a_row = in_a_row + 1 if skipped else 0
            if in_a_row == PATIENCE:
                raise BadInput(f"the loss was not finite in {PATIENCE} steps up to step {step}, --lr {settings.lr:g}: pass a smaller --lr")
            if step % settings.eval_every == 0 or step == settings.steps or stopped:
                judge(step)
            bar.set_postfix_str(f"loss {loss:.3f}, held-out accuracy {history.evaluations[-1][2]:.3f}", refresh=False)
            bar.update()
            if stopped:
                history.interrupted = step < settings.steps
                break
    history.skipped = optimizer.skipped
    return history


@torch.no_grad()
def evaluate(classifier: Classifier, rows: list[dict]) -> tuple[float, float]:
    """-> (mean loss, accuracy) over tokenized rows.

    Raises:
        BadInput: the loss is not finite: the weights are broken, or too large for their dtype.
    """
    (batch,) = loader(classifier, rows, len(rows))
    losses, right = classifier.losses_and_hits(batch)
    loss = float(losses.double().mean())
    if not math.isfinite(loss):
        raise BadInput(f"the model's loss on held-out rows is {loss}: pass a smaller --lr, or --dtype float32")
    return loss, int(right.sum()) / len(rows)


def batches(classifier: Classifier, rows: list[dict], settings: Settings):
    """``settings.steps`` batches, epoch after epoch, each in an order of its own that the seed fixes."""
    generator = torch.Generator().manual_seed(settings.seed)
    epoch = loader(classifier, rows, settings.batch_size, shuffle=True, drop_last=True, generator=generator)
    step = 0
    while True:
        for batch in epoch:
            if step == settings.steps:
                return
            yield batch
            step += 1


def _schedule(optimizer, settings):
    schedulers = torch.optim.lr_scheduler
    if settings.schedule == "linear":
        return schedulers.LinearLR(optimizer, 1.0, 0.0, settings.steps)
    if settings.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, settings.steps)
    return schedulers.ConstantLR(optimizer, 1.0)


@contextmanager
def interruptible():
    """Ctrl-C fills the list that this yields, to be looked at between steps; a second one interrupts as ever.

    A step is never left half done, so that the weights are always those of a whole number of steps.
    """
    stopped = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears of signals
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_):
        stopped.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
