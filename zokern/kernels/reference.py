"""The primitives in NumPy, for CPU memory: slow, and what the other backends are held to."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..noise.reference import U32, Array, bits, f32, fma, masked_normal, round_stochastic
from .passes import DECAY, NEXT_KEY, ROUND, Keys, Rule
from .tables import State, Table

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
def add_noise_(table: Table, keys: Keys, coefficients: Tensor, decay: Tensor | None) -> None:
    c, scale = coefficients.numpy(), None if decay is None else decay.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    for part, first, group, keep_threshold, *_ in _parts(table, bits_type):
        x = load(part)
        if scale is not None:
            x = scale[group] * x
        for key, weight in zip(keys, c[:, group]):
            x = fma(weight, masked_normal(key, keep_threshold, first, len(part)), x)
        part[:] = store(x)


@_denormals()
def replay_(table: Table, keys: Keys, instructions: Tensor, values: Tensor) -> None:
    codes, numbers = instructions.tolist(), values.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    for part, first, group, keep_threshold, *_ in _parts(table, bits_type):
        x, next_key = load(part), iter(keys)
        for instruction, v in zip(codes, numbers[:, group]):
            if instruction & NEXT_KEY:
                z = masked_normal(next(next_key), keep_threshold, first, len(part))
            x = v * x if instruction & DECAY else fma(v, z, x)
            if instruction & ROUND:
                x = load(store(x))
        part[:] = store(x)


@_denormals()
def update_(
    table: Table, rule: Rule, keys: Keys, a: Tensor, b: Tensor, decay: Tensor | None, numbers: Tensor, state: State, rounding: Keys | None
) -> None:
    in_theta, in_g, n, scale = a.numpy(), b.numpy(), numbers.numpy(), None if decay is None else decay.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    load_state, _, state_bits = STORAGE[state.dtype]
    for part, first, group, keep_threshold, row, start in _parts(table, bits_type):
        slots = [_array(address, start + len(part), state_bits)[start:] for address in state.addresses[row].tolist()]
        x = load(part)
        g = np.zeros_like(x)
        if scale is not None:
            x = scale[group] * x
        for key, c, d in zip(keys, in_theta[:, group], in_g[:, group]):
            z = masked_normal(key, keep_threshold, first, len(part))
            x, g = fma(c, z, x), fma(d, z, g)
        x, *kept = RULES[rule.name](x, g, n[:, group], *map(load_state, slots))
        part[:] = store(x)
        for s, (slot, value) in enumerate(zip(slots, kept)):
            slot[:] = value if rounding is None else round_stochastic(value, rounding[s], first)


def _sign(x: Array, g: Array, n: Array) -> tuple[Array, ...]:
    return (np.where(g > 0, x + n[0], np.where(g < 0, x - n[0], x)),)


def _momentum(x: Array, g: Array, n: Array, m: Array) -> tuple[Array, ...]:
    m = fma(n[1], m, g)
    return fma(n[0], m, x), m


def _adam(x: Array, g: Array, n: Array, m: Array, v: Array, *greatest: Array) -> tuple[Array, ...]:
    """``greatest``: of AMSGrad, the greatest v so far, which then stands for the last one."""
    m, v = fma(n[1], m, n[2] * g), fma(n[3], v, (n[4] * g) * g)
    kept = (v, *(np.where(v > w, v, w) for w in greatest))
    return fma(n[0], m / fma(np.sqrt(kept[-1]), n[5], n[6]), x), m, *kept


RULES: dict[str, Callable[..., tuple[Array, ...]]] = {"sign": _sign, "momentum": _momentum, "adam": _adam, "amsgrad": _adam}


def _parts(table: Table, bits_type: type[np.generic]) -> Iterator[tuple[Array, int, int, int, int, int]]:
    """Every tensor's memory CHUNK elements at a time, with the first element's index, the tensor's group and keep_threshold, its row in the
    table, and where in it the part begins."""
    for row, (address, count, first, group, keep_threshold) in enumerate(table.rows.tolist()):
        theta = _array(address, count, bits_type)
        for start in range(0, count, CHUNK):
            yield theta[start : start + CHUNK], first + start, group, keep_threshold, row, start


def _array(address: int, count: int, bits_type: type[np.generic]) -> Array:
    """The memory at an address."""
    size = count * bits_type().itemsize
    return np.frombuffer(memoryview((ctypes.c_char * size).from_address(address)) if count else b"", bits_type)


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
