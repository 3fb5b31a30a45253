"""theta <- decay * theta + sum_k a_k z(key_k), and then a rule of its sums of b_k and z(key_k), such as g, one launch for many tensors.
Numbers: docs/noise_spec.md."""

import triton
import triton.language as tl

from ...noise import spec
from .. import passes
from ..spans import pack, spans, state_spans, to_device
from .lines import blocks_of, element_of, lanes_of, line_of, load_span, place, reciprocal_of, whole_tiles
from .noise import fma, noise
from .storage import DTYPES, launching, load_key, load_lanes, store, store_at, widen

# 8 elements a thread at a time: theta, g and two states in float32 are then 32 registers, and reading them hides their latency.
WARPS = 4
ROW = 1024
# Elements of a step of the slow path. No other tensor here is as long: Triton would lay them out alike, through shared memory.
SLOW = 256

ONE = tl.constexpr(spec.ONE)
SIGN, MOMENTUM, ADAM, AMSGRAD, WINDOWED_ADAM = (tl.constexpr(code) for code in range(5))  # the codes of passes.Rule


@triton.jit
def move(x, g, s0, s1, s2, n0, n1, n2, n3, n4, n5, n6, RULE: tl.constexpr):
    """-> (x, s0, s1, s2): theta and the states after the rule's step, each line rounded as it is written."""
    if RULE == SIGN:
        x = tl.where(g > 0, x + n0, tl.where(g < 0, x - n0, x))
    elif RULE == MOMENTUM:
        s0 = fma(s0, n1, g)
        x = fma(s0, n0, x)
    elif RULE == WINDOWED_ADAM:
        x = adam_move(x, s0, tl.sqrt_rn(s1), n0, n1, n2)
    else:
        s0 = fma(s0, n1, n2 * g)
        s1 = fma(s1, n3, n4 * g * g)
        if RULE == AMSGRAD:
            s2 = tl.where(s1 > s2, s1, s2)
            root = tl.sqrt_rn(s2)
        else:
            root = tl.sqrt_rn(s1)
        x = adam_move(x, s0, root, n0, n5, n6)
    return x, s0, s1, s2


@triton.jit
def adam_move(x, m, root, n0, n1, n2):
    return fma(tl.div_rn(m, fma(root, n1, n2)), n0, x)


@triton.jit
def add_key(
    x, g, q, inside, high, seed, step, stream, a, b,
    keep_threshold, one, EACH: tl.constexpr, SIGNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``q``, ``inside``, ``high``: as ``noise`` takes them."""
    z = noise(q, inside, high, seed, step, stream, keep_threshold, one, EACH, SIGNS, MASKED)
    return fma(z, a, x), fma(z, b, g)


@triton.jit
def add_keys(
    x, q, inside, high, seed0, step0, stream0, a0, b0, keys, a, b, n_keys, groups,
    keep_threshold, one, ONE_KEY: tl.constexpr, EACH: tl.constexpr, SIGNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """-> (x + sum_k a_k z(key_k), sum_k b_k z(key_k)). Key 0 is given; without ONE_KEY all are read."""
    if ONE_KEY:
        g = tl.zeros_like(x)
        x, g = add_key(x, g, q, inside, high, seed0, step0, stream0, a0, b0, keep_threshold, one, EACH, SIGNS, MASKED)
    else:
        g = zeros(x, one)
        for k in range(n_keys):
            seed, step, stream = load_key(keys, k, n_keys)
            a_k, b_k = tl.load(a + k * groups), tl.load(b + k * groups)
            x, g = add_key(x, g, q, inside, high, seed, step, stream, a_k, b_k, keep_threshold, one, EACH, SIGNS, MASKED)
    return x, g


@triton.jit
def add_steps(
    x, q, inside, high, keys, a, b, n_keys, groups, keep_threshold, one, EACH: tl.constexpr, SIGNS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """-> (x + sum_k a_k z(key_k), g, m, v): Adam's moments of g of several steps, whose keys follow each other."""
    g = zeros(x, one)
    m, v = g, g
    for k in range(n_keys):
        seed, step, stream = load_key(keys, k, n_keys)
        z = noise(q, inside, high, seed, step, stream, keep_threshold, one, EACH, SIGNS, MASKED)
        x = fma(z, tl.load(a + k * groups), x)
        of_key, to_next = b + k * groups, n_keys * groups
        coefficient, kept = tl.load(of_key), tl.load(of_key + to_next)
        in_m, in_v = tl.load(of_key + 2 * to_next), tl.load(of_key + 3 * to_next)
        g = fma(z, coefficient, kept * g)
        m, v = fma(g, in_m, m), fma(in_v * g, g, v)
    return x, g, m, v


@triton.jit
def zeros(x, one):
    """Made of x, which the compiler does not know for a constant: it would lay them out otherwise than x."""
    return (x.to(tl.int32, bitcast=True) & (one - ONE)).to(tl.float32, bitcast=True)


@triton.jit
def load_state(address, lanes, DTYPE: tl.constexpr, EACH: tl.constexpr):
    return load_lanes(tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16), lanes, DTYPE, EACH)


@triton.jit
def store_state(address, lanes, s, block, high, seed, step, stream, DTYPE: tl.constexpr, EACH: tl.constexpr):
    state = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    store(state, lanes, s, block, high, seed, step, stream, DTYPE, EACH, DTYPE == tl.bfloat16)


@triton.jit
def store_state_at(address, j, below, s, i, seed, step, stream, DTYPE: tl.constexpr):
    store_at(address.to(tl.pointer_type(DTYPE)) + j, below, s, i, seed, step, stream, DTYPE, DTYPE == tl.bfloat16)


@triton.jit(
    do_not_specialize=["n_keys", "groups", "one"],
    do_not_specialize_on_alignment=["spans", "states", "keys", "rounding", "a", "b", "decay", "numbers"],
)
def update_kernel(
    spans,  # int64 [programs, 10], a tables.Row each
    states,  # int64 [programs, slots]: addresses
    keys,  # int32 [n_keys, 4]: seed mod 2^32, seed >> 32, step, stream
    rounding,  # int32 [ROUND + slots, 4]: by which theta is rounded, and each state in bfloat16
    a,  # float32 [n_keys, groups]
    b,  # float32 [the rule's of a key, n_keys, groups]
    decay,  # float32 [groups]
    numbers,  # float32 [the rule's, groups]
    n_keys,
    groups,
    one,
    RULE: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,  # storage type of the states
    ONE_KEY: tl.constexpr,  # the only key is read once; else n_keys are read for each row
    DECAY: tl.constexpr,
    ROUND: tl.constexpr,  # whether theta is rounded at random
    SIGNS: tl.constexpr,
    MASKED: tl.constexpr,  # whether some span keeps only a part of its noise
    PITCHED: tl.constexpr,  # whether some tensor is more than one line
    ROW: tl.constexpr,
    SLOW: tl.constexpr,
):
    EACH: tl.constexpr = 4 if DTYPE == tl.float32 and STATE == tl.float32 else 8  # elements in a row that a lane takes
    ALIGN: tl.constexpr = 128 if SIGNS else EACH
    SHIFT: tl.constexpr = 7 if SIGNS else 2  # of the elements of a Philox block
    SLOTS: tl.constexpr = RULE if RULE < WINDOWED_ADAM else 0
    NUMBERS: tl.constexpr = RULE + 1 if RULE < ADAM else 7 if RULE < WINDOWED_ADAM else 3
    address, pitch, _, _, numel, columns, first, step, group, keep_threshold = load_span(spans, PITCHED)
    a += group
    b += group
    numbers += group
    seed0, step0, stream0 = load_key(keys, 0, n_keys)
    a0, b0 = tl.load(a, n_keys > 0), tl.load(b, n_keys > 0)
    r_seed, r_step, r_stream = load_key(rounding, 0, ROUND)
    ROUNDED: tl.constexpr = ROUND + (SLOTS if STATE == tl.bfloat16 else 0)
    r0_seed, r0_step, r0_stream = load_key(rounding, ROUND + 0, ROUNDED)
    r1_seed, r1_step, r1_stream = load_key(rounding, ROUND + 1, ROUNDED)
    r2_seed, r2_step, r2_stream = load_key(rounding, ROUND + 2, ROUNDED)
    scale = tl.load(decay + group, DECAY)
    n0, n1, n2 = tl.load(numbers), tl.load(numbers + groups, NUMBERS > 1), tl.load(numbers + 2 * groups, NUMBERS > 2)
    n3, n4 = tl.load(numbers + 3 * groups, NUMBERS > 3), tl.load(numbers + 4 * groups, NUMBERS > 3)
    n5, n6 = tl.load(numbers + 5 * groups, NUMBERS > 3), tl.load(numbers + 6 * groups, NUMBERS > 3)
    states += tl.program_id(0) * SLOTS
    p0, p1, p2 = tl.load(states, SLOTS > 0, 0), tl.load(states + 1, SLOTS > 1, 0), tl.load(states + 2, SLOTS > 2, 0)

    # Whole rows, when 16-byte accesses and Philox blocks fall together and one high counter word serves all.
    whole = whole_tiles(address | p0 | p1 | p2, pitch, pitch, numel, columns, first, step, EACH, ALIGN, PITCHED)
    stop = tl.where(whole, numel // ROW, 0)
    if SIGNS and MASKED:  # a block of signs serves the elements of 32 blocks of the mask
        stop *= 0
    high = (first >> 34).to(tl.uint32)
    begin, inside = lanes_of(ROW // EACH, EACH, SIGNS)
    theta = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    reciprocal = reciprocal_of(columns)
    for row in range(stop):
        at = row * ROW
        line, column = line_of(at, begin, columns, reciprocal, PITCHED)
        start, here = theta if PITCHED else theta + at, place(line, column + inside, pitch, PITCHED)
        x = load_lanes(start, here, DTYPE, EACH)
        held = at + begin + inside
        s0 = load_state(p0, held, STATE, EACH) if SLOTS > 0 else x  # x stands in for states that the rule does not have
        s1 = load_state(p1, held, STATE, EACH) if SLOTS > 1 else x
        s2 = load_state(p2, held, STATE, EACH) if SLOTS > 2 else x
        if DECAY:
            x *= scale
        q = blocks_of(first, at, line, column, step, SHIFT, PITCHED)
        if RULE == WINDOWED_ADAM:
            x, g, s0, s1 = add_steps(x, q, inside, high, keys, a, b, n_keys, groups, keep_threshold, one, EACH, SIGNS, MASKED)
        else:
            x, g = add_keys(
                x, q, inside, high, seed0, step0, stream0, a0, b0, keys, a, b, n_keys, groups,
                keep_threshold, one, ONE_KEY, EACH, SIGNS, MASKED,
            )  # fmt: skip
        x, s0, s1, s2 = move(x, g, s0, s1, s2, n0, n1, n2, n3, n4, n5, n6, RULE)
        block = blocks_of(first, at, line, column + inside, step, 3, PITCHED)
        store(start, here, x, block, high, r_seed, r_step, r_stream, DTYPE, EACH, ROUND)
        if SLOTS > 0:
            store_state(p0, held, s0, block, high, r0_seed, r0_step, r0_stream, STATE, EACH)
        if SLOTS > 1:
            store_state(p1, held, s1, block, high, r1_seed, r1_step, r1_stream, STATE, EACH)
        if SLOTS > 2:
            store_state(p2, held, s2, block, high, r2_seed, r2_step, r2_stream, STATE, EACH)

    # The ragged end, or all of a span that is misaligned or crosses a multiple of 2^34: element by element.
    theta = address.to(tl.pointer_type(DTYPE))
    for start in range(stop * ROW, numel, SLOW):
        j = start + tl.arange(0, SLOW)
        below = j < numel
        line, column = element_of(j, columns, PITCHED)
        i = first + line * step + column
        here = line * pitch + column
        x = widen(tl.load(theta + here, below))
        s0 = widen(tl.load(p0.to(tl.pointer_type(STATE)) + j, below)) if SLOTS > 0 else x
        s1 = widen(tl.load(p1.to(tl.pointer_type(STATE)) + j, below)) if SLOTS > 1 else x
        s2 = widen(tl.load(p2.to(tl.pointer_type(STATE)) + j, below)) if SLOTS > 2 else x
        if DECAY:
            x *= scale
        if RULE == WINDOWED_ADAM:
            x, g, s0, s1 = add_steps(x, i, 0, 0, keys, a, b, n_keys, groups, keep_threshold, one, 0, SIGNS, MASKED)
        else:
            x, g = add_keys(
                x, i, 0, 0, seed0, step0, stream0, a0, b0, keys, a, b, n_keys, groups, keep_threshold, one, ONE_KEY, 0, SIGNS, MASKED
            )  # fmt: skip
        x, s0, s1, s2 = move(x, g, s0, s1, s2, n0, n1, n2, n3, n4, n5, n6, RULE)
        store_at(theta + here, below, x, i, r_seed, r_step, r_stream, DTYPE, ROUND)
        if SLOTS > 0:
            store_state_at(p0, j, below, s0, i, r0_seed, r0_step, r0_stream, STATE)
        if SLOTS > 1:
            store_state_at(p1, j, below, s1, i, r1_seed, r1_step, r1_stream, STATE)
        if SLOTS > 2:
            store_state_at(p2, j, below, s2, i, r2_seed, r2_step, r2_stream, STATE)


def update_(table, rule, keys, a, b, decay, numbers, state, state_rounding, rounding=None) -> None:
    """One step of ``rule``, a passes.Rule, on every tensor of ``table``: a float32 [len(keys), groups], b likewise, or [the rule's of_key,
    len(keys), groups] where that is several, decay float32 [groups] or None, numbers float32 [the rule's, groups], state_rounding one key a
    state where ``state`` is in bfloat16, rounding that of theta or None."""
    rows = spans(table)
    if not rows.shape[0]:
        return
    states = state_spans(table, state)
    stochastic = rounding is not None and table.dtype.itemsize == 2
    words = to_device(pack([*keys, *([rounding] if stochastic else ()), *(state_rounding or ())]), table.device)
    a, b, numbers = (to_device(values, table.device) for values in (a, b, numbers))
    with launching(update_kernel, table.device):
        update_kernel[(rows.shape[0],)](
            rows,
            states,
            words,
            words[len(keys) :],
            a,
            b,
            numbers if decay is None else to_device(decay, table.device),
            numbers,
            len(keys),
            table.groups,
            spec.ONE,
            RULE=rule.code,
            DTYPE=DTYPES[table.dtype],
            STATE=DTYPES[state.dtype],
            ONE_KEY=len(keys) == 1,
            DECAY=decay is not None,
            ROUND=stochastic,
            SIGNS=passes.signs(keys),
            MASKED=table.masked,
            PITCHED=table.pitched,
            ROW=ROW,
            SLOW=SLOW,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
