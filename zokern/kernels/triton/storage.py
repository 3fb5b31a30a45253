"""What lies in memory and what kernels hold of it: keys, and floats of every storage type."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from .noise import INTERPRETED, halves8, halves_at, in_order4, in_order8

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def launching(kernel, device):
    """The context in which a kernel is launched on a device that need not be the current one."""
    if INTERPRETED and device.type != "cpu":
        raise RuntimeError("TRITON_INTERPRET=1 runs kernels on CPU tensors only: unset it, or move the parameters to the CPU")
    # What Triton compares at every launch after the first, lest a constant was changed: ours never are.
    getattr(kernel, "used_global_vals", {}).clear()
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@triton.jit
def load_key(keys, k, count):
    """(seed, step, stream) of key k. Past the last nothing is read, and what is returned means nothing."""
    keys += 4 * k
    return (
        tl.load(keys, k < count).to(tl.uint32) | (tl.load(keys + 1, k < count).to(tl.uint64) << 32),
        tl.load(keys + 2, k < count).to(tl.uint32),
        tl.load(keys + 3, k < count).to(tl.uint32),
    )


@triton.jit
def widen(x):
    """To float32. The interpreter's own conversion loses bfloat16 subnormals."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """To the storage type, nearest even. The interpreter's own conversion truncates to bfloat16."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        u = x.to(tl.uint32, bitcast=True)
        u = tl.where(x == x, u + 0x7FFF + ((u >> 16) & 1), u | 0x400000)
        return (u >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def elements(lanes, EACH: tl.constexpr):
    """Offsets of EACH elements in a row from every lane's, [EACH * lanes]: the compiler is told that they are vectors."""
    every = (lanes[:, None] + tl.arange(0, EACH)[None, :]).reshape([EACH * lanes.numel])
    return tl.max_contiguous(tl.multiple_of(every, EACH), EACH)


# Where a vector of one tensor holds 8 elements and of another 4, a lane takes 8 in a row of both, and of the wider type as two
# quads, because an access is at most 16 bytes a lane. What is done here moves nothing between lanes.
@triton.jit
def load_lanes(theta, lanes, DTYPE: tl.constexpr, EACH: tl.constexpr):
    """EACH (4 or 8) elements in a row of every lane, from its offset on, as float32 [EACH * lanes]."""
    if DTYPE == tl.float32 and EACH == 8:
        i = elements(lanes, 4)
        a0, a1, a2, a3 = split4(tl.load(theta + i), lanes.numel)
        b0, b1, b2, b3 = split4(tl.load(theta + 4 + i), lanes.numel)
        return in_order8(a0, a1, a2, a3, b0, b1, b2, b3)
    elif DTYPE == tl.bfloat16:
        # Pairs are taken apart here: Triton takes three instructions a pair, not two.
        pairs = tl.load(theta.to(tl.pointer_type(tl.uint32)) + elements(lanes // 2, EACH // 2))
        return tl.join(pairs << 16, pairs & 0xFFFF0000).reshape([EACH * lanes.numel]).to(tl.float32, bitcast=True)
    else:
        return tl.load(theta + elements(lanes, EACH)).to(tl.float32)


@triton.jit
def store_lanes(theta, lanes, x, DTYPE: tl.constexpr, EACH: tl.constexpr):
    """The reverse, rounded to nearest even."""
    if DTYPE == tl.float32 and EACH == 8:
        i = elements(lanes, 4)
        even, odd = x.reshape([4 * lanes.numel, 2]).split()
        a0, a2, b0, b2 = split4(even, lanes.numel)
        a1, a3, b1, b3 = split4(odd, lanes.numel)
        tl.store(theta + i, in_order4(a0, a1, a2, a3))
        tl.store(theta + 4 + i, in_order4(b0, b1, b2, b3))
    else:
        tl.store(theta + elements(lanes, EACH), narrow(x, DTYPE))


@triton.jit
def split4(x, LANES: tl.constexpr):
    """``in_order4`` undone."""
    even, odd = x.reshape([LANES, 2, 2]).split()
    x0, x2 = even.split()
    x1, x3 = odd.split()
    return x0, x1, x2, x3


@triton.jit
def narrow_at_random(x, r, DTYPE: tl.constexpr):
    """float32 to bfloat16 or float16, up or down by 16 random bits r (uint32). What is not finite is rounded to nearest."""
    u = x.to(tl.uint32, bitcast=True)
    if DTYPE == tl.bfloat16:
        u = tl.where(x == x, u + r, u | 0x400000)  # infinities have no bits to carry
        return (u >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        # Below 2^-14 float16 counts in steps of 2^-24. Above, 13 bits are dropped, and exponents are off by 112.
        magnitude = u & 0x7FFFFFFF
        small = magnitude < 0x38800000
        steps = tl.where(small, magnitude, 0).to(tl.float32, bitcast=True) * 1099511627776.0  # 2^40
        below = (steps.to(tl.int32).to(tl.uint32) + r) >> 16
        above = ((magnitude + (r >> 3)) >> 13) - (112 << 10)
        h = tl.where(small, below, tl.minimum(above, 0x7BFF)) | ((u >> 16) & 0x8000)
        nearest = x.to(tl.float16).to(tl.uint16, bitcast=True)
        return tl.where(magnitude < 0x477FF000, h.to(tl.uint16), nearest).to(tl.float16, bitcast=True)  # 65520, which rounds to infinity


@triton.jit
def store(start, lanes, x, block, high, seed, step, stream, DTYPE: tl.constexpr, EACH: tl.constexpr, ROUND: tl.constexpr):
    """``store_lanes``; with ROUND, stochastically by a key's ``block``, low counter words of lanes' eight elements, under ``high``."""
    if ROUND:
        tl.store(start + elements(lanes, EACH), narrow_at_random(x, halves8(block, high, seed, step, stream), DTYPE))
    else:
        store_lanes(start, lanes, x, DTYPE, EACH)


@triton.jit
def store_at(pointers, below, x, i, seed, step, stream, DTYPE: tl.constexpr, ROUND: tl.constexpr):
    """The same element by element: i are their indices."""
    if ROUND:
        tl.store(pointers, narrow_at_random(x, halves_at(i, seed, step, stream), DTYPE), below)
    else:
        tl.store(pointers, narrow(x, DTYPE), below)
