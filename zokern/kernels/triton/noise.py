"""The noise in Triton. Read it beside docs/noise_spec.md, whose names it keeps; bit for bit zokern.noise.reference."""

import struct

import triton
import triton.language as tl

from ...noise import spec


def _f32(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


# Triton reads globals only as constexpr.
MASK = tl.constexpr(spec.MASK << 24)
M0, M1 = (tl.constexpr(m) for m in spec.MULTIPLIERS)
W0, W1 = (tl.constexpr(w) for w in spec.KEY_INCREMENTS)
ROUNDS = tl.constexpr(spec.ROUNDS)
RADIUS_BASE, RADIUS_SHIFT = tl.constexpr(spec.RADIUS_BASE), tl.constexpr(_f32(spec.RADIUS_SHIFT))
MANTISSA, EXPONENT_SCALE = tl.constexpr(spec.MANTISSA), tl.constexpr(_f32(spec.EXPONENT_SCALE))
RSQRT_GUESS, ANGLE_BASE = tl.constexpr(spec.RSQRT_GUESS), tl.constexpr(spec.ANGLE_BASE)
Q0, Q1, Q2, Q3, Q4, Q5, Q6 = (tl.constexpr(_f32(b)) for b in spec.Q)
P0, P1, P2, P3 = (tl.constexpr(_f32(b)) for b in spec.P)
C0, C1, C2, C3, C4 = (tl.constexpr(_f32(b)) for b in spec.C)
S0, S1, S2, S3 = (tl.constexpr(_f32(b)) for b in spec.S)


@triton.jit
def trial(turns):
    """The least that an interpreter must be able to do; ``status`` runs it."""
    for _ in range(turns):
        pass


# TRITON_INTERPRET is read where a kernel is defined. The interpreter needs care in two places: fma (here) and bfloat16
# (storage.py).
INTERPRETED = tl.constexpr(type(trial).__name__ == "InterpretedFunction")


@triton.jit
def fma(a, b, c):
    """a * b + c with one rounding; ``a`` is a tensor, b and c may be constants."""
    if INTERPRETED:
        # Triton 3.6's interpreter rounds the product too. In float64 the product of two float32 is exact; the sum is
        # rounded to odd (towards the error when its last bit is even), so that rounding it once more does no harm.
        product = a.to(tl.float64) * b
        total = product + c
        back = total - product
        error = (product - (total - back)) + (c - back)
        bits = total.to(tl.int64, bitcast=True)
        away = (error > 0) == (total > 0)
        inexact = ((error > 0) | (error < 0)) & (bits & 1 == 0)
        bits += tl.where(inexact, tl.where(away, 1, -1), 0)
        return bits.to(tl.float64, bitcast=True).to(tl.float32)
    else:
        return tl.fma(a, b, c)


# One function a degree, coefficients by name: Triton 3.2 cannot index a tuple.
@triton.jit
def horner3(x, c0, c1, c2, c3):
    return fma(x, fma(x, fma(x, c3, c2), c1), c0)


@triton.jit
def horner4(x, c0, c1, c2, c3, c4):
    return fma(x, horner3(x, c1, c2, c3, c4), c0)


@triton.jit
def horner6(x, c0, c1, c2, c3, c4, c5, c6):
    return fma(x, fma(x, horner4(x, c2, c3, c4, c5, c6), c1), c0)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-7, all uint32. The 64-bit products are one IMAD.WIDE each; what is scalar (c1, c2, c3, the key
    schedule) stays in uniform registers and costs a lane nothing."""
    for _ in tl.static_range(ROUNDS):
        p0, p1 = c0.to(tl.uint64) * M0, c2.to(tl.uint64) * M1
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + W0, k1 + W1
    return c0, c1, c2, c3


@triton.jit
def box_muller(a, b, one):
    """Two words -> two normals. ``one`` is spec.ONE as a run-time value: two literals in ``(u & MANTISSA) | ONE`` would
    cost a second LOP3."""
    u = ((a >> 9) + RADIUS_BASE).to(tl.float32, bitcast=True) + RADIUS_SHIFT
    e = u.to(tl.int32, bitcast=True).to(tl.float32)
    m = ((u.to(tl.uint32, bitcast=True) & MANTISSA) | one).to(tl.float32, bitcast=True)
    y = fma(e, EXPONENT_SCALE, horner6(m, Q0, Q1, Q2, Q3, Q4, Q5, Q6))
    h = (y.to(tl.uint32, bitcast=True) >> 1) | (b << 31)
    s = (tl.full([], RSQRT_GUESS, tl.uint32) - h).to(tl.float32, bitcast=True)
    t = y * s
    r = t * horner3(t * s, P0, P1, P2, P3)
    x = ((b >> 9) + ANGLE_BASE).to(tl.float32, bitcast=True) - 3.0
    x2 = x * x
    return r * horner4(x2, C0, C1, C2, C3, C4), (r * x) * horner3(x2, S0, S1, S2, S3)


@triton.jit
def words4(q0, q1, seed, step, stream):
    """The four words of block q = q1 << 32 | q0."""
    return philox(q0, q1, step, stream, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def mask_stream(stream):
    """The stream of a key's mask: the same probe, another purpose."""
    return (stream & 0xFFFFFF) | MASK


@triton.jit
def normal4(q0, q1, seed, step, stream, keep_threshold, one, MASKED: tl.constexpr):
    """The four normals of block q = q1 << 32 | q0; seed is uint64, step and stream are uint32. MASKED: +0 where the mask's word is
    above ``keep_threshold``."""
    w0, w1, w2, w3 = words4(q0, q1, seed, step, stream)
    z0, z1 = box_muller(w0, w1, one)
    z2, z3 = box_muller(w2, w3, one)
    if MASKED:
        w0, w1, w2, w3 = words4(q0, q1, seed, step, mask_stream(stream))
        z0, z1 = tl.where(w0 <= keep_threshold, z0, 0.0), tl.where(w1 <= keep_threshold, z1, 0.0)
        z2, z3 = tl.where(w2 <= keep_threshold, z2, 0.0), tl.where(w3 <= keep_threshold, z3, 0.0)
    return z0, z1, z2, z3


# Each join adds the next finer index, so reshape moves nothing, and a lane's 4 or 8 values are its own 16 bytes of memory.
@triton.jit
def in_order4(a0, a1, a2, a3):
    """Four values of every lane, one after the other: [lanes] -> [4 * lanes]."""
    values = tl.join(tl.join(a0, a2), tl.join(a1, a3))
    return values.reshape([values.numel])


@triton.jit
def in_order8(a0, a1, a2, a3, a4, a5, a6, a7):
    values = tl.join(tl.join(tl.join(a0, a4), tl.join(a2, a6)), tl.join(tl.join(a1, a5), tl.join(a3, a7)))
    return values.reshape([values.numel])


@triton.jit
def word_of(w0, w1, w2, w3, n):
    """Word n & 3 of a block."""
    return tl.where((n & 2) != 0, tl.where((n & 1) != 0, w3, w2), tl.where((n & 1) != 0, w1, w0))


@triton.jit
def words_at(i, seed, step, stream, SHIFT: tl.constexpr):
    """The words of the block of 2^SHIFT elements that holds each element i, int64."""
    return words4((i >> SHIFT).to(tl.uint32), (i >> (SHIFT + 32)).to(tl.uint32), seed, step, stream)


@triton.jit
def noise_at(i, seed, step, stream, keep_threshold, one, SIGNS: tl.constexpr, MASKED: tl.constexpr):
    """The noise of each element i, int64: any i, with a Philox block for each."""
    if SIGNS:
        w0, w1, w2, w3 = words_at(i, seed, step, stream, 7)
        z = sign(word_of(w0, w1, w2, w3, i >> 5) >> (i & 31).to(tl.uint32), 0, one)
    else:
        w0, w1, w2, w3 = words_at(i, seed, step, stream, 2)
        upper = (i & 2) != 0
        z0, z1 = box_muller(tl.where(upper, w2, w0), tl.where(upper, w3, w1), one)
        z = tl.where((i & 1) != 0, z1, z0)
    if MASKED:
        w0, w1, w2, w3 = words_at(i, seed, step, mask_stream(stream), 2)
        z = tl.where(word_of(w0, w1, w2, w3, i) <= keep_threshold, z, 0.0)
    return z


@triton.jit
def sign(bits, n: tl.constexpr, one):
    """-1 where bit n is set, +1 where it is clear."""
    return (((bits << (31 - n)) & 0x80000000) | one).to(tl.float32, bitcast=True)


@triton.jit
def noise(
    q, inside, high, seed, step, stream, keep_threshold, one, EACH: tl.constexpr, SIGNS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """float32 [EACH * lanes], in element order: of EACH (4 or 8) elements in a row of every lane, which begin ``inside`` the Philox block
    whose low counter word is q; ``high`` is the elements' index >> 34. EACH 0: of the elements with indices q."""
    if EACH == 0:
        return noise_at(q, seed, step, stream, keep_threshold, one, SIGNS, MASKED)
    elif SIGNS:
        w0, w1, w2, w3 = words4(q, high >> 5, seed, step, stream)
        bits = word_of(w0, w1, w2, w3, inside >> 5) >> (inside & 31).to(tl.uint32)
        a0, a1, a2, a3 = sign(bits, 0, one), sign(bits, 1, one), sign(bits, 2, one), sign(bits, 3, one)
        if EACH == 4:
            return in_order4(a0, a1, a2, a3)
        else:
            return in_order8(a0, a1, a2, a3, sign(bits, 4, one), sign(bits, 5, one), sign(bits, 6, one), sign(bits, 7, one))
    else:
        a0, a1, a2, a3 = normal4(q, high, seed, step, stream, keep_threshold, one, MASKED)
        if EACH == 4:
            return in_order4(a0, a1, a2, a3)
        else:
            b0, b1, b2, b3 = normal4(q + 1, high, seed, step, stream, keep_threshold, one, MASKED)
            return in_order8(a0, a1, a2, a3, b0, b1, b2, b3)


@triton.jit
def halves8(q, high, seed, step, stream):
    """16 random bits for each of 8 elements in a row of every lane: all of Philox block q, under ``high``, the elements' index >> 34."""
    w0, w1, w2, w3 = words4(q, high >> 1, seed, step, stream)
    return in_order8(w0 & 0xFFFF, w0 >> 16, w1 & 0xFFFF, w1 >> 16, w2 & 0xFFFF, w2 >> 16, w3 & 0xFFFF, w3 >> 16)


@triton.jit
def halves_at(i, seed, step, stream):
    """The same for each element i, int64."""
    w0, w1, w2, w3 = words_at(i, seed, step, stream, 3)
    word = word_of(w0, w1, w2, w3, i >> 1)
    return tl.where((i & 1) != 0, word >> 16, word & 0xFFFF)
