"""A learning rate for each method, of 1, 3, 10, 30 ..., that no neighbour betters; or, finer, with those half-way between."""

import math
from collections.abc import Callable

RATES = [float(f"{m}e{e}") for e in range(-9, 1) for m in (1, 3)]


def walk(begin: float, loss_at: Callable[[float], float | None], finer: bool = False) -> float:
    """-> the best of RATES, both of whose neighbours have been tried and are worse.

    Args:
        begin: one of RATES.
        loss_at: lr -> loss; None where it diverged.
        finer: are the two rates tried as well that are half-way from the best to its neighbours, in factors of 1.7 and 1.9?
    """
    tried: dict[float, float] = {}

    def best_with(rates) -> float:
        for lr in rates:
            if lr not in tried:
                loss = loss_at(lr)
                tried[lr] = math.inf if loss is None or not math.isfinite(loss) else loss
        return min(tried, key=lambda lr: tried[lr])

    def around(lr):
        place = RATES.index(lr)
        return RATES[max(0, place - 1) : place + 2]

    best = begin
    while (found := best_with(around(best))) != best:
        best = found
    return best_with(float(f"{math.sqrt(lr * best):.2g}") for lr in around(best) if lr != best) if finer else best
