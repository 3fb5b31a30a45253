"""The oracle itself: known answers, golden vectors, the exactness of its fma, and the draws beside the normal."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from zokern import NoiseKey
from zokern.noise import reference

RANDOM123 = [  # kat_vectors of Random123, philox4x32, 7 rounds
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
]


def hexes(line):
    return tuple(int(word, 16) for word in line.split())


@pytest.mark.parametrize("counter, key, answer", RANDOM123)
def test_philox_gives_random123s_known_answers(counter, key, answer):
    assert tuple(int(w) for w in reference.philox(hexes(counter), hexes(key))) == hexes(answer)


def test_noise_gives_the_golden_vectors(golden):
    for (seed, step, stream, first), bits in golden:
        z = reference.noise(NoiseKey(seed, step, stream), first, len(bits))
        np.testing.assert_array_equal(z.view(np.uint32), bits)


@pytest.mark.parametrize("first, count", [(0, 0), (0, 1), (3, 1), (5, 2), (4094, 9)])
def test_elements_do_not_depend_on_the_range_they_are_asked_in(first, count):
    key = NoiseKey(7, 8, 9)
    np.testing.assert_array_equal(reference.normal(key, first, count), reference.normal(key, 0, 5000)[first : first + count])


def test_fma_rounds_once():
    """Against exact fractions, on operands made so that rounding the product first, or the sum twice, is wrong."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(20000).astype(np.float32) for _ in range(2))
    near = -(a.astype(np.float64) * b).astype(np.float32)  # cancels all but the last bits
    far = (rng.standard_normal(20000) * 2.0 ** rng.integers(-40, 40, 20000)).astype(np.float32)
    for c in (near, far):
        got = reference.fma(a, b, c)
        for x, y, z, value in zip(a, b, c, got):
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            error = abs(exact - Fraction(float(value)))
            for other in (np.nextafter(value, np.float32(np.inf)), np.nextafter(value, np.float32(-np.inf))):
                assert error <= abs(exact - Fraction(float(other)))


def test_fma_is_not_fooled_by_a_sum_that_float64_rounds_to_a_tie():
    """(1 + e)(1 - e) = 1 - e^2: the sum lies 2^-70 below the middle of two float32, where float64 sees the middle itself."""
    a, b = np.float32(2.0**-12 * (1 + 2.0**-23)), np.float32(2.0**-12 * (1 - 2.0**-23))
    odd = np.float32(1 + 2.0**-23)  # a tie would go up, to the even neighbour
    assert reference.fma(a, b, odd) == odd and reference.fma(-a, b, -odd) == -odd


def test_fma_of_arrays_of_one_element_is_an_array():
    assert reference.fma(*np.ones((3, 1), np.float32)).shape == (1,)


def test_mask_keeps_what_it_was_asked_to_keep():
    """Density within 5 standard deviations: a false alarm in 1.7 million runs."""
    n = 1 << 18
    for keep in (0.01, 0.25, 0.5, 0.999):
        kept = reference.mask(NoiseKey(3, 1, 2 << 24), keep, 5, n).mean()
        assert abs(kept - keep) < 5 * np.sqrt(keep * (1 - keep) / n)
    assert reference.mask(NoiseKey(3), 1.0, 0, n).all()


ROUNDING = NoiseKey(5, 0, 3 << 24)


def test_random_halves_do_not_depend_on_the_range_they_are_asked_in():
    whole = reference.random_halves(ROUNDING, 0, 4200)
    assert whole.max() < 1 << 16
    for first, count in ((0, 0), (3, 1), (7, 2), (40, 50), (4093, 100)):
        np.testing.assert_array_equal(whole[first : first + count], reference.random_halves(ROUNDING, first, count))


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, -(2.0**-14), 3e4], ids="near 1, small, at the smallest normal, large".split(", "))
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_stochastic_rounding_is_to_a_neighbour_and_keeps_the_mean(kind, scale):
    """Of 65,536 equal numbers with every r once the share that is rounded up is the distance to the neighbour below, to r's resolution."""
    to = {"bfloat16": torch.bfloat16, "float16": torch.float16}[kind]
    every = torch.arange(-(1 << 15), 1 << 15).short().view(to).double()
    every, r = every[every.isfinite()].unique(), np.arange(1 << 16, dtype=np.uint32)
    for x in np.random.default_rng(0).uniform(0.6, 2.1, 40).astype(np.float32) * np.float32(scale):
        bits = getattr(reference, f"stochastic_{kind}")(np.full(1 << 16, x, np.float32), r)
        values = torch.from_numpy(bits).view(to).double()
        above = int(torch.searchsorted(every, float(x)))
        between = every[above - 1 : above + 1]
        assert set(values.tolist()) <= set(between.tolist())
        assert abs(values.mean().item() - float(x)) <= between.diff().item() * 2**-16


def test_stochastic_rounding_of_what_is_no_number_between_two():
    special, r = np.array([np.inf, -np.inf, np.nan, 0, -0.0], np.float32), np.full(5, 0xFFFF, np.uint32)
    inf, minus, nan, zero, minus_zero = reference.stochastic_bfloat16(special, r)
    assert (inf, minus, zero, minus_zero) == (0x7F80, 0xFF80, 0, 0x8000) and nan & 0x7FFF > 0x7F80
    inf, minus, nan, zero, minus_zero = reference.stochastic_float16(special, r)
    assert (inf, minus, zero, minus_zero) == (0x7C00, 0xFC00, 0, 0x8000) and nan & 0x7FFF > 0x7C00
    last, over = np.nextafter(np.float32(65520), np.float32(0)), np.float32(65520)  # nearest: 65504, and infinity
    for bits in (0, 0xFFFF):
        got = reference.stochastic_float16(np.array([last, -last, over, -over], np.float32), np.full(4, bits, np.uint32))
        assert got.tolist() == [0x7BFF, 0xFBFF, 0x7C00, 0xFC00]


@pytest.mark.parametrize("first, count", [(0, 0), (0, 1), (31, 2), (127, 130), (4095, 9), (2**40 - 3, 7)])
def test_signs_do_not_depend_on_the_range_they_are_asked_in(first, count):
    key, start = NoiseKey.of(7, 8, 4, 9), first // 128 * 128
    np.testing.assert_array_equal(reference.signs(key, first, count), reference.signs(key, start, 512)[first - start :][:count])


@pytest.mark.parametrize(
    "wrong, error",
    [
        ({"seed": -1}, ValueError),
        ({"seed": 2**64}, ValueError),
        ({"step": 2**32}, ValueError),
        ({"stream": 2**32}, ValueError),
        ({"seed": 1.5}, TypeError),
        ({"step": "0"}, TypeError),
    ],
)
def test_a_key_refuses_what_it_cannot_hold(wrong, error):
    (name,) = wrong
    with pytest.raises(error, match=name):
        NoiseKey(**{"seed": 0, **wrong})


def test_a_key_puts_purpose_and_probe_into_its_stream():
    assert NoiseKey.of(1, 2, purpose=3, probe=4) == NoiseKey(1, 2, 3 << 24 | 4)
    with pytest.raises(ValueError, match="probe=16777216"):
        NoiseKey.of(0, 0, 0, 1 << 24)
