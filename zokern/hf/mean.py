"""The mean that is logged where losses are not finite."""

import torch


class FiniteMean:
    """The mean of those losses that are finite, which Trainer's filter (logging_nan_inf_filter) claims to log: it counts the others as an
    average of those before them in the same interval, that is as 0 where there are none. Nothing waits for the device but ``value``."""

    def __init__(self) -> None:
        self.sum: torch.Tensor | float = 0.0
        self.count: torch.Tensor | int = 0
        self.steps = 0

    def add(self, loss: torch.Tensor) -> None:
        finite = torch.isfinite(loss)
        self.sum, self.count, self.steps = self.sum + torch.where(finite, loss, 0.0).double(), self.count + finite.long(), self.steps + 1

    def value(self, otherwise: float) -> float:
        """The mean, NaN of none; ``otherwise`` where every loss was finite."""
        finite = int(self.count)
        if 0 < finite == self.steps:
            return otherwise
        return float(self.sum) / finite if finite else float("nan")
