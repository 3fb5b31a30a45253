"""The step of its log that an optimizer is at: saved with its state, and compared when recording is resumed.

``ZerothOrder.logged`` is None where there is no log; what ``load_state_dict`` was given; or, while steps are recorded and after,
optimizer -> what to save (``position_of``).
"""

from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadInput
from ..estimators import PerturbedWeights
from ..optim import ZerothOrder
from ..optim.saved import logged
from .weights import combined, digests, parameters_of


class Writes(NamedTuple):
    """Counts of writes to the weights, from which follows whether steps alone have written.

    Attributes:
        weights: whose passes they are; another one once a state has been loaded.
        flushes, discarded: flushes; measurements that no step followed, of weights in place, which these have moved.
        others: for each contiguous parameter, writes that were not the optimizer's passes.
    """

    weights: PerturbedWeights
    flushes: int
    discarded: int
    others: list[int]

    @classmethod
    def of(cls, optimizer: ZerothOrder) -> "Writes":
        # A pass counts once in the weights, and once in the version of each contiguous parameter.
        weights = optimizer.weights
        others = [p._version - passes for part, passes in zip(weights.parts, weights.passes) for p in part.tensors if p.is_contiguous()]
        discarded = weights.in_place * (optimizer.discarded_measurements + optimizer._unfinished)
        return cls(weights, optimizer.flushes, discarded, others)

    def disturbed_until(self, now: "Writes", step: int) -> str | None:
        """What else than steps and flushes has moved the weights since, for a message; None where nothing has. ``step``: of now."""
        if step and now.weights is not self.weights:
            return "a state was loaded"
        if now.others != self.others:
            return "something other than the optimizer wrote to the weights"
        if now.discarded > self.discarded:
            return "the weights moved for a measurement that was not stepped along, or were flushed between the halves of a step,"
        return None


def position_of(optimizer: ZerothOrder, step: int, crc: int, disturbed: bool) -> dict[str, Any]:
    """What to save with an optimizer. Reads every parameter once.

    Args:
        step, crc: how many steps its log has, and the checksum up to there.
        disturbed: whether something else has moved the weights since.
    """
    return {"step": step, "crc": f"{crc:08x}", "weights": _digest(optimizer), "disturbed": disturbed}


def check_position(optimizer: ZerothOrder, path: Path, step: int, crc: int) -> str | None:
    """Compare the position that an optimizer's state was saved with, and its weights, with a log.

    Args:
        step, crc: of the optimizer, and the checksum of the log up to there.

    Returns:
        What else than steps had moved the weights, for a message; None where nothing had.

    Raises:
        BadInput: the log, the weights or the step are others.
    """
    saved = logged(optimizer).get("logged")
    if not isinstance(saved, dict) or saved.keys() != {"step", "crc", "weights", "disturbed"}:
        return "a state that does not say which weights it belongs to, as that of a recorded optimizer does, was loaded"
    if saved["step"] != step:
        raise BadInput(
            f"the optimizer is at step {step}, its log was left at step {saved['step']}, and the steps in between are in none: load a "
            f"state that was saved while {path} was recorded"
        )
    if saved["crc"] != f"{crc:08x}":
        raise BadInput(f"{path} is the log of another run: its first {step} steps are not those of the optimizer: pass the log of its run")
    if saved["weights"] != _digest(optimizer):
        raise BadInput(
            f"the weights are not those that the optimizer's state was saved with, after step {step} of {path}: load weights and state of "
            "one checkpoint (who writes one with defer=True calls flush() before saving the weights)"
        )
    return "something moved the weights before the state was saved," if saved["disturbed"] else None


def _digest(optimizer: ZerothOrder) -> str:
    return combined(digests(p for _, p in parameters_of(optimizer)))
