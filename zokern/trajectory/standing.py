"""Where in its log an optimizer stands: a saved state says it, and a log that goes on asks for it.

``ZerothOrder.logged`` is None where no log knows of the optimizer; what ``load_state_dict`` was given; or, while steps are recorded and
after, optimizer -> what to save.
"""

from typing import NamedTuple

from ..errors import BadInput
from ..estimators import PerturbedWeights
from ..optim.saved import logged
from .header import combined, digests, listed


class Seen(NamedTuple):
    """What tells whether the weights were moved by steps alone."""

    weights: PerturbedWeights
    flushes: int
    discarded: int
    beside: list[int]

    @classmethod
    def of(cls, optimizer):
        # A pass counts once in the weights, and once on each contiguous parameter. A measurement is not discarded once its step is made.
        weights = optimizer.weights
        beside = [p._version - passes for part, passes in zip(weights.parts, weights.passes) for p in part.params if p.is_contiguous()]
        return cls(weights, optimizer.flushes, optimizer.discarded_measurements + optimizer._unfinished, beside)

    def why(self, now: "Seen", step: int) -> str | None:
        """Why from here on, after ``step`` steps, the weights have not been moved by steps and flushes alone; None where they have."""
        if step and now.weights is not self.weights:
            return "a state was loaded"
        if now.beside != self.beside:
            return "something other than the optimizer wrote to the weights"
        if now.discarded > self.discarded:
            return "the weights moved for a measurement that was not stepped along, or were flushed between the halves of a step,"
        return None


def standing(optimizer, step: int, crc: int, disturbed: bool) -> dict:
    """What to save with an optimizer. Reads every parameter once.

    Args:
        step, crc: how many steps its log has, and the checksum of the last of their lines.
        disturbed: whether something beside them has moved the weights.
    """
    return {"step": step, "crc": f"{crc:08x}", "weights": _weights(optimizer), "disturbed": disturbed}


def why_disturbed(optimizer, path, step: int, crc: int) -> str | None:
    """Compare what an optimizer, at a step, says of its log with that log. -> why the log cannot be followed from here on, or None.

    Raises:
        BadInput: the log, the weights or the step are others.
    """
    says = logged(optimizer).get("logged")
    if not isinstance(says, dict) or says.keys() != {"step", "crc", "weights", "disturbed"}:
        return "a state that does not say which weights it belongs to, as that of a recorded optimizer does, was loaded"
    if says["step"] != step:
        raise BadInput(
            f"the optimizer is at step {step}, its log was left at step {says['step']}, and the steps in between are in none: load a state "
            f"that was saved while {path} was recorded"
        )
    if says["crc"] != f"{crc:08x}":
        raise BadInput(f"{path} is the log of another run: its first {step} steps are not those of the optimizer: pass the log of its run")
    if says["weights"] != _weights(optimizer):
        raise BadInput(
            f"the weights are not those that the optimizer's state was saved with, after step {step} of {path}: load weights and state of "
            "one checkpoint (who writes one with defer=True calls flush() before saving the weights)"
        )
    return "something moved the weights before the state was saved," if says["disturbed"] else None


def _weights(optimizer):
    return combined(digests(p for _, p in listed(optimizer)))
