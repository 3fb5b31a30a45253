"""theta <- decay * theta + sum_k c_k z(key_k) in NumPy, for CPU memory: slow, and what the other backends are held to."""

import ctypes

import numpy as np
import torch

from ..noise import reference
from ..noise.reference import U32, bits, f32

CHUNK = 1 << 16  # elements held at a time: a few hundred KiB of temporaries


def status() -> str:
    return "available"


def devices():
    return ("cpu",)


def add_noise_(table, keys, coefficients, decay):
    coefficients, decay = coefficients.numpy(), None if decay is None else decay.numpy()
    load, store, bits_type = STORAGE[table.dtype]
    for address, count, first, group in table.rows.tolist():
        theta = np.frombuffer((ctypes.c_char * (count * bits_type().itemsize)).from_address(address), bits_type) if count else ()
        for start in range(0, count, CHUNK):
            part = theta[start : start + CHUNK]
            acc = load(part)
            if decay is not None:
                acc = decay[group] * acc
            for key, c in zip(keys, coefficients[:, group]):
                acc = reference.fma(c, reference.normal(key, first + start, len(part)), acc)
            part[:] = store(acc)


def _bfloat16(x):
    """float32 -> the bits of bfloat16, nearest even; NaN stays NaN."""
    u = bits(x)
    return np.where(np.isnan(x), u >> U32(16) | U32(0x40), (u + U32(0x7FFF) + (u >> U32(16) & U32(1))) >> U32(16)).astype(np.uint16)


STORAGE = {  # dtype -> (to float32, from float32, how it lies in memory)
    torch.float32: (lambda x: x.copy(), lambda x: x, np.float32),
    torch.bfloat16: (lambda x: f32(x.astype(U32) << U32(16)), _bfloat16, np.uint16),
    torch.float16: (lambda x: x.astype(np.float32), lambda x: x.astype(np.float16), np.float16),
}
