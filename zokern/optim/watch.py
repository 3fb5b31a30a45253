"""What goes wrong without an exception: skipped steps, losses too coarse to differ."""

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

EQUAL = 5  # steps running whose losses did not differ, of those that are looked at: then there is a warning
BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}  # of a number, that a dtype keeps
INSIDE = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), contextlib.__file__  # a warning points to who called these


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


def warn(message: str) -> None:
    """A RuntimeWarning that points to the line outside the package which has led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)


def bits_of(loss: Any) -> int:
    """How many bits a loss may have as a closure returned it: if it is no tensor, as a float64 has."""
    return BITS.get(getattr(loss, "dtype", torch.float64), 53)
