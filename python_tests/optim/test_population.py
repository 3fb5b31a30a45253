"""Populations against their papers' equations in float64 with explicit z; oracle noise, no kernel of zokern's."""

import math
import warnings
from contextlib import nullcontext

import pytest
import torch

from zokern import FZOO, MEAZO, EvolutionStrategies, NoiseKey
from zokern.estimators import SHAPINGS
from zokern.noise.spec import NOISES

STEPS, SEED, SIGMA, LR = 5, 11, 1e-2, 3e-2
SIZES = (37, 5, 61)


def start(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n).to(dtype)) for n in SIZES]


def loss_of(params):
    """Smooth, not quadratic, and every parameter's gradient depends on the others."""
    a, b, c = (p.double() for p in params)
    return (a**2).sum() + torch.sin(b).sum() * c.mean() + (c**4).sum() / 10 + a.mean() * c.sum()


def moved(params, terms):
    """theta + sum_k c_k z_k, the c_k one a parameter, or one for all."""
    for c, z in terms:
        each = c if isinstance(c, list) else [c] * len(params)
        params = [p + own * d for p, own, d in zip(params, each, z)]
    return params


def shaped(rewards, shaping):
    """What each member weighs, None where its reward is not finite."""
    good = [r for r in rewards if math.isfinite(r)]
    mean = sum(good) / len(good)
    std = math.sqrt(sum((r - mean) ** 2 for r in good) / len(good))
    rank = lambda r: sum(o < r for o in good) + (good.count(r) - 1) / 2  # noqa: E731
    of = {
        "z-score": lambda r: (r - mean) / (std + 1e-8),
        "ranks": lambda r: rank(r) / (len(good) - 1) - 0.5,
        "none": lambda r: r - mean,
    }[shaping]
    return [of(r) if math.isfinite(r) else None for r in rewards]


def textbook_es(values, keys, lrs, sigmas, population, mirrored, shaping, maximize, lost=()):
    """One step: theta + (lr / N) sum_n s_n z_n of rewards, the other way of losses."""
    members = [(side, keys[n]) for n in range(len(keys)) for side in ((1, -1) if mirrored else (1,))]
    assert len(members) == population
    numbers = [float(loss_of(moved(values, [([side * s for s in sigmas], z)]))) for side, z in members]
    numbers = [math.nan if n in lost else x for n, x in enumerate(numbers)]
    weights, n = shaped(numbers, shaping), population - len(lost)
    sign = 1 if maximize else -1
    return moved(values, [([sign * lr / n * s * side for lr in lrs], z) for s, (side, z) in zip(weights, members) if s is not None])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sparsity", [None, 0.4])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("shaping", ["z-score", "ranks", "none"])
def test_evolution_strategies(shaping, mirrored, maximize, sparsity, noise, explicit):
    """With groups of their own lr and sigma, of which a step's one reward is for both."""
    params, population = start(), 6
    lr = LR if shaping != "none" else 1e-2
    groups = [dict(params=params[:1]), dict(params=params[1:], lr=lr / 3, sigma=2 * SIGMA)]
    how = dict(population=population, mirrored=mirrored, shaping=shaping, maximize=maximize)
    opt = EvolutionStrategies(groups, lr=lr, sigma=SIGMA, seed=SEED, sparsity=sparsity, noise=noise, **how)
    values, calls = [p.detach().double() for p in params], []
    for t in range(STEPS):
        keys = [explicit(NoiseKey.of(SEED, t, NOISES[noise][0], n), opt.layout) for n in range(population // (1 + mirrored))]
        values = textbook_es(values, keys, [lr, lr / 3, lr / 3], [SIGMA, 2 * SIGMA, 2 * SIGMA], **how)
        opt.step(lambda: calls.append(1) or loss_of(params))
    assert len(calls) == STEPS * population == STEPS * opt.forwards
    for p, value in zip(params, values):
        # Seven passes a step round theta to 1e-7 of it, so that a reward near 100 is off by 1e-6, a z-score by 1e-5 of itself.
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=2e-5)


def textbook_fzoo(values, keys, lr, eps, lost=()):
    base = float(loss_of(values))
    losses = [float(loss_of(moved(values, [(eps, z)]))) for z in keys]
    good = [loss for n, loss in enumerate(losses) if n not in lost]
    mean = sum(good) / len(good)
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in good) / len(good))
    moves = [(-lr * (loss - base) / (len(good) * spread), z) for n, (loss, z) in enumerate(zip(losses, keys)) if n not in lost]
    return moved(values, moves)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sparsity", [None, 0.4])
@pytest.mark.parametrize("q", [2, 5, 8])
def test_fzoo(q, sparsity, noise, explicit):
    params = start()
    opt = FZOO(params, lr=LR, eps=SIGMA, q=q, seed=SEED, sparsity=sparsity, noise=noise)
    values, calls = [p.detach().double() for p in params], []
    for t in range(STEPS):
        keys = [explicit(NoiseKey.of(SEED, t, NOISES[noise][0], n), opt.layout) for n in range(q)]
        values = textbook_fzoo(values, keys, LR, SIGMA)
        opt.step(lambda: calls.append(1) or loss_of(params))
    assert len(calls) == STEPS * (1 + q) == STEPS * opt.forwards
    for p, value in zip(params, values):
        # Two losses of two directions may be close to each other: their spread, by which a step is divided, has fewer digits.
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=1e-4 if q == 2 else 2e-5)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sparsity", [None, 0.4])
@pytest.mark.parametrize("q", [1, 3])
def test_meazo(q, sparsity, noise, explicit):
    """With one v a group, whose eps is its own; the third step is skipped, and v and t stay."""
    params, beta, delta, bad = start(), 0.8, 1e-3, []
    groups = [dict(params=params[:1]), dict(params=params[1:], lr=LR / 3, eps=2 * SIGMA)]
    opt = MEAZO(groups, lr=LR, eps=SIGMA, beta=beta, delta=delta, q=q, seed=SEED, sparsity=sparsity, noise=noise)
    eps, lrs = [SIGMA, 2 * SIGMA, 2 * SIGMA], [LR, LR / 3, LR / 3]
    values, v, live = [p.detach().double() for p in params], [0.0, 0.0, 0.0], 0
    for t in range(STEPS):
        bad[:] = [1] if t == 2 else []
        if not bad:
            live += 1
            keys = [explicit(NoiseKey.of(SEED, t, NOISES[noise][0], n), opt.layout) for n in range(q)]
            sides = [[float(loss_of(moved(values, [([side * e for e in eps], z)]))) for side in (1, -1)] for z in keys]
            grads = [[(plus - minus) / (2 * e) for plus, minus in sides] for e in eps]
            v = [beta * old + (1 - beta) * (sum(g) / q) ** 2 for old, g in zip(v, grads)]
            sizes = [math.sqrt(x / (1 - beta**live)) + delta for x in v]
            values = moved(values, [([-lr * g[n] / q / size for lr, g, size in zip(lrs, grads, sizes)], z) for n, z in enumerate(keys)])
        with pytest.warns(RuntimeWarning, match="skipped") if bad else nullcontext():
            opt.step(lambda: torch.tensor(math.nan) if bad else loss_of(params))
    assert opt.skipped == 1 and opt.param_groups[0]["second_moment"].tolist() == pytest.approx([v[0], v[1]], rel=1e-4)
    for p, value in zip(params, values):
        # g is about 30 and known to 1e-4; the mean of three of either sign, by whose size a step is divided, may be a tenth of that.
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=2e-4 if q > 1 else 2e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shaping", ["z-score", "ranks", "none"])
def test_a_member_that_is_not_finite_is_dropped_and_counted(shaping, bad, explicit):
    params, lost, calls = start(), {1, 4}, []
    how = dict(population=6, mirrored=False, shaping=shaping, maximize=True)
    opt = EvolutionStrategies(params, lr=LR / 3, sigma=SIGMA, seed=SEED, **how)
    before = [p.detach().double() for p in params]
    keys = [explicit(NoiseKey(SEED, 0, n), opt.layout) for n in range(6)]
    values = textbook_es(before, keys, [LR / 3] * 3, [SIGMA] * 3, lost=lost, **how)
    mean = opt.step(lambda: calls.append(1) or (torch.tensor(bad) if len(calls) - 1 in lost else loss_of(params)))
    good = [float(loss_of(moved(before, [(SIGMA, z)]))) for n, z in enumerate(keys) if n not in lost]
    assert opt.dropped == 2 and opt.skipped == 0 and float(mean) == pytest.approx(sum(good) / 4, rel=1e-6)
    for p, value in zip(params, values):
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=2e-5)


def test_of_a_pair_the_other_member_counts_alone(explicit):
    params, calls = start(), []
    how = dict(population=4, mirrored=True, shaping="z-score", maximize=False)
    opt = EvolutionStrategies(params, lr=LR, sigma=SIGMA, seed=SEED, **how)
    keys = [explicit(NoiseKey(SEED, 0, n), opt.layout) for n in range(2)]
    values = textbook_es([p.detach().double() for p in params], keys, [LR] * 3, [SIGMA] * 3, lost={2}, **how)
    opt.step(lambda: calls.append(1) or (math.nan if len(calls) == 3 else float(loss_of(params))))
    for p, value in zip(params, values):
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=2e-5)


def test_fzoo_drops_members_too_but_not_the_loss_at_theta(explicit):
    params, calls, lost = start(), [], {2}
    opt = FZOO(params, lr=LR, eps=SIGMA, q=5, seed=SEED)
    keys = [explicit(NoiseKey.of(SEED, 0, NOISES["rademacher"][0], n), opt.layout) for n in range(5)]
    values = textbook_fzoo([p.detach().double() for p in params], keys, LR, SIGMA, lost)
    opt.step(lambda: calls.append(1) or (math.nan if len(calls) == 4 else float(loss_of(params))))
    assert (opt.dropped, opt.skipped) == (1, 0)
    for p, value in zip(params, values):
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=2e-5)
    before, calls = [p.detach().clone() for p in params], []
    with pytest.warns(RuntimeWarning, match="skipped"):
        opt.step(lambda: calls.append(1) or (math.inf if len(calls) == 1 else float(loss_of(params))))
    assert opt.skipped == 1
    for p, old in zip(params, before):
        torch.testing.assert_close(p.detach(), old, rtol=0, atol=3e-6)  # six passes there and back, each rounds


MAKES = {
    "es": lambda p, **kw: EvolutionStrategies(p, population=5, **kw),
    "es mirrored": lambda p, **kw: EvolutionStrategies(p, population=6, mirrored=True, **kw),
    "es ranks": lambda p, **kw: EvolutionStrategies(p, population=5, shaping="ranks", **kw),
    "es none": lambda p, **kw: EvolutionStrategies(p, population=5, shaping="none", **kw),
    "fzoo": lambda p, **kw: FZOO(p, q=5, **kw),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("numbers, skipped", [([3.0], 0), ([math.nan], 1), ([math.inf], 1), ([math.nan] * 4 + [1.0] + [math.nan] * 9, 1)])
def test_equal_numbers_and_none_move_nothing(make, numbers, skipped):
    """Bit for bit, where theta is kept beside the model; one member alone has nothing to be compared with."""
    params, calls = start(), []
    before = [p.detach().clone() for p in params]
    opt = make(params, lr=1.0, perturbation="copied", weight_decay=0.1 if skipped else 0.0)

    def closure():
        calls.append(1)
        return numbers[(len(calls) - 1) % len(numbers)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opt.step(closure)
    assert opt.skipped == skipped
    assert all(torch.equal(p, old) for p, old in zip(params, before))


@pytest.mark.parametrize("members", [3, 5, 6, 7, 8, 10, 30])
def test_rewards_that_differ_by_rounding_are_equal(members):
    """Means of the same rewards, summed in another order, differ in the last bit; and of numbers without a short binary form even the mean
    of equal ones does."""
    for k in range(1, 50):
        for other in (k / 50, math.nextafter(k / 50, 0), math.nextafter(k / 50, 1)):
            values = torch.tensor([k / 50, other] * members, dtype=torch.float64)[:members]
            for finite in (torch.ones(members, dtype=torch.bool), torch.arange(members) > 0):
                assert not any(shape(values, finite).any() for shape in SHAPINGS.values())
                p = torch.nn.Parameter(torch.ones(5))
                numbers = iter([0.5, *torch.where(finite, values, torch.nan).tolist()])
                opt = FZOO([p], lr=1.0, q=members, maximize=True, perturbation="copied")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    opt.step(lambda numbers=numbers: next(numbers))
                assert torch.equal(p.detach(), torch.ones(5)) and opt.skipped == 0
    spread = torch.tensor([0.93, 0.1, math.nextafter(0.93, 0), 2.0], dtype=torch.float64)
    assert SHAPINGS["ranks"](spread, spread > 0).tolist() == pytest.approx([0, -0.5, 0, 0.5])


@pytest.mark.parametrize("mirrored", [False, True])
def test_random_rewards_move_each_element_by_the_variance_that_theory_says(mirrored):
    """z-scores of N random rewards have squares of mean 1, so that an element's update has the variance lr^2 / N; where pairs share a
    direction, of which there are N / 2, a difference of two z-scores has variance 2 N / (N - 1), and the update lr^2 / (N - 1)."""
    n, lr, elements = 16, 1e-2, 40_000
    p = torch.nn.Parameter(torch.zeros(elements))
    generator = torch.Generator().manual_seed(5)
    opt = EvolutionStrategies([p], lr=lr, population=n, mirrored=mirrored, maximize=True, perturbation="copied")
    steps = 20
    for _ in range(steps):
        opt.step(lambda: torch.rand((), generator=generator))
    variance = float(p.detach().double().square().mean()) / steps
    expected = lr**2 / (n - 1 if mirrored else n)
    # Over elements, a relative error of sqrt(2 / 40,000) = 0.7 %. Over rewards: unmirrored none (z-scores have squares of sum N exactly);
    # mirrored, the square sum of pairs varies by about a tenth a step at most, over 20 steps 3 %. Four standard deviations.
    assert variance == pytest.approx(expected, rel=0.03 if not mirrored else 0.12)


@pytest.mark.parametrize("make", [*MAKES.values(), lambda p, **kw: MEAZO(p, **kw)])
def test_a_reward_is_maximised(make):
    params = start()
    opt = make(params, lr=0.2 if make is MAKES["es none"] else 2e-2, maximize=True)
    reward_of = lambda: -loss_of([p.detach() for p in params])  # noqa: E731
    before = float(reward_of())
    for _ in range(40):
        opt.step(reward_of)
    assert float(reward_of()) > before + 1


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_steps_without_a_finite_number_are_not_said_to_have_equal_ones(make):
    opt = make(start())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(7):
            opt.step(lambda: math.nan)
    assert opt.skipped == 7 and [str(w.message) for w in said if "did not differ" in str(w.message)] == []


def test_an_update_of_many_members_is_one_pass():
    """From the last member to the new theta: the way back and thirty terms are one call over the weights."""
    from zokern import ops

    params = start()
    opt = EvolutionStrategies(params, population=30)
    calls, real = [], ops.add_noise_

    def counted(layout, terms, *arguments, **settings):
        calls.append(len(list(terms)))
        return real(layout, terms, *arguments, **settings)

    ops.add_noise_ = counted
    try:
        opt.step(lambda: loss_of(params))
    finally:
        ops.add_noise_ = real
    assert calls == [1] + [2] * 29 + [30]


@pytest.mark.parametrize(
    "make, settings, message",
    [
        (EvolutionStrategies, dict(population=1), "population=1 .*integer >= 2"),
        (EvolutionStrategies, dict(population=7, mirrored=True), "population=7 with mirrored=True.*even"),
        (EvolutionStrategies, dict(sigma=0.0), "sigma=0.0 .*> 0"),
        (EvolutionStrategies, dict(shaping="rank"), 'shaping=.rank. .*"z-score", "ranks" or "none"'),
        (EvolutionStrategies, dict(maximize=1), "maximize=1"),
        (FZOO, dict(q=1), "q=1 .*integer >= 2"),
        (MEAZO, dict(beta=1.0), r"beta=1.0 .*\[0, 1\)"),
        (MEAZO, dict(delta=0.0), "delta=0.0 .*> 0"),
    ],
)
def test_settings_out_of_range_are_named(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(start(), **settings)


def test_a_state_whose_pairs_do_not_fit_is_refused():
    opt = EvolutionStrategies(start(), population=6, mirrored=True)
    state = opt.state_dict()
    state["param_groups"][0]["population"] = 7
    with pytest.raises(ValueError, match="even"):
        opt.load_state_dict(state)
    assert opt.param_groups[0]["population"] == 6
