"""Whether it is N(0, 1) and independent. Every test has a false-alarm rate below 1e-6 per key; the keys are fixed, so a red test
means that the noise changed, not that luck ran out."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from zokern import NoiseKey, ops

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no part of the installed package

from bench import randomness  # noqa: E402

N = 1 << 22
SIGMAS = 5  # two-sided 5.7e-7


@pytest.fixture(scope="module", params=[0, 2**63 + 12345], ids=["seed0", "seed2^63"])
def z(request):
    return ops.make_noise(NoiseKey(request.param, step=3), 4096, N).double().numpy()


@pytest.mark.parametrize("power, mean, variance", [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)])
def test_moments(z, power, mean, variance):
    assert abs((z**power).mean() - mean) < SIGMAS * np.sqrt(variance / N)


def test_kolmogorov_smirnov(z):
    # Doubles are compared: the resolution of the noise (2^-22 of an angle) is far below what 4 million samples can see.
    assert stats.kstest(z, "norm").pvalue > 1e-6


@pytest.mark.parametrize("lane", range(4))
def test_each_lane_of_a_block_by_itself(z, lane):
    assert stats.kstest(z[lane::4], "norm").pvalue > 1e-6


@pytest.mark.parametrize("sigma", [2, 3, 4, 5])
def test_tails(z, sigma):
    expected = 2 * stats.norm.sf(sigma) * N
    low, high = stats.poisson.ppf([2.5e-7, 1 - 2.5e-7], expected)
    assert low <= (np.abs(z) > sigma).sum() <= high


def test_largest_value_is_the_specifications(z):
    assert np.abs(z).max() <= 5.768 + 1e-3


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 1024, 4096])
def test_no_correlation_between_elements(z, lag):
    for f in (lambda x: x, lambda x: x**2 - 1):
        a, b = f(z[:-lag]), f(z[lag:])
        assert abs((a * b).mean()) < SIGMAS * a.std() * b.std() / np.sqrt(len(a))


@pytest.mark.parametrize("other", [NoiseKey(0, 4), NoiseKey(1, 3), NoiseKey(0, 3, 1), NoiseKey(0, 3, 1 << 24), NoiseKey(1 << 32, 3)])
def test_no_correlation_between_keys(other):
    a, b = (ops.make_noise(key, 0, N // 4).double().numpy() for key in (NoiseKey(0, 3), other))
    for f in (lambda x: x, lambda x: x**2 - 1):
        assert abs((f(a) * f(b)).mean()) < SIGMAS * f(a).std() * f(b).std() / np.sqrt(N // 4)


FAMILIES = list(randomness.FAMILIES)
KINDS = {"normals": 0, "signs": 4}


def right(results):
    for name, p, _ in results:
        assert p > randomness.FAILURE, name


def test_signs():
    right(randomness.signs("signs", randomness.many_keys(4), 1 << 26))


@pytest.mark.parametrize("what", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_neighbouring_keys(what, kind):
    """Sums of 1,000 of them, pairs that differ in one bit, and the first elements of many."""
    right([randomness.sums(what, kind, KINDS[kind], 1 << 14), randomness.flips(what, kind, KINDS[kind], 1 << 14)])
    if kind == "normals":
        right(randomness.short_streams(what, 1 << 18))


def test_words_change_when_one_bit_of_counter_or_key_does():
    right(randomness.avalanche(1 << 11))


@pytest.mark.parametrize("rounds, what", [(2, "seeds"), (4, "steps")])
def test_too_few_rounds_are_seen(rounds, what, monkeypatch):
    """With 2 rounds everything is wrong; with 4 words still do not change as they should."""
    monkeypatch.setattr(randomness.reference.spec, "ROUNDS", rounds)
    assert min(p for _, p, _ in randomness.avalanche(1 << 11)) < 1e-12
    if rounds == 2:
        assert min(p for _, p, _ in randomness.short_streams(what, 1 << 18)) < 1e-12
