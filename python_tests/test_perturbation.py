"""PerturbedWeights: where the weights are, what is pending, and that nobody sees weights that are not at theta."""

import pytest
import torch
from optimizer_cases import answered
from tolerances import RESTORED

from zokern import Layout, NoiseKey, ops
from zokern.estimators import InPlace, average
from zokern.estimators.perturbation import NOTHING

A, B = NoiseKey(1), NoiseKey(2)


@pytest.fixture
def passes(monkeypatch):
    """Every call of the primitive, as (terms, decay)."""
    seen, real = [], ops.add_noise_

    def counting(layout, terms, decay=1.0, **how):
        seen.append(([(key, float(c)) for key, c in terms], float(decay)))
        real(layout, terms, decay, **how)

    monkeypatch.setattr(ops, "add_noise_", counting)
    return seen


def model(n=1000):
    torch.manual_seed(0)
    return InPlace(Layout([torch.randn(n)]))


def test_inside_at_the_weights_are_displaced_and_apply_pending_brings_them_back(explicit):
    m = model()
    before = m.layout.params[0].clone()
    (z,) = explicit(A, m.layout)
    with m.at([(A, 0.5)]):
        torch.testing.assert_close(m.layout.params[0].double(), before + 0.5 * z, rtol=0, atol=1e-6)
    m.apply_pending()
    assert (m.layout.params[0] - before).abs().max() <= RESTORED


def test_moving_on_merges_what_is_pending_into_one_pass(passes):
    m = model()
    with m.at([(A, 0.5)]):
        pass
    with m.at([(A, -0.5)]):
        pass
    with m.at([(B, 0.25)]):
        pass
    m.add_pending([(A, 2.0)], decay=0.5)
    m.apply_pending()
    assert passes == [([(A, 0.5)], 1.0), ([(A, -1.0)], 1.0), ([(A, 0.5), (B, 0.25)], 1.0), ([(B, -0.125), (A, 2.0)], 0.5)]
    assert m.pending == [NOTHING]


def test_a_pending_update_is_applied_by_the_next_pass(passes, explicit):
    m = model()
    theta = m.layout.params[0].double()
    with m.at([(A, 0.5)]):
        pass
    m.add_pending([(A, -0.125)], decay=0.5)
    m.add_pending([(B, 2.0)], decay=0.5)
    assert len(passes) == 1
    with m.at([(B, 0.25)]):
        pass
    assert passes[1:] == [([(A, -0.1875), (B, 2.25)], 0.25)]
    m.apply_pending()
    a, b = (z for key in (A, B) for z in explicit(key, m.layout))
    torch.testing.assert_close(m.layout.params[0].double(), 0.25 * theta - 0.0625 * a + 2 * b, rtol=0, atol=1e-6)
    assert len(passes) == 3 and m.pending == [NOTHING]


def test_a_step_is_three_passes_and_nothing_pending_is_no_pass(passes):
    m = model()
    answered(m, lambda: 1.0, [A], 1e-3)
    m.apply_pending()
    m.apply_pending()
    assert len(passes) == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_restores_the_weights_at_once(error):
    m = model()
    before = m.layout.params[0].clone()
    with pytest.raises(error):
        with m.at([(A, 0.5)]):
            raise error
    assert (m.layout.params[0] - before).abs().max() <= RESTORED and m.pending == [NOTHING]


def test_two_point_on_a_quadratic_is_the_exact_directional_derivative(explicit):
    """L = theta . A theta / 2 has no third derivative: the central difference is z . A theta up to rounding, for any eps."""
    theta = torch.randn(50, generator=torch.Generator().manual_seed(3))
    curvature = torch.linspace(0.1, 2, 50, dtype=torch.float64)
    m = InPlace(Layout([theta]))
    exact = (explicit(A, m.layout)[0] * curvature * theta.double()).sum()
    estimate = answered(m, lambda: (theta.double() ** 2 * curvature).sum() / 2, [A], 0.1)
    torch.testing.assert_close(estimate.projected_grad, exact, rtol=1e-5, atol=1e-5)
    assert estimate.terms == [(A, estimate.projected_grad)] and not estimate.skipped


def test_radii_of_groups_give_each_group_its_own_unbiased_estimate():
    """g_group = (L+ - L-) / (2 eps_group): the mean of g z over many keys is the gradient of each group."""
    a, b = torch.zeros(1), torch.zeros(1)
    m = InPlace(Layout([{"params": [a]}, {"params": [b]}]))
    eps = torch.tensor([1e-2, 1e-3], dtype=torch.float64)
    total, n = torch.zeros(2, dtype=torch.float64), 4000
    for step in range(n):
        key = NoiseKey(0, step)
        estimate = answered(m, lambda: 3 * a.double().sum() - 2 * b.double().sum(), [key], eps)
        total += estimate.projected_grad * torch.cat([ops.make_noise(key, first, 1) for first in m.layout.first])
    # The b part sees the a part as noise of relative size eps_a / eps_b = 10: standard deviation 30 / sqrt(n). Five of them.
    assert abs(total[0] / n - 3) < 5 * 6 / n**0.5 and abs(total[1] / n + 2) < 5 * 31 / n**0.5


def test_average_of_queries():
    m = model(10)
    estimates = [answered(m, lambda: m.layout.params[0].double().sum(), [NoiseKey(0, 0, probe)], 1e-2) for probe in range(3)]
    mean = average(estimates)
    assert [key for key, _ in mean.terms] == [NoiseKey(0, 0, probe) for probe in range(3)]
    torch.testing.assert_close(torch.stack([c for _, c in mean.terms]), torch.stack([e.projected_grad / 3 for e in estimates]))
    assert len(mean.losses) == 6 and mean.projected_grad.shape == (3,)
