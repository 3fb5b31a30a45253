"""Many passes of ``add_noise_`` in one read and one write of theta, one launch for many tensors. Numbers: docs/noise_spec.md."""

import triton
import triton.language as tl

from ...noise import spec
from .. import passes
from ..spans import BLOCK, pack, spans, to_device
from .lines import blocks_of, element_of, lanes_of, line_of, load_span, place, reciprocal_of, whole_tiles
from .noise import fma, noise
from .storage import DTYPES, launching, load_key, load_lanes, narrow, store_lanes, widen

WARPS = 4
# Elements of a step of the slow path: 4 a thread, so that it needs no more registers than the fast one.
SLOW = 512

NEXT_KEY, DECAY, ROUND = (tl.constexpr(bit) for bit in (passes.NEXT_KEY, passes.DECAY, passes.ROUND))


@triton.jit
def make_passes(
    x, q, inside, high, keys, instructions, values, n_keys, n_instructions, groups,
    keep_threshold, one, DTYPE: tl.constexpr, EACH: tl.constexpr, SIGNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """x after all instructions. ``q``, ``inside``, ``high``: as ``noise`` takes them."""
    z = x  # anything: the first instruction that needs noise makes it
    k = 0
    for i in range(n_instructions):
        instruction, value = tl.load(instructions + i), tl.load(values + i * groups)
        if instruction & NEXT_KEY:
            seed, step, stream = load_key(keys, k, n_keys)
            z = noise(q, inside, high, seed, step, stream, keep_threshold, one, EACH, SIGNS, MASKED)
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
    SIGNS: tl.constexpr,
    MASKED: tl.constexpr,  # whether some span keeps only a part of its noise
    PITCHED: tl.constexpr,  # whether some tensor is more than one line
    BLOCK: tl.constexpr,
    SLOW: tl.constexpr,
):
    EACH: tl.constexpr = 4 if DTYPE == tl.float32 else 8  # elements in a row that a lane takes
    SHIFT: tl.constexpr = 7 if SIGNS else 2  # of the elements of a Philox block
    address, pitch, _, _, numel, columns, first, step, group, keep_threshold = load_span(spans, PITCHED)
    values += group

    # Whole blocks, when 16-byte accesses and Philox blocks fall together and one high counter word serves all.
    whole = whole_tiles(address, pitch, pitch, numel, columns, first, step, EACH, 1 << SHIFT, PITCHED)
    stop = tl.where(whole, numel // BLOCK, 0)
    if SIGNS and MASKED:  # a block of signs serves the elements of 32 blocks of the mask
        stop *= 0
    high = (first >> 34).to(tl.uint32)
    begin, inside = lanes_of(BLOCK // EACH, EACH, SIGNS)
    theta = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    reciprocal = reciprocal_of(columns)
    for block in range(stop):
        at = block * BLOCK
        line, column = line_of(at, begin, columns, reciprocal, PITCHED)
        start, here = theta if PITCHED else theta + at, place(line, column + inside, pitch, PITCHED)
        x = load_lanes(start, here, DTYPE, EACH)
        x = make_passes(
            x, blocks_of(first, at, line, column, step, SHIFT, PITCHED), inside, high,
            keys, instructions, values, n_keys, n_instructions, groups, keep_threshold, one, DTYPE, EACH, SIGNS, MASKED,
        )  # fmt: skip
        store_lanes(start, here, x, DTYPE, EACH)

    # The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: element by element.
    theta = address.to(tl.pointer_type(DTYPE))
    for start in range(stop * BLOCK, numel, SLOW):
        j = start + tl.arange(0, SLOW)
        below = j < numel
        line, column = element_of(j, columns, PITCHED)
        here = line * pitch + column
        x = widen(tl.load(theta + here, below))
        x = make_passes(
            x, first + line * step + column, 0, 0,
            keys, instructions, values, n_keys, n_instructions, groups, keep_threshold, one, DTYPE, 0, SIGNS, MASKED,
        )  # fmt: skip
        tl.store(theta + here, narrow(x, DTYPE), below)


def replay_(table, keys, instructions, values) -> None:
    """Makes the passes on every tensor of ``table``: instructions uint8 [n] on the host, values float32 [n, groups]."""
    rows = spans(table)
    if not rows.shape[0]:
        return
    with launching(replay_kernel, table.device):
        replay_kernel[(rows.shape[0],)](
            rows,
            to_device(pack(keys), table.device),
            to_device(instructions, table.device),
            to_device(values, table.device),
            len(keys),
            len(instructions),
            table.groups,
            spec.ONE,
            DTYPE=DTYPES[table.dtype],
            SIGNS=passes.signs(keys),
            MASKED=table.masked,
            PITCHED=table.pitched,
            BLOCK=BLOCK,
            SLOW=SLOW,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
