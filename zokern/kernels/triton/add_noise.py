"""out <- decay * theta + sum_k c_k z(key_k), in place or elsewhere, one launch for many tensors. Numbers: docs/noise_spec.md."""

import triton
import triton.language as tl

from ...noise import spec
from .. import passes
from ..spans import BLOCK, pack, spans, to_device
from .lines import blocks_of, element_of, lanes_of, line_of, load_span, place, reciprocal_of, whole_tiles
from .noise import fma, noise
from .storage import DTYPES, launching, load_key, load_lanes, store, store_at, widen

# Counts are instructions an element in bfloat16 on sm_90, from bench/sass.py; nothing here has been timed on a GPU yet.
# BLOCK is 4096, 32 elements a thread: 26.2 and 66 registers, where 16 a thread take 27.4 and 36; of signs 6.4, where 16 take 7.9.
WARPS = 4
# Elements of a step of the slow path: 4 a thread, so that it needs no more registers than the fast one.
SLOW = 512
# Up to so many terms have kernels of their own, which read their keys once: 26.2 where the loop over terms takes
# 24.3 a term + 2.9 and twice the registers.
UNROLLED = 2


@triton.jit
def load_term(keys, coefficients, k, terms, groups):
    """(seed, step, stream, c) of term k."""
    seed, step, stream = load_key(keys, k, terms)
    return seed, step, stream, tl.load(coefficients + k * groups, k < terms)


@triton.jit
def add_terms(
    acc, q, inside, high,
    seed0, step0, stream0, c0,
    seed1, step1, stream1, c1,
    keys, coefficients, terms, groups,
    keep_threshold, one, TERMS: tl.constexpr, EACH: tl.constexpr, SIGNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``q``, ``inside``, ``high``: as ``noise`` takes them. Terms 0 and 1 are given; TERMS = 0 reads all of them instead."""
    if TERMS == 0:
        for k in range(terms):
            seed, step, stream, c = load_term(keys, coefficients, k, terms, groups)
            acc = fma(noise(q, inside, high, seed, step, stream, keep_threshold, one, EACH, SIGNS, MASKED), c, acc)
    else:
        acc = fma(noise(q, inside, high, seed0, step0, stream0, keep_threshold, one, EACH, SIGNS, MASKED), c0, acc)
        if TERMS == 2:
            acc = fma(noise(q, inside, high, seed1, step1, stream1, keep_threshold, one, EACH, SIGNS, MASKED), c1, acc)
    return acc


@triton.jit(
    do_not_specialize=["terms", "groups", "one"],
    do_not_specialize_on_alignment=["spans", "keys", "coefficients", "decay"],
)
def add_noise_kernel(
    spans,  # int64 [programs, 10], a tables.Row each
    keys,  # int32 [terms + ROUND, 4]: seed mod 2^32, seed >> 32, step, stream
    coefficients,  # float32 [terms, groups]
    decay,  # float32 [groups]
    terms,
    groups,
    one,
    DTYPE: tl.constexpr,
    OUT: tl.constexpr,  # storage type of what is written
    TERMS: tl.constexpr,  # 1 or 2: keys are read once; 0: ``terms`` keys are read for each block
    DECAY: tl.constexpr,
    ROUND: tl.constexpr,  # whether the last key says how what is written is rounded
    SIGNS: tl.constexpr,
    MASKED: tl.constexpr,  # whether some span keeps only a part of its noise
    PITCHED: tl.constexpr,  # whether some tensor is more than one line
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOW: tl.constexpr,
):
    EACH: tl.constexpr = 4 if DTYPE == tl.float32 and OUT == tl.float32 else 8  # elements in a row that a lane takes
    ALIGN: tl.constexpr = 128 if SIGNS else 8 if ROUND else 4
    SHIFT: tl.constexpr = 7 if SIGNS else 2  # of the elements of a Philox block
    address, pitch, out, out_pitch, numel, columns, first, step, group, keep_threshold = load_span(spans, PITCHED)
    coefficients += group
    seed0, step0, stream0, c0 = load_term(keys, coefficients, 0, TERMS, groups)
    seed1, step1, stream1, c1 = load_term(keys, coefficients, 1, TERMS, groups)
    r_seed, r_step, r_stream = load_key(keys, terms, terms + ROUND)
    scale = tl.load(decay + group, DECAY)

    # Whole blocks, when 16-byte accesses and Philox blocks fall together and one high counter word serves all.
    whole = whole_tiles(address | out, pitch, out_pitch, numel, columns, first, step, EACH, ALIGN, PITCHED)
    stop = tl.where(whole, numel // BLOCK, 0)
    if SIGNS and MASKED:  # a block of signs serves the elements of 32 blocks of the mask
        stop *= 0
    high = (first >> 34).to(tl.uint32)
    begin, inside = lanes_of(BLOCK // EACH, EACH, SIGNS)
    source = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    target = source if IN_PLACE else tl.multiple_of(out.to(tl.pointer_type(OUT)), 16)
    reciprocal = reciprocal_of(columns)
    for block in range(stop):
        at = block * BLOCK
        line, column = line_of(at, begin, columns, reciprocal, PITCHED)
        here = place(line, column + inside, pitch, PITCHED)
        acc = load_lanes(source if PITCHED else source + at, here, DTYPE, EACH)
        if DECAY:
            acc *= scale
        acc = add_terms(
            acc, blocks_of(first, at, line, column, step, SHIFT, PITCHED), inside, high,
            seed0, step0, stream0, c0,
            seed1, step1, stream1, c1,
            keys, coefficients, terms, groups,
            keep_threshold, one, TERMS, EACH, SIGNS, MASKED,
        )  # fmt: skip
        start = target if PITCHED else target + at
        there = here if IN_PLACE else place(line, column + inside, out_pitch, PITCHED)
        block8 = blocks_of(first, at, line, column + inside, step, 3, PITCHED)
        store(start, there, acc, block8, high, r_seed, r_step, r_stream, OUT, EACH, ROUND)

    # The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: element by element.
    source = address.to(tl.pointer_type(DTYPE))
    target = source if IN_PLACE else out.to(tl.pointer_type(OUT))
    for start in range(stop * BLOCK, numel, SLOW):
        j = start + tl.arange(0, SLOW)
        below = j < numel
        line, column = element_of(j, columns, PITCHED)
        i = first + line * step + column
        acc = widen(tl.load(source + (line * pitch + column), below))
        if DECAY:
            acc *= scale
        acc = add_terms(
            acc, i, 0, 0,
            seed0, step0, stream0, c0,
            seed1, step1, stream1, c1,
            keys, coefficients, terms, groups,
            keep_threshold, one, TERMS, 0, SIGNS, MASKED,
        )  # fmt: skip
        there = target + (line * (pitch if IN_PLACE else out_pitch) + column)
        store_at(there, below, acc, i, r_seed, r_step, r_stream, OUT, ROUND)


def add_noise_(table, keys, coefficients, decay, rounding=None) -> None:
    """Adds the terms to every tensor of ``table``: coefficients float32 [len(keys), groups], decay float32 [groups] or None."""
    rows = spans(table)
    if not rows.shape[0] or (not len(keys) and decay is None and table.out_dtype is None):
        return
    stochastic = rounding is not None and table.stored.itemsize == 2
    coefficients = to_device(coefficients, table.device)
    with launching(add_noise_kernel, table.device):
        add_noise_kernel[(rows.shape[0],)](
            rows,
            to_device(pack([*keys, rounding] if stochastic else keys), table.device),
            coefficients,
            coefficients if decay is None else to_device(decay, table.device),
            len(keys),
            table.groups,
            spec.ONE,
            DTYPE=DTYPES[table.dtype],
            OUT=DTYPES[table.stored],
            TERMS=len(keys) if len(keys) <= UNROLLED else 0,
            DECAY=decay is not None,
            ROUND=stochastic,
            SIGNS=passes.signs(keys),
            MASKED=table.masked,
            PITCHED=table.pitched,
            IN_PLACE=table.out_dtype is None,
            BLOCK=BLOCK,
            SLOW=SLOW,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
