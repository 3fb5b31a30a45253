"""theta <- rule(decay * theta + sum_j o_j z(key_j), g, state), with g = sum_k c_k z(key_k): the second primitive.

For rules that are not linear in z: the noise is made again beside the state that it updates, and neither z nor g is ever stored.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..kernels import backend_for
from ..kernels.location import location
from ..kernels.passes import RULES, Rule
from ..kernels.tables import Cache, State, Table
from ..layout import Layout
from ..memory import check_memory, lines
from ..noise import NoiseKey
from ..noise.spec import ROUNDING
from ..shards import local
from .arguments import Number, Term, check_decay, check_kind, check_numbers, check_terms, merged, rounding_key
from .staging import gathered, stage, tell

STATE_DTYPES = (torch.float32, torch.bfloat16)


@torch.no_grad()
def update_(
    layout: Layout,
    rule: str,
    terms: Iterable[Term],
    numbers: Iterable[Number],
    state: Iterable[Iterable[torch.Tensor]] = (),
    pending: Iterable[Term] = (),
    decay: Number = 1.0,
    state_rounding: NoiseKey | None = None,
    rounding: str | NoiseKey = "nearest",
) -> None:
    """One step of a rule on every parameter of the layout, in one pass: theta and the state are read once and written once.

        x = decay theta + sum_j o_j z(key_j);  g = sum_k c_k z(key_k)

    Then, element by element, with the ``numbers`` n in order:

        sign      n = -lr                                  x <- x + n0 sign(g)
        momentum  n = -lr, beta                            m <- beta m + g;  x <- x + n0 m
        adam      n = -lr / bc1, b1, 1 - b1, b2, 1 - b2,   m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
                      1 / sqrt(bc2), delta                 x <- x + n0 m / (sqrt(v) n5 + delta)
        amsgrad   as adam                                  as adam, with w <- max(w, v) and sqrt(w) for sqrt(v)

    Computed in float32 in the order that docs/noise_spec.md gives; theta is rounded once to its dtype. Never waits for the device.

    Args:
        layout: the parameters, their element indices, and which share of their elements the noise reaches.
        rule: "sign", "momentum", "adam" or "amsgrad".
        terms: sequence of (NoiseKey, coefficient): the gradient's estimate g, with coefficients c as ``add_noise_`` takes them.
        numbers: what the rule calls n, each a number, a 0-dim tensor, or a tensor [len(layout.coefficient_groups)].
        state: for each state of the rule, in order (m, v, w), a list of one tensor a parameter, of its shape and device, contiguous where
            it is: all float32, or all bfloat16, which is rounded stochastically. Zeros, as ``torch.zeros_like`` makes them, to start with.
            Default (): of a rule without state.
        pending: terms that go into theta before the rule, with coefficients o in units of theta. Default (): none.
        decay: what theta is multiplied by before that. Default 1.0.
        state_rounding: for bfloat16 state, ``NoiseKey.of(seed, step, ROUNDING, probe)``: m is rounded with probe, v and w with probe + 1.
            Default None: the state is float32.
        rounding: how theta in 16 bits is rounded, as ``add_noise_`` takes it; "stochastic" is by the seed and step of the first of
            ``terms``. Default "nearest".

    Raises:
        TypeError: an argument of another kind or dtype, named with its cure.
        ValueError: a rule of another name, or an argument of another number, shape, strides, device or range, named with its cure.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is unknown: pass one of {', '.join(map(repr, RULES))}")
    named, groups = RULES[rule], len(layout.coefficient_groups)
    in_g, in_theta = merged(check_terms("terms", terms, groups)), merged(check_terms("pending", pending, groups))
    check_kind("terms and pending", [*in_g, *in_theta])
    rounded_by = rounding_key(rounding, list(in_g))
    numbers, scale = check_numbers(named, numbers, groups), check_decay(decay, groups)
    slots = [[local(tensor) for tensor in slot] for slot in state]
    tables, strided = layout.tables()
    seen = [rule, *map(location, slots)]
    if layout.state is None or not all(seen) or seen != layout.state.seen:
        layout.state = _Checked(seen, _check_state(named, slots, layout))
    checked: _Checked = layout.state
    slots_rounded_by = _state_rounding(named, checked.dtype, state_rounding)

    keys = [*in_theta, *(key for key in in_g if key not in in_theta)]
    values = [*(in_theta.get(key, 0.0) for key in keys), *(in_g.get(key, 0.0) for key in keys), *numbers]
    values += [] if scale is None else [scale]
    k, staged = len(keys), {}

    def run(table: Table, held: State) -> None:
        if table.device not in staged:
            v = stage(values, groups, table.device)
            staged[table.device] = v[:k], v[k : 2 * k], None if scale is None else v[-1], v[2 * k : 2 * k + len(numbers)]
        backend_for(table.device).update_(table, named, keys, *staged[table.device], held, slots_rounded_by, rounded_by)

    for n, table in enumerate(tables):
        rows = ([slot[i] for slot in slots] for i in table.members)
        run(table, checked.cached(n, partial(_addresses, rows, checked.dtype)))
    for i in strided:
        for (part, *parts), start in gathered([], [layout.tensors[i], *(slot[i] for slot in slots)]):
            run(layout.table_of(i, part, start), _addresses([parts], checked.dtype))
    tell(layout)


@dataclass(eq=False)
class _Checked(Cache):
    """The rule and the location of the state that have been checked: while neither changes, no step checks again. Caches the ``State`` of
    each table, so that its copy on a device lives on."""

    seen: list[Any]
    dtype: torch.dtype


def _addresses(tensors: Iterable[list[torch.Tensor]], dtype: torch.dtype) -> State:
    rows = [[tensor.data_ptr() for tensor in row] for row in tensors]
    return State(dtype, torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1))


def _check_state(rule: Rule, state: list[list[torch.Tensor]], layout: Layout) -> torch.dtype:
    """-> the dtype of the state, float32 where there is none."""
    if len(state) != len(rule.state):
        names = f"one list of tensors for each of {', '.join(rule.state)}" if rule.state else "none"
        raise ValueError(f"state has {len(state)} entries, the rule {rule.name!r} keeps {len(rule.state)}: pass {names}")
    dtype = state[0][0].dtype if state and state[0] else torch.float32
    for slot, tensors in zip(rule.state, state):
        if len(tensors) != len(layout.params):
            raise ValueError(f"state {slot!r} has {len(tensors)} tensors: pass one for each of the {len(layout.params)} parameters")
        for i, (tensor, param) in enumerate(zip(tensors, layout.tensors)):
            if tensor.shape != param.shape or tensor.device != param.device or (lines(param) and not tensor.is_contiguous()):
                raise ValueError(
                    f"state {slot!r}[{i}] has shape {tuple(tensor.shape)}, strides {tensor.stride()}, on {tensor.device}; theta[{i}] has "
                    f"{tuple(param.shape)}, {param.stride()}, on {param.device}: make it with torch.zeros_like(theta, dtype=...)"
                )
            if tensor.dtype != dtype or dtype not in STATE_DTYPES:
                raise TypeError(f"state {slot!r}[{i}] is {tensor.dtype}: pass all of it in float32, or all of it in bfloat16")
            check_memory(tensor, f"state {slot!r}[{i}]")
    return dtype


def _state_rounding(rule: Rule, dtype: torch.dtype, rounding: NoiseKey | None) -> list[NoiseKey] | None:
    """-> one key a state, None where nothing is rounded stochastically."""
    if dtype != torch.bfloat16:
        if rounding is not None:
            raise ValueError(f"state_rounding={rounding!r}, but no state is in bfloat16: leave it out")
        return None
    if not isinstance(rounding, NoiseKey) or rounding.stream >> 24 != ROUNDING:
        raise ValueError(f"state_rounding={rounding!r}: bfloat16 state needs a key of its own, zokern.NoiseKey.of(seed, step, {ROUNDING})")
    probe = rounding.stream & 0xFFFFFF
    # v and w by the same bits: w is never below v, and so it stays.
    return [NoiseKey.of(rounding.seed, rounding.step, ROUNDING, probe + min(s, 1)) for s in range(len(rule.state))]
