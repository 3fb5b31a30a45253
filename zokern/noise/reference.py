"""The noise in NumPy, written to be read: the oracle that every other backend equals bit for bit (docs/noise_spec.md)."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import spec
from .key import NoiseKey

Array: TypeAlias = npt.NDArray[Any]

F32, U32, U64 = np.float32, np.uint32, np.uint64


def philox(counter: Sequence[Array], key: tuple[int, int]) -> tuple[Array, ...]:
    """Philox4x32-7: four uint32 counter words (arrays of one shape) and two key words -> four uint32 words."""
    c0, c1, c2, c3 = (np.asarray(word, U64) for word in counter)
    k0, k1 = key
    for _ in range(spec.ROUNDS):
        p0, p1 = c0 * U64(spec.MULTIPLIERS[0]), c2 * U64(spec.MULTIPLIERS[1])
        c0, c1, c2, c3 = (p1 >> U64(32)) ^ c1 ^ U64(k0), low(p1), (p0 >> U64(32)) ^ c3 ^ U64(k1), low(p0)
        k0, k1 = (k0 + spec.KEY_INCREMENTS[0]) % 2**32, (k1 + spec.KEY_INCREMENTS[1]) % 2**32
    return tuple(word.astype(U32) for word in (c0, c1, c2, c3))


def words(key: NoiseKey, first: int, count: int) -> Array:
    """Word ``i & 3`` of block ``i >> 2`` for elements i = first .. first + count - 1, as uint32 [count]."""
    return blocks(key, first >> 2, (first + count + 3) >> 2).reshape(-1)[first & 3 :][:count]


def normal(key: NoiseKey, first: int, count: int) -> Array:
    """z(key) of elements first .. first + count - 1: standard normals, float32 [count]."""
    w = blocks(key, first >> 2, (first + count + 3) >> 2).reshape(-1, 2, 2)
    return np.stack(box_muller(w[..., 0], w[..., 1]), axis=-1).reshape(-1)[first & 3 :][:count]


def signs(key: NoiseKey, first: int, count: int) -> Array:
    """z(key) of elements first .. first + count - 1: bit ``i & 31`` of word ``(i >> 5) & 3`` of block ``i >> 7``, set for -1 and clear for
    +1: float32 [count]."""
    start = first >> 7
    w = blocks(key, start, (first + count + 127) >> 7).reshape(-1)
    i = np.arange(count, dtype=U64) + U64(first - (start << 7))
    return np.where(w[(i >> U64(5)).astype(np.intp)] >> (i & U64(31)).astype(U32) & U32(1), F32(-1), F32(1))


def noise(key: NoiseKey, first: int, count: int) -> Array:
    """z(key) of elements first .. first + count - 1, of the key's kind: float32 [count]."""
    return (signs if key.noise == "rademacher" else normal)(key, first, count)


def masked_noise(key: NoiseKey, keep_threshold: int, first: int, count: int) -> Array:
    """z(key) where the element's mask word is at most ``keep_threshold``, else +0: float32 [count]."""
    z = noise(key, first, count)
    return z if keep_threshold == 0xFFFFFFFF else np.where(words(key.to(spec.MASK), first, count) <= U32(keep_threshold), z, F32(0))


def mask(key: NoiseKey, keep: float, first: int, count: int) -> Array:
    """Whether each element is kept, each with probability ``keep`` in (0, 1], as bool [count]."""
    return np.asarray(words(key, first, count).astype(U64) < U64(int(keep * 2**32)))


def random_halves(key: NoiseKey, first: int, count: int) -> Array:
    """16 bits for each element: half ``i & 1`` (0: the low one) of word ``(i & 7) >> 1`` of block ``i >> 3``, as uint32 [count]."""
    i = np.arange(count, dtype=U64) + U64(first & 7)
    w = blocks(key, first >> 3, (first + count + 7) >> 3).reshape(-1)[(i >> U64(1)).astype(np.intp)]
    return np.where(i & U64(1), w >> U32(16), w & U32(0xFFFF)).astype(U32)


def stochastic_bfloat16(x: Array, r: Array) -> Array:
    """float32 [n] -> the bits of bfloat16, uint16 [n], rounded up with the probability that keeps the mean. r: 16 random bits each."""
    u = bits(x)
    nearest = np.where(np.isnan(x), u >> U32(16) | U32(0x40), u >> U32(16))  # infinities are their own upper half
    return np.asarray(np.where(np.isfinite(x), (u + r) >> U32(16), nearest), np.uint16)


def stochastic_float16(x: Array, r: Array) -> Array:
    """The same for float16: 13 bits are dropped of a normal number; below 2^-14 float16 counts in steps of 2^-24."""
    with np.errstate(over="ignore"):
        nearest = x.astype(np.float16).view(np.uint16)
    magnitude = bits(np.abs(x))
    normal_ = np.minimum(((magnitude + (r >> U32(3))) >> U32(13)) - U32(112 << 10), U32(0x7BFF))  # exponents are off by 112
    small = np.abs(x) < F32(2**-14)
    below = (np.where(small, np.abs(x) * F32(2**40), F32(0)).astype(U32) + r) >> U32(16)
    rest = np.where(small, below, normal_) | bits(x) >> U32(31) << U32(15)
    return np.asarray(np.where((nearest & 0x7C00) == 0x7C00, nearest, rest), np.uint16)  # infinite where the nearest is


def blocks(key: NoiseKey, start: int, stop: int) -> Array:
    """The words of blocks start .. stop - 1, as uint32 [stop - start, 4]."""
    q = np.arange(start, max(start, stop), dtype=U64)
    return np.stack(
        philox((low(q), q >> U64(32), np.full_like(q, key.step), np.full_like(q, key.stream)), (key.seed % 2**32, key.seed >> 32)),
        axis=-1,
    )


def box_muller(a: Array, b: Array) -> tuple[Array, Array]:
    """Two uint32 words -> two standard normals, r cos(pi x / 2) and r sin(pi x / 2), float32."""
    u = f32((a >> U32(9)) + U32(spec.RADIUS_BASE)) + constant(spec.RADIUS_SHIFT)
    e = bits(u).view(np.int32).astype(F32)
    m = f32((bits(u) & U32(spec.MANTISSA)) | U32(spec.ONE))
    y = fma(e, constant(spec.EXPONENT_SCALE), horner(spec.Q, m))  # -2 ln(uniform)
    h = (bits(y) >> U32(1)) | (b << U32(31))
    s = f32(U32(spec.RSQRT_GUESS) - h)
    t = y * s
    r = t * horner(spec.P, t * s)  # +-sqrt(y)
    x = f32((b >> U32(9)) + U32(spec.ANGLE_BASE)) - F32(3)
    x2 = x * x
    return r * horner(spec.C, x2), (r * x) * horner(spec.S, x2)


def horner(coefficients: Sequence[int], x: Array) -> Array:
    value = np.full_like(x, constant(coefficients[-1]))
    for c in reversed(coefficients[:-1]):
        value = fma(value, x, constant(c))
    return value


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Array:
    """a * b + c with one rounding. In float64 the product is exact; the sum is rounded to odd, then once to float32."""
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))  # NumPy 1.26: np.float64(array of one) is a scalar
    product = a * b
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = total.view(np.int64) & 1 == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.asarray(np.where((error != 0) & even, np.nextafter(total, toward), total), F32)


def low(x: Array) -> Array:
    return np.asarray(x & U64(0xFFFFFFFF))


def bits(x: npt.ArrayLike) -> Array:
    return np.asarray(x, F32).view(U32)


def f32(b: npt.ArrayLike) -> Array:
    return np.asarray(b, U32).view(F32)


def constant(b: int) -> Any:
    return f32(b)[()]
