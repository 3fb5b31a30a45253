"""Many passes of ``add_noise_`` in one read and one write of theta, one launch for many tensors. Numbers: docs/noise_spec.md."""

import triton
import triton.language as tl

from ...noise import spec
from .. import passes
from ..spans import BLOCK, pack, spans, to_device
from .noise import fma, normals
from .storage import DTYPES, launching, load_block, load_key, load_span, narrow, widen

WARPS = 4
# Elements of a step of the slow path: 4 a thread, so that it needs no more registers than the fast one.
SLOW = 512

NEXT_KEY, DECAY, ROUND = (tl.constexpr(bit) for bit in (passes.NEXT_KEY, passes.DECAY, passes.ROUND))


@triton.jit
def make_passes(
    x, at, high, keys, instructions, values, n_keys, n_instructions, groups,
    keep_threshold, one, DTYPE: tl.constexpr, BLOCKS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """x after all instructions. ``at``: as ``normals`` takes it."""
    z = x  # anything: the first instruction that needs noise makes it
    k = 0
    for i in range(n_instructions):
        instruction, value = tl.load(instructions + i), tl.load(values + i * groups)
        if instruction & NEXT_KEY:
            seed, step, stream = load_key(keys, k, n_keys)
            z = normals(at, high, seed, step, stream, keep_threshold, one, BLOCKS, MASKED)
            k += 1
        if instruction & DECAY:
            x *= value
        else:
            x = fma(z, value, x)
        if instruction & ROUND:
            x = widen(narrow(x, DTYPE))
    return x


@triton.jit(
    do_not_specialize=["n_keys", "n_instructions", "groups", "one"],
    do_not_specialize_on_alignment=["spans", "keys", "instructions", "values"],
)
def replay_kernel(
    spans,  # int64 [programs, 10], a tables.Row each
    keys,  # int32 [n_keys, 4]: seed mod 2^32, seed >> 32, step, stream
    instructions,  # uint8 [n_instructions], bits of kernels.passes
    values,  # float32 [n_instructions, groups]
    n_keys,
    n_instructions,
    groups,
    one,
    DTYPE: tl.constexpr,
    MASKED: tl.constexpr,  # whether some span keeps only a part of its noise
    BLOCK: tl.constexpr,
    SLOW: tl.constexpr,
):
    BLOCKS: tl.constexpr = 1 if DTYPE == tl.float32 else 2  # Philox blocks in 16 bytes of theta
    LANES: tl.constexpr = BLOCK // (4 * BLOCKS)
    address, numel, first, group, keep_threshold = load_span(spans)
    values += group

    # Whole blocks, when 16-byte accesses and Philox blocks fall together and one high counter word serves all.
    whole = ((address & 15) == 0) & ((first & 3) == 0) & ((first >> 34) == ((first + numel - 1) >> 34))
    stop = tl.where(whole, numel // BLOCK, 0)
    high = (first >> 34).to(tl.uint32)
    lanes = tl.arange(0, LANES).to(tl.uint32) * BLOCKS
    theta = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    for block in range(stop):
        here = theta + block * BLOCK
        at = ((first >> 2) + block * (BLOCK // 4)).to(tl.uint32) + lanes
        x = load_block(here, DTYPE, BLOCK)
        x = make_passes(x, at, high, keys, instructions, values, n_keys, n_instructions, groups, keep_threshold, one, DTYPE, BLOCKS, MASKED)
        tl.store(here + tl.arange(0, BLOCK), narrow(x, DTYPE))

    # The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: element by element.
    theta = address.to(tl.pointer_type(DTYPE))
    for start in range(stop * BLOCK, numel, SLOW):
        offset = start + tl.arange(0, SLOW)
        inside = offset < numel
        x = widen(tl.load(theta + offset, inside))
        x = make_passes(
            x, first + offset, 0, keys, instructions, values, n_keys, n_instructions, groups, keep_threshold, one, DTYPE, 0, MASKED
        )
        tl.store(theta + offset, narrow(x, DTYPE), inside)


def replay_(table, keys, instructions, values) -> None:
    """Makes the passes on every tensor of ``table``: instructions uint8 [n] on the host, values float32 [n, groups]."""
    rows = spans(table)
    if not len(rows):
        return
    with launching(table.device):
        replay_kernel[(len(rows),)](
            rows,
            to_device(pack(keys), table.device),
            to_device(instructions, table.device),
            values,
            len(keys),
            len(instructions),
            table.groups,
            spec.ONE,
            DTYPE=DTYPES[table.dtype],
            MASKED=table.masked,
            BLOCK=BLOCK,
            SLOW=SLOW,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
