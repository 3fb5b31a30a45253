"""theta <- decay * theta + sum_k c_k z(key_k), in place, one launch for many tensors. Numbers: docs/noise_spec.md."""

import triton
import triton.language as tl

from ...noise import spec
from ..spans import BLOCK, pack, spans, to_device
from .noise import fma, normals
from .storage import DTYPES, launching, load_block, load_key, load_span, narrow, widen

# Counts are instructions an element in bfloat16 on sm_90, from bench/sass.py; nothing here has been timed on a GPU yet.
# BLOCK is 4096, 32 elements a thread: 28.7 and 61 registers, where 16 a thread take 29.9 and 35.
WARPS = 4
# Elements of a step of the slow path: 4 a thread, so that it needs no more registers than the fast one.
SLOW = 512
# Up to so many terms have kernels of their own, which read their keys once: 28.7 where the loop over terms takes
# 27.6 a term + 2.9 and twice the registers.
UNROLLED = 2


@triton.jit
def load_term(keys, coefficients, k, terms, groups):
    """(seed, step, stream, c) of term k."""
    seed, step, stream = load_key(keys, k, terms)
    return seed, step, stream, tl.load(coefficients + k * groups, k < terms)


@triton.jit
def add_term(acc, at, high, seed, step, stream, c, keep_threshold, one, BLOCKS: tl.constexpr, MASKED: tl.constexpr):
    """``at``: as ``normals`` takes it."""
    return fma(normals(at, high, seed, step, stream, keep_threshold, one, BLOCKS, MASKED), c, acc)


@triton.jit
def add_terms(
    acc, at, high,
    seed0, step0, stream0, c0,
    seed1, step1, stream1, c1,
    keys, coefficients, terms, groups,
    keep_threshold, one, TERMS: tl.constexpr, BLOCKS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Terms 0 and 1 are given; TERMS = 0 reads all of them instead."""
    if TERMS == 0:
        for k in range(terms):
            seed, step, stream, c = load_term(keys, coefficients, k, terms, groups)
            acc = add_term(acc, at, high, seed, step, stream, c, keep_threshold, one, BLOCKS, MASKED)
    else:
        acc = add_term(acc, at, high, seed0, step0, stream0, c0, keep_threshold, one, BLOCKS, MASKED)
        if TERMS == 2:
            acc = add_term(acc, at, high, seed1, step1, stream1, c1, keep_threshold, one, BLOCKS, MASKED)
    return acc


@triton.jit(
    do_not_specialize=["terms", "groups", "one"],
    do_not_specialize_on_alignment=["spans", "keys", "coefficients", "decay"],
)
def add_noise_kernel(
    spans,  # int64 [programs, 10], a tables.Row each
    keys,  # int32 [terms, 4]: seed mod 2^32, seed >> 32, step, stream
    coefficients,  # float32 [terms, groups]
    decay,  # float32 [groups]
    terms,
    groups,
    one,
    DTYPE: tl.constexpr,
    TERMS: tl.constexpr,  # 1 or 2: keys are read once; 0: ``terms`` keys are read for each block
    DECAY: tl.constexpr,
    MASKED: tl.constexpr,  # whether some span keeps only a part of its noise
    BLOCK: tl.constexpr,
    SLOW: tl.constexpr,
):
    BLOCKS: tl.constexpr = 1 if DTYPE == tl.float32 else 2  # Philox blocks in 16 bytes of theta
    LANES: tl.constexpr = BLOCK // (4 * BLOCKS)
    address, numel, first, group, keep_threshold = load_span(spans)
    coefficients += group
    seed0, step0, stream0, c0 = load_term(keys, coefficients, 0, TERMS, groups)
    seed1, step1, stream1, c1 = load_term(keys, coefficients, 1, TERMS, groups)
    scale = tl.load(decay + group, DECAY)

    # Whole blocks, when 16-byte accesses and Philox blocks fall together and one high counter word serves all.
    whole = ((address & 15) == 0) & ((first & 3) == 0) & ((first >> 34) == ((first + numel - 1) >> 34))
    stop = tl.where(whole, numel // BLOCK, 0)
    q = first >> 2
    high = (q >> 32).to(tl.uint32)
    lanes = tl.arange(0, LANES).to(tl.uint32) * BLOCKS
    theta = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    for block in range(stop):
        here = theta + block * BLOCK
        acc = load_block(here, DTYPE, BLOCK)
        if DECAY:
            acc *= scale
        at = (q + block * (BLOCK // 4)).to(tl.uint32) + lanes
        acc = add_terms(
            acc, at, high,
            seed0, step0, stream0, c0,
            seed1, step1, stream1, c1,
            keys, coefficients, terms, groups,
            keep_threshold, one, TERMS, BLOCKS, MASKED,
        )  # fmt: skip
        tl.store(here + tl.arange(0, BLOCK), narrow(acc, DTYPE))

    # The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: element by element.
    theta = address.to(tl.pointer_type(DTYPE))
    for start in range(stop * BLOCK, numel, SLOW):
        offset = start + tl.arange(0, SLOW)
        inside = offset < numel
        acc = widen(tl.load(theta + offset, inside))
        if DECAY:
            acc *= scale
        acc = add_terms(
            acc, first + offset, 0,
            seed0, step0, stream0, c0,
            seed1, step1, stream1, c1,
            keys, coefficients, terms, groups,
            keep_threshold, one, TERMS, 0, MASKED,
        )  # fmt: skip
        tl.store(theta + offset, narrow(acc, DTYPE), inside)


def add_noise_(table, keys, coefficients, decay, rounding=None) -> None:
    """Adds the terms to every tensor of ``table``: coefficients float32 [len(keys), groups], decay float32 [groups] or None."""
    rows = spans(table)
    if not len(rows) or (not len(keys) and decay is None):
        return
    with launching(table.device):
        add_noise_kernel[(len(rows),)](
            rows,
            to_device(pack(keys), table.device),
            coefficients,
            coefficients if decay is None else decay,
            len(keys),
            table.groups,
            spec.ONE,
            DTYPE=DTYPES[table.dtype],
            TERMS=len(keys) if len(keys) <= UNROLLED else 0,
            DECAY=decay is not None,
            MASKED=table.masked,
            BLOCK=BLOCK,
            SLOW=SLOW,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
