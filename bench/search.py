"""A learning rate for each method, of 1, 3, 10, 30 ..., that no neighbour betters."""

import math
from collections.abc import Callable

RATES = [float(f"{m}e{e}") for e in range(-9, 1) for m in (1, 3)]


def walk(begin: float, loss_at: Callable[[float], float | None]) -> float:
    """-> the best of RATES, both of whose neighbours have been tried and are worse.

    Args:
        begin: one of RATES.
        loss_at: lr -> loss; None where it diverged.
    """
    tried: dict[float, float] = {}
    best = begin
    while True:
        place = RATES.index(best)
        wanted = [lr for lr in RATES[max(0, place - 1) : place + 2] if lr not in tried]
        if not wanted:
            return best
        for lr in wanted:
            loss = loss_at(lr)
            tried[lr] = math.inf if loss is None or not math.isfinite(loss) else loss
        best = min(tried, key=lambda lr: tried[lr])
