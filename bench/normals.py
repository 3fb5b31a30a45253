"""What one writes in Triton without zokern: theta += c z in one pass, by tl.randn4x or tl.randn. Other numbers than the specification's."""

import torch
import triton
import triton.language as tl

BLOCK = 2048


@triton.jit
def add_four(theta, n, seed, c, BLOCK: tl.constexpr):
    """Four normals of each Philox block."""
    quarter: tl.constexpr = BLOCK // 4
    block = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, quarter)
    z0, z1, z2, z3 = tl.randn4x(seed, block * quarter + lanes)
    at = block * BLOCK + lanes
    for k in tl.static_range(4):  # each quarter of the block is contiguous
        z = z0 if k == 0 else z1 if k == 1 else z2 if k == 2 else z3
        here, inside = theta + at + k * quarter, at + k * quarter < n
        x = tl.load(here, inside).to(tl.float32) + c * z
        tl.store(here, x.to(theta.dtype.element_ty), inside)


@triton.jit
def add_one(theta, n, seed, c, BLOCK: tl.constexpr):
    """A Philox block for each normal, as Triton's tutorials have it."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(theta + at, at < n).to(tl.float32) + c * tl.randn(seed, at)
    tl.store(theta + at, x.to(theta.dtype.element_ty), at < n)


def add(theta: torch.Tensor, seed: int, c: float, kernel=add_four) -> None:
    """theta += c z(seed), in place; contiguous float32, bfloat16 or float16."""
    kernel[(triton.cdiv(theta.numel(), BLOCK),)](theta, theta.numel(), seed, c, BLOCK=BLOCK)
