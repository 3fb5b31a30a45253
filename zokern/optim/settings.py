"""What the settings of an optimizer may be."""

import math
from numbers import Integral, Real
from operator import index

import torch

# (test, what to pass instead)
RULES = {
    "lr": (lambda x: 0 <= x < math.inf, "a number >= 0"),
    "eps": (lambda x: 0 < x < math.inf, "a number > 0"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "a number >= 0"),
    "q": (lambda x: 1 <= index(x) < 1 << 24, "an integer >= 1, < 2**24"),
    "estimator": (lambda x: x in ("two-point", "one-sided"), '"two-point" or "one-sided"'),
    "defer": (lambda x: x is True or x is False, "True or False"),
    "lr_full": (lambda x: 0 <= x < math.inf, "a number >= 0"),
    "anchor": (lambda x: x in (None, "copy", "replay"), '"copy", "replay" or None'),
    "form": (lambda x: x in ("element", "scalar"), '"element" or "scalar"'),
    "momentum": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "betas": (lambda x: len(x) == 2 and all(0 <= b < 1 for b in x), "two numbers in [0, 1)"),
    "delta": (lambda x: 0 < x < math.inf, "a number > 0"),
    "amsgrad": (lambda x: x is True or x is False, "True or False"),
    "bias_correction": (lambda x: x is True or x is False, "True or False"),
    "state_dtype": (lambda x: x in (torch.float32, torch.bfloat16), "torch.float32 or torch.bfloat16"),
    "seed": (lambda x: 0 <= index(x) < 1 << 64, "an integer in [0, 2**64)"),
    "trail": (lambda x: x is None or _is_trail(**x), "what MeZOSVRG.state_dict() gave"),
    "step": (lambda x: 0 <= index(x) < 1 << 32, "an integer in [0, 2**32)"),
    "skipped": (lambda x: 0 <= int(x) < 1 << 32, "an integer in [0, 2**32)"),
}
# One value for the whole optimizer, kept in every group.
SHARED = ("seed", "step", "q", "defer", "estimator", "anchor", "form", "amsgrad", "bias_correction", "state_dtype", "noise_spec")


def check_settings(group: dict, place: int, first: dict) -> None:
    """Settings of a parameter group are in range; numbers of other libraries become Python's.

    Args:
        place: of the group in ``param_groups``.
        first: the first group, whose values of what is ``SHARED`` all groups have.
    Raises:
        ValueError: a setting out of its range, or another than the first group's, with the group and the cure.
    """
    for name, (holds, cure) in RULES.items():
        if name in group:
            group[name] = _plain(group[name])
            try:
                good = holds(group[name])
            except (AttributeError, TypeError, ValueError, RuntimeError, OverflowError):
                good = False
            if not good:
                raise ValueError(f"{name}={group[name]!r} in param_groups[{place}]: pass {cure}")
    for name in SHARED:
        mine, theirs = group.get(name), first.get(name)
        if mine != theirs:
            raise ValueError(f"{name}={mine!r} differs from param_groups[0]'s {name}={theirs!r}: pass one {name} for all")


def _is_trail(anchor, g_full, good, moves):
    numbers = [g_full, *(c for move in moves for c in move)]
    return index(anchor) >= 0 and good.dtype == torch.bool and good.dim() == 0 and all(torch.is_floating_point(c) for c in numbers)


def _plain(value):
    """A setting as a state_dict may hold it: numbers of other libraries as Python's."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return value
