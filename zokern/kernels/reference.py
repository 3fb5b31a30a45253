"""The primitives in NumPy, for CPU memory: slow, and what the other backends are held to."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..noise import NoiseKey
from ..noise.reference import U32, Array, bits, f32, fma, masked_noise, random_halves, stochastic_bfloat16, stochastic_float16
from .passes import DECAY, NEXT_KEY, ROUND, Keys, Rule
from .tables import Row, State, Table

Cast: TypeAlias = Callable[[Array], Array]

CHUNK = 1 << 16  # elements held at a time: a few hundred KiB of temporaries


def status() -> str:
    return "available"


def devices() -> tuple[str, ...]:
    return ("cpu",)


@contextmanager
def _denormals() -> Iterator[None]:
    """With them, though torch.set_flush_denormal has this thread lose them, in NumPy too. (Another rounding mode is obeyed.)"""
    flushed = not (f32([1]) * f32([0x3F800000])).view(U32)[0]
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


@_denormals()
def add_noise_(table: Table, keys: Keys, coefficients: Tensor, decay: Tensor | None, rounding: NoiseKey | None = None) -> None:
    c, scale = coefficients.numpy(), None if decay is None else decay.numpy()
    load, _, bits_type = STORAGE[table.dtype]
    _, store, out_type = STORAGE[table.stored]
    at_random = AT_RANDOM.get(table.stored) if rounding else None
    for row, _, line, column, first, count in _runs(table):
        x = load(_array(row.address, line * row.pitch + column, count, bits_type))
        out = _array(row.out, line * row.out_pitch + column, count, out_type)
        if scale is not None:
            x = scale[row.group] * x
        for key, weight in zip(keys, c[:, row.group]):
            x = fma(weight, masked_noise(key, row.keep_threshold, first, count), x)
        out[:] = at_random(x, random_halves(rounding, first, count)) if rounding and at_random else store(x)


@_denormals()
def replay_(table: Table, keys: Keys, instructions: Tensor, values: Tensor) -> None:
    codes, numbers = instructions.tolist(), values.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    for row, _, line, column, first, count in _runs(table):
        part = _array(row.address, line * row.pitch + column, count, bits_type)
        x, next_key = load(part), iter(keys)
        for instruction, v in zip(codes, numbers[:, row.group]):
            if instruction & NEXT_KEY:
                z = masked_noise(next(next_key), row.keep_threshold, first, count)
            x = v * x if instruction & DECAY else fma(v, z, x)
            if instruction & ROUND:
                x = load(store(x))
        part[:] = store(x)


@_denormals()
def update_(
    table: Table, rule: Rule, keys: Keys, a: Tensor, b: Tensor, decay: Tensor | None, numbers: Tensor,
    state: State, state_rounding: Keys | None, rounding: NoiseKey | None = None,
) -> None:  # fmt: skip
    in_theta, in_g, n, scale = a.numpy(), b.numpy(), numbers.numpy(), None if decay is None else decay.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    load_state, _, state_bits = STORAGE[state.dtype]
    at_random = AT_RANDOM.get(table.dtype) if rounding else None
    sums, add, step = RULES[rule.name]
    for row, i, line, column, first, count in _runs(table):
        part = _array(row.address, line * row.pitch + column, count, bits_type)
        slots = [_array(address, line * row.columns + column, count, state_bits) for address in state.addresses[i].tolist()]
        x = load(part)
        summed = (np.zeros_like(x),) * sums
        if scale is not None:
            x = scale[row.group] * x
        for k, key in enumerate(keys):
            z = masked_noise(key, row.keep_threshold, first, count)
            x, summed = fma(in_theta[k, row.group], z, x), add(z, in_g[..., k, row.group], *summed)
        x, *kept = step(x, *summed, n[:, row.group], *map(load_state, slots))
        part[:] = at_random(x, random_halves(rounding, first, count)) if rounding and at_random else store(x)
        for s, (slot, value) in enumerate(zip(slots, kept)):
            slot[:] = value if state_rounding is None else stochastic_bfloat16(value, random_halves(state_rounding[s], first, count))


def _gradient(z: Array, b: Array, g: Array) -> tuple[Array, ...]:
    return (fma(b, z, g),)


def _moments(z: Array, b: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
    g = fma(b[0], z, b[1] * g)
    return g, fma(b[2], g, m), fma(b[3] * g, g, v)


def _sign(x: Array, g: Array, n: Array) -> tuple[Array, ...]:
    return (np.where(g > 0, x + n[0], np.where(g < 0, x - n[0], x)),)


def _momentum(x: Array, g: Array, n: Array, m: Array) -> tuple[Array, ...]:
    m = fma(n[1], m, g)
    return fma(n[0], m, x), m


def _adam(x: Array, g: Array, n: Array, m: Array, v: Array, *greatest: Array) -> tuple[Array, ...]:
    """``greatest``: of AMSGrad, the greatest v so far, which then stands for the last one."""
    m, v = fma(n[1], m, n[2] * g), fma(n[3], v, (n[4] * g) * g)
    kept = (v, *(np.where(v > w, v, w) for w in greatest))
    return _adam_move(x, m, kept[-1], n[0], n[5], n[6]), m, *kept


def _windowed_adam(x: Array, g: Array, m: Array, v: Array, n: Array) -> tuple[Array, ...]:
    return (_adam_move(x, m, v, *n),)


def _adam_move(x: Array, m: Array, v: Array, lr: Array, scale: Array, delta: Array) -> Array:
    return fma(lr, m / fma(np.sqrt(v), scale, delta), x)


# name -> how many sums of the noise it needs, how a key goes into them, the step
RULES: dict[str, tuple[int, Callable[..., tuple[Array, ...]], Callable[..., tuple[Array, ...]]]] = {
    "sign": (1, _gradient, _sign),
    "momentum": (1, _gradient, _momentum),
    "adam": (1, _gradient, _adam),
    "amsgrad": (1, _gradient, _adam),
    "windowed-adam": (3, _moments, _windowed_adam),
}


def _runs(table: Table) -> Iterator[tuple[Row, int, int, int, int, int]]:
    """Every line of every row, at most CHUNK elements at a time: the row, its number, the line, the column where the run begins, the index
    of its first element, and how many they are."""
    for i, entries in enumerate(table.rows.tolist()):
        row = Row(*entries)
        for line, start in enumerate(range(0, row.numel, row.columns)):
            columns = min(row.columns, row.numel - start)
            for column in range(0, columns, CHUNK):
                yield row, i, line, column, row.first + line * row.step + column, min(CHUNK, columns - column)


def _array(address: int, start: int, count: int, bits_type: type[np.generic]) -> Array:
    """The memory of ``count`` elements, from the one that is ``start`` elements after an address."""
    size = bits_type().itemsize
    return np.frombuffer(memoryview((ctypes.c_char * (count * size)).from_address(address + start * size)), bits_type)


def _bfloat16(x: Array) -> Array:
    """float32 -> the bits of bfloat16, nearest even; NaN stays NaN."""
    u = bits(x)
    nearest = (u + U32(0x7FFF) + (u >> U32(16) & U32(1))) >> U32(16)
    return np.asarray(np.where(np.isnan(x), u >> U32(16) | U32(0x40), nearest), np.uint16)


STORAGE: dict[torch.dtype, tuple[Cast, Cast, type[np.generic]]] = {  # dtype -> (to float32, from float32, how it lies in memory)
    torch.float32: (lambda x: x.copy(), lambda x: x, np.float32),
    torch.bfloat16: (lambda x: f32(x.astype(U32) << U32(16)), _bfloat16, np.uint16),
    torch.float16: (lambda x: x.astype(np.float32), lambda x: x.astype(np.float16), np.float16),
}
AT_RANDOM = {torch.bfloat16: stochastic_bfloat16, torch.float16: lambda x, r: stochastic_float16(x, r).view(np.float16)}
