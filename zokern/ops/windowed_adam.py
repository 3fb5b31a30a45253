"""Adam without state: its moments are summed of the noise of the last steps, made again in registers."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, chain

import torch

from ..kernels import backend_for
from ..kernels.passes import WINDOWED_ADAM
from ..kernels.tables import State, to_device
from ..layout import Layout
from ..noise import NoiseKey
from .arguments import Number, Term, check_decay, check_kind, check_number, check_numbers, check_terms, merged, rounding_key
from .staging import each_table, stage


@torch.no_grad()
def windowed_adam_(
    layout: Layout,
    window: Iterable[Iterable[Term]],
    weights: tuple[Sequence[Number], Sequence[Number]],
    numbers: Iterable[Number],
    pending: Iterable[Term] = (),
    decay: Number = 1.0,
    rounding: str | NoiseKey = "nearest",
) -> None:
    """One step of Adam without state on every parameter of the layout, in one pass: theta is read and written once, and nothing else is.

    The moments are made again from the terms of the steps t of a window:

        x = decay theta + sum_j o_j z(key_j);  g_t = sum_k c_k z(key_k)
        m = sum_t weights[0][t] g_t;  v = sum_t weights[1][t] g_t^2
        x <- x + n0 m / (sqrt(v) n1 + n2)

    Computed in float32 in the order that docs/noise_spec.md gives; theta is rounded once to its dtype. Never waits for the device.

    Args:
        layout: the parameters, their element indices, and which share of their elements the noise reaches.
        window: for each step the terms of its gradient's estimate, (NoiseKey, coefficient), at least one.
        weights: what g and g^2 of each step are multiplied by in m and in v: two sequences of a number, a 0-dim tensor or a tensor
            [len(layout.coefficient_groups)] a step.
        numbers: n: -lr / bc1, 1 / sqrt(bc2) and delta, as of the rule "adam".
        pending: terms that go into theta before, with coefficients o in units of theta. Default (): none.
        decay: what theta is multiplied by before that. Default 1.0.
        rounding: how theta in 16 bits is rounded, as ``add_noise_`` takes it; "stochastic" is by the seed and step of the last step's first
            term. Default "nearest".

    Raises:
        TypeError: an argument of another kind, named with its cure.
        ValueError: an argument of another number or shape, named with its cure.
    """
    groups = len(layout.coefficient_groups)
    steps = [check_terms(f"window[{t}]", terms, groups) for t, terms in enumerate(window)]
    if not steps or not all(steps):
        raise ValueError(f"window has {list(map(len, steps))} terms: pass one step or more, each with a term or more")
    for i, of_steps in enumerate(weights):
        if len(of_steps) != len(steps):
            raise ValueError(f"weights[{i}] has {len(of_steps)} numbers: pass one for each of the {len(steps)} steps of the window")
        for t, value in enumerate(of_steps):
            check_number(f"weights[{i}][{t}]", value, groups)
    terms, waiting = [*chain(*steps)], merged(check_terms("pending", pending, groups))
    check_kind("window and pending", [*(key for key, _ in terms), *waiting])
    rounded_by = rounding_key(rounding, [steps[-1][0][0]])
    numbers, scale = check_numbers(WINDOWED_ADAM, numbers, groups), check_decay(decay, groups)

    # Keys that are of theta alone come first: those of a step follow each other, and only the last of them adds its g to m and v.
    own = [waiting.pop(key, 0.0) for key, _ in terms]
    keys = [*waiting, *(key for key, _ in terms)]
    last = {end - 1: t for t, end in enumerate(accumulate(map(len, steps)))}
    kept = [float(k > 0 and k - 1 not in last) for k in range(len(terms))]
    of_keys: list[Sequence[Number]] = [[c for _, c in terms], kept, *(_at_last(of_steps, last, len(terms)) for of_steps in weights)]

    staged = {}
    for table in each_table(layout):
        device = table.device
        if device not in staged:
            b = torch.stack([to_device(stage(values, groups, device), device) for values in of_keys])
            b = torch.nn.functional.pad(b, (0, 0, len(waiting), 0))
            d = None if scale is None else stage([scale], groups, device)[0]
            staged[device] = stage([*waiting.values(), *own], groups, device), b, d, stage(numbers, groups, device)
        state = table.cached("stateless", partial(_stateless, len(table.rows)))
        backend_for(device).update_(table, WINDOWED_ADAM, keys, *staged[device], state, None, rounded_by)


def _at_last(of_steps: Sequence[Number], last: dict[int, int], terms: int) -> list[Number]:
    """A number a term: that of its step where it is the step's last, else 0."""
    nothing = of_steps[0] * 0
    return [of_steps[last[k]] if k in last else nothing for k in range(terms)]


def _stateless(rows: int) -> State:
    return State(torch.float32, torch.empty(rows, 0, dtype=torch.int64))
