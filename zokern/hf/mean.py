"""Means of losses: of micro-batches; the one that is logged where some are not finite."""

from typing import TypeAlias

import torch

Count: TypeAlias = torch.Tensor | int  # labels or rows that a loss is the mean of


class FiniteMean:
    """The mean of those losses that are finite, which Trainer's filter (logging_nan_inf_filter) claims to log: it counts the others as an
    average of those before them in the same interval, that is as 0 where there are none. Nothing waits for the device but ``value``."""

    def __init__(self) -> None:
        self.sum, self.count, self.steps = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0), 0

    def add(self, loss: torch.Tensor) -> None:
        finite = torch.isfinite(loss)
        self.sum, self.count, self.steps = self.sum + torch.where(finite, loss, 0.0).double(), self.count + finite.long(), self.steps + 1

    def value(self, otherwise: float) -> float:
        """The mean, NaN of none; ``otherwise`` where every loss was finite."""
        finite = int(self.count)
        if 0 < finite == self.steps:
            return otherwise
        return float(self.sum) / finite if finite else float("nan")


def share(loss: torch.Tensor, items: Count, weight: Count) -> torch.Tensor:
    """What a micro-batch adds to the mean of several: nothing where there is no label in it, whatever its loss."""
    part = loss.double() * (items / at_least_one(weight))
    if isinstance(items, torch.Tensor):
        return torch.where(items > 0, part, 0.0)
    return part if items else torch.zeros_like(part)


def at_least_one(count: Count) -> Count:
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
