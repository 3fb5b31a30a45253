"""What goes wrong without an exception: skipped steps, losses too coarse to differ, processes whose weights differ."""

import contextlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from .base import ZerothOrder

EQUAL = 5  # steps running whose losses did not differ, of those that are looked at: then there is a warning
PATIENCE = 100  # steps at which a process looks for the notes of others
BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}  # of a number, that a dtype keeps
INSIDE = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), contextlib.__file__  # a warning points to who called these
_made: Counter[str] = Counter()  # optimizers of each kind that have measured in this process


class Watch:
    """Warns, once each, of steps that move nothing though nothing fails. ``skipped``, ``dropped``: how many steps and members were, before
    the run went on.

    Numbers on a GPU are looked at when they have arrived, a step or two later, and those of steps in between are not: no step waits.
    """

    def __init__(self, skipped: int = 0, dropped: int = 0) -> None:
        self._skipped_before, self._dropped_before, self._equal = skipped, dropped, 0
        self._told: set[str] = set()
        self._arriving: Any = None  # (numbers, event after which they are there, of which step)

    def loss(self, loss: Any) -> None:
        """Look at a loss as the closure returned it."""
        bits = bits_of(loss)
        if bits < BITS[torch.float32]:
            self._tell(
                "rounded",
                f"the closure returned a loss of {loss.dtype}, which has {bits} bits: the losses of a step, which differ by little, "
                "mostly round to the same number, and nothing is learnt. Compute it in float32 from the logits on, as in "
                "cross_entropy(logits.float(), labels); to convert the loss itself afterwards does not help",
            )

    def step(self, step: int, skipped: torch.Tensor, grad: torch.Tensor | None, dropped: torch.Tensor | int | None = None) -> None:
        """Look at a step that was made. ``skipped``, ``dropped``: steps and members of a population so far, 0-dim tensors. ``grad``: its
        projected gradient, or several, or None."""
        if {"skipped", "equal"} | ({"dropped"} if dropped is not None else set()) <= self._told:
            return
        if self._arriving is None:
            # Skipped are those of all steps so far: none goes unnoticed while an earlier count is on its way.
            skipped = skipped.double().reshape(1)
            without = torch.zeros_like(skipped) + (0 if dropped is None else dropped)
            there = torch.cat([skipped, without, torch.ones_like(skipped) if grad is None else grad.double().reshape(-1)])
            self._arriving = there, None, f"step {step}"
            if there.is_cuda:
                here, arrived = torch.empty_like(there, device="cpu", pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
                here.copy_(there, non_blocking=True)
                arrived.record(torch.cuda.current_stream(there.device))
                self._arriving = here, arrived, f"step {step}, or one shortly before it,"
        numbers, arrived, which = self._arriving
        if arrived is None or arrived.query():
            self._arriving = None
            skips, drops, *grads = numbers.tolist()
            self._equal = 0 if any(grads) else self._equal + 1
            if skips > self._skipped_before:
                self._tell("skipped", f"{which} was skipped: a loss was not finite. Later ones are only counted, in `skipped`.")
            elif drops > self._dropped_before:
                self._tell("dropped", f"{which} had members whose loss was not finite. Later ones are only counted, in `dropped`.")
            if self._equal >= EQUAL:
                self._tell(
                    "equal",
                    f"{which} was the {EQUAL}th running whose losses did not differ at all, so that nothing moved. They do not depend on "
                    "the parameters given, or are too coarse for it: rounded to 16 bits somewhere, a count of errors, or eps too small.",
                )

    def _tell(self, what: str, message: str) -> None:
        """Once."""
        if what not in self._told:
            self._told.add(what)
            warn(message)


class Replicas:
    """Notices that processes which are to train the same parameters do not.

    Each leaves a note of its first measurement in the store of torch.distributed's process group, and warns when it finds another note of
    process 0, or, as process 0, of any other. It is no collective and nobody waits for anybody: a process may train alone.
    """

    def __init__(self) -> None:
        self._mine: dict[str, Any] | None = None
        self._left = PATIENCE

    def look(self, optimizer: "ZerothOrder", measurements: Sequence[torch.Tensor]) -> None:
        """After a measurement, the weights where its last loss was evaluated. The first time this waits for the device."""
        if not self._left or not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        if self._mine is None:
            self._mine = self._leave(optimizer, measurements)
        self._left -= 1
        if self._store.check(self._others):
            self._left = 0
            for rank in self._others:
                theirs = json.loads(self._store.get(rank))
                differs = [name for name, value in self._mine.items() if value != theirs[name]]
                if differs:
                    warn(
                        f"process {distributed.get_rank()} and process {rank} differ in their {', '.join(differs)} at step "
                        f"{self._mine['step']}, and walk apart from here: average the loss over processes in the closure, and begin with "
                        "the same weights and seed in each, as examples/several_processes.py does. Where they are to train apart, all is "
                        "well"
                    )
                    return

    def _leave(self, optimizer: "ZerothOrder", measurements: Sequence[torch.Tensor]) -> dict[str, Any]:
        kind, rank = f"zokern/{type(optimizer).__name__}/{optimizer.layout.fingerprint()}", distributed.get_rank()
        self._store = distributed.PrefixStore(f"{kind}/{_made[kind]}", distributed.distributed_c10d._get_default_store())
        self._others = [str(other) for other in (range(1, distributed.get_world_size()) if rank == 0 else (0,))]
        _made[kind] += 1
        group = optimizer.param_groups[0]
        weights = [float(p.detach().sum(dtype=torch.float64)).hex() for p in optimizer.layout.params]
        mine = dict(step=group["step"], seed=group["seed"], weights=weights, losses=[float(number).hex() for number in measurements])
        self._store.set(str(rank), json.dumps(mine))
        return mine


def warn(message: str) -> None:
    """A RuntimeWarning that points to the line outside the package which has led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)


def bits_of(loss: Any) -> int:
    """How many bits a loss may have as a closure returned it: if it is no tensor, as a float64 has."""
    return BITS.get(getattr(loss, "dtype", torch.float64), 53)
