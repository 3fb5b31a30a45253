"""What lies in memory and what kernels hold of it: keys and spans, and floats of every storage type."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from .noise import INTERPRETED, in_order4, in_order8

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def launching(device):
    """The context in which kernels are launched on a device that need not be the current one."""
    if INTERPRETED and device.type != "cpu":
        raise RuntimeError("TRITON_INTERPRET=1 runs kernels on CPU tensors only: unset it, or move the parameters to the CPU")
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@triton.jit
def load_span(spans):
    """(address, numel, first, group, keep_threshold) of this program."""
    spans += 10 * tl.program_id(0)
    return tl.load(spans), tl.load(spans + 4), tl.load(spans + 6), tl.load(spans + 8), tl.load(spans + 9).to(tl.uint32)


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
def load_block(theta, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements as float32. Pairs of bfloat16 are taken apart here: Triton takes three instructions a pair, not two."""
    if DTYPE == tl.bfloat16:
        pairs = tl.load(theta.to(tl.pointer_type(tl.uint32)) + tl.arange(0, BLOCK // 2))
        return tl.join(pairs << 16, pairs & 0xFFFF0000).reshape([BLOCK]).to(tl.float32, bitcast=True)
    else:
        return tl.load(theta + tl.arange(0, BLOCK)).to(tl.float32)


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


# Where a vector of one tensor holds 8 elements and of another 4, a lane takes 8 in a row of both, and of the wider type as two
# quads, because a store is at most 16 bytes a lane. What is done here moves nothing between lanes.
@triton.jit
def quads(LANES: tl.constexpr):
    """The first four of every lane's eight elements."""
    i = tl.arange(0, 4 * LANES)
    return i // 4 * 8 + i % 4


@triton.jit
def load_lanes(at, DTYPE: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr):
    """EACH (4 or 8) elements in a row of every lane as float32 [EACH * LANES]."""
    if DTYPE == tl.float32 and EACH == 8:
        i = quads(LANES)
        a0, a1, a2, a3 = split4(tl.load(at + i), LANES)
        b0, b1, b2, b3 = split4(tl.load(at + 4 + i), LANES)
        return in_order8(a0, a1, a2, a3, b0, b1, b2, b3)
    else:
        return load_block(at, DTYPE, EACH * LANES)


@triton.jit
def store_lanes(at, x, DTYPE: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr):
    """The reverse, rounded to nearest even."""
    if DTYPE == tl.float32 and EACH == 8:
        i = quads(LANES)
        even, odd = x.reshape([4 * LANES, 2]).split()
        a0, a2, b0, b2 = split4(even, LANES)
        a1, a3, b1, b3 = split4(odd, LANES)
        tl.store(at + i, in_order4(a0, a1, a2, a3))
        tl.store(at + 4 + i, in_order4(b0, b1, b2, b3))
    else:
        tl.store(at + tl.arange(0, EACH * LANES), narrow(x, DTYPE))


@triton.jit
def split4(x, LANES: tl.constexpr):
    """``in_order4`` undone."""
    even, odd = x.reshape([LANES, 2, 2]).split()
    x0, x2 = even.split()
    x1, x3 = odd.split()
    return x0, x1, x2, x3


@triton.jit
def narrow_at_random(x, r):
    """float32 to bfloat16, up or down by 16 random bits r (uint32). A NaN stays one; infinities have no bits to carry."""
    u = x.to(tl.uint32, bitcast=True)
    u = tl.where(x == x, u + r, u | 0x400000)
    return (u >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
