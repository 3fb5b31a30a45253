"""The primitives in NumPy, for CPU memory: slow, and what the other backends are held to."""

import ctypes
from contextlib import contextmanager

import numpy as np
import torch

from ..noise.reference import U32, bits, f32, fma, masked_normal, round_stochastic
from .passes import DECAY, NEXT_KEY, ROUND

CHUNK = 1 << 16  # elements held at a time: a few hundred KiB of temporaries


def status() -> str:
    return "available"


def devices():
    return ("cpu",)


@contextmanager
def _denormals():
    """With them, though torch.set_flush_denormal has this thread lose them, in NumPy too. (Another rounding mode is obeyed.)"""
    flushed = not (f32([1]) * f32([0x3F800000])).view(U32)[0]
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


@_denormals()
def add_noise_(table, keys, coefficients, decay):
    coefficients, decay = coefficients.numpy(), None if decay is None else decay.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    for address, count, first, group, keep_threshold in table.rows.tolist():
        theta = _array(address, count, bits_type)
        for start in range(0, count, CHUNK):
            part = theta[start : start + CHUNK]
            acc = load(part)
            if decay is not None:
                acc = decay[group] * acc
            for key, c in zip(keys, coefficients[:, group]):
                acc = fma(c, masked_normal(key, keep_threshold, first + start, len(part)), acc)
            part[:] = store(acc)


@_denormals()
def replay_(table, keys, instructions, values):
    instructions, values = instructions.tolist(), values.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    for address, count, first, group, keep_threshold in table.rows.tolist():
        theta = _array(address, count, bits_type)
        for start in range(0, count, CHUNK):
            part = theta[start : start + CHUNK]
            x, next_key = load(part), iter(keys)
            for instruction, v in zip(instructions, values[:, group]):
                if instruction & NEXT_KEY:
                    z = masked_normal(next(next_key), keep_threshold, first + start, len(part))
                x = v * x if instruction & DECAY else fma(v, z, x)
                if instruction & ROUND:
                    x = load(store(x))
            part[:] = store(x)


@_denormals()
def update_(table, rule, keys, a, b, decay, numbers, state, rounding):
    a, b, numbers, decay = a.numpy(), b.numpy(), numbers.numpy(), None if decay is None else decay.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    load_state, _, state_bits = STORAGE[state.dtype]
    for (address, count, first, group, keep_threshold), addresses in zip(table.rows.tolist(), state.addresses.tolist()):
        theta, slots = _array(address, count, bits_type), [_array(slot, count, state_bits) for slot in addresses]
        for start in range(0, count, CHUNK):
            here, begin = slice(start, start + CHUNK), first + start
            x = load(theta[here])
            g = np.zeros_like(x)
            if decay is not None:
                x = decay[group] * x
            for key, in_theta, in_g in zip(keys, a[:, group], b[:, group]):
                z = masked_normal(key, keep_threshold, begin, len(x))
                x, g = fma(in_theta, z, x), fma(in_g, z, g)
            x, *kept = RULES[rule.name](x, g, numbers[:, group], *(load_state(slot[here]) for slot in slots))
            theta[here] = store(x)
            for s, (slot, value) in enumerate(zip(slots, kept)):
                slot[here] = value if rounding is None else round_stochastic(value, rounding[s], begin)


def _sign(x, g, n):
    return (np.where(g > 0, x + n[0], np.where(g < 0, x - n[0], x)),)


def _momentum(x, g, n, m):
    m = fma(n[1], m, g)
    return fma(n[0], m, x), m


def _adam(x, g, n, m, v):
    m, v = _moments(g, n, m, v)
    return fma(n[0], m / fma(np.sqrt(v), n[5], n[6]), x), m, v


def _amsgrad(x, g, n, m, v, w):
    m, v = _moments(g, n, m, v)
    w = np.where(v > w, v, w)
    return fma(n[0], m / fma(np.sqrt(w), n[5], n[6]), x), m, v, w


def _moments(g, n, m, v):
    return fma(n[1], m, n[2] * g), fma(n[3], v, (n[4] * g) * g)


RULES = {"sign": _sign, "momentum": _momentum, "adam": _adam, "amsgrad": _amsgrad}


def _array(address, count, bits_type):
    """The memory at an address."""
    return np.frombuffer((ctypes.c_char * (count * bits_type().itemsize)).from_address(address) if count else b"", bits_type)


def _bfloat16(x):
    """float32 -> the bits of bfloat16, nearest even; NaN stays NaN."""
    u = bits(x)
    return np.where(np.isnan(x), u >> U32(16) | U32(0x40), (u + U32(0x7FFF) + (u >> U32(16) & U32(1))) >> U32(16)).astype(np.uint16)


STORAGE = {  # dtype -> (to float32, from float32, how it lies in memory)
    torch.float32: (lambda x: x.copy(), lambda x: x, np.float32),
    torch.bfloat16: (lambda x: f32(x.astype(U32) << U32(16)), _bfloat16, np.uint16),
    torch.float16: (lambda x: x.astype(np.float32), lambda x: x.astype(np.float16), np.float16),
}
