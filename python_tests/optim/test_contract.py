"""The contract of zokern/optim/base.py, point by point, for every optimizer in OPTIMIZERS, radius_of."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from optimizer_cases import OPTIMIZERS
from tolerances import RESTORED

from zokern import MeZO, NoiseKey
from zokern.estimators import Estimate
from zokern.noise import reference


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return lambda params, **settings: OPTIMIZERS[request.param](params, **{"lr": 1e-3, **settings})


@pytest.fixture(params=["MeZO", "MeZO q=2", "MeZO one-sided", "MeZO blocks"])
def linear(request):
    """Those that move by -lr g z."""
    return lambda params, **settings: OPTIMIZERS[request.param](params, **{"lr": 1e-3, **settings})


def parameters(*sizes):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n)) for n in sizes]


def run(opt, closure, steps):
    return [float(opt.step(closure)) for _ in range(steps)]


def test_step_returns_the_mean_loss_and_last_holds_the_rest(make):
    (theta,) = parameters(5)
    opt = make([theta])
    assert opt.last is None
    loss = opt.step(lambda: (theta**2).sum())
    assert loss.dim() == 0 and loss == opt.last.loss == torch.stack(opt.last.losses).mean()
    assert not opt.last.skipped and len(opt.last.losses) <= opt.forwards
    assert {key.step for key, _ in opt.last.terms} == {0} and opt.param_groups[0]["step"] == 1


def test_closures_may_return_floats(make):
    (a,), (b,) = parameters(5), parameters(5)
    one, other = make([a]), make([b])
    for _ in range(3):
        assert one.step(lambda: (a.double() ** 2).sum()) == other.step(lambda: float((b.double() ** 2).sum()))
    assert torch.equal(a, b)


def test_the_closure_sees_no_grad_and_no_gradient_appears(make):
    (theta,) = parameters(5)
    modes = []
    make([theta]).step(lambda: modes.append(torch.is_grad_enabled()) or (theta**2).sum())
    assert not any(modes) and theta.grad is None


def test_the_global_random_state_is_left_alone(make):
    (theta,) = parameters(5)
    state = torch.get_rng_state()
    make([theta]).step(lambda: (theta**2).sum())
    assert torch.equal(state, torch.get_rng_state())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(make):
    results = []
    for seed in (0, 0, 1):
        (theta,) = parameters(50)
        run(make([theta], seed=seed), lambda: (theta**2).sum(), 5)  # noqa: B023
        results.append(theta.detach().clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def reload_state_dict(opt, params, make):
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    fresh = make(params, seed=99, lr=0.5)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


WAYS = {
    "state_dict": reload_state_dict,
    "deepcopy": lambda opt, params, make: copy.deepcopy(opt),
    "pickle": lambda opt, params, make: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_bit_for_bit_the_uninterrupted_run(make, way, dtype):
    def start():
        torch.manual_seed(0)
        theta = torch.nn.Parameter(torch.randn(70).to(dtype))
        opt = make([theta], weight_decay=0.1)
        return theta, opt, torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, 12)

    theta, opt, scheduler = start()
    for _ in range(12):
        opt.step(lambda: (theta.float() ** 2).sum())
        scheduler.step()
    again, opt, scheduler = start()
    for _ in range(5):
        opt.step(lambda: (again.float() ** 2).sum())
        scheduler.step()
    resumed = WAYS[way](opt, [again], make)
    theirs = resumed.param_groups[0]["params"][0]  # deepcopy and pickle copy the parameters too
    later = torch.optim.lr_scheduler.LinearLR(resumed, 1.0, 0.1, 12)
    later.load_state_dict(scheduler.state_dict())
    resumed.param_groups[0]["lr"] = opt.param_groups[0]["lr"]
    for _ in range(7):
        resumed.step(lambda: (theirs.float() ** 2).sum())
        later.step()
    assert torch.equal(theirs, theta) and resumed.param_groups[0]["step"] == 12


def test_a_state_of_another_noise_is_refused(make):
    (theta,) = parameters(3)
    state = make([theta]).state_dict()
    state["param_groups"][0]["noise_spec"] = 1
    with pytest.raises(ValueError, match="noise_spec=1, this zokern makes noise 2"):
        make([theta]).load_state_dict(state)


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4]),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 / (1 + s)),
    "MultiplicativeLR": lambda o: torch.optim.lr_scheduler.MultiplicativeLR(o, lambda s: 0.9),
    "PolynomialLR": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 5),
    "ConstantLR": lambda o: torch.optim.lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, 10, cycle_momentum=False),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-4, 1e-2, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_torchs_schedulers_drive_lr(linear, name):
    (theta,) = parameters(4)
    opt = linear([theta])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = SCHEDULERS[name](opt)
        seen = []
        for _ in range(5):
            before = theta.detach().clone()
            opt.step(lambda: theta.sum())
            seen.append(opt.param_groups[0]["lr"])
            along = sum(float(g) * torch.from_numpy(reference.noise(key, 0, 4)) for key, g in opt.last.terms)
            torch.testing.assert_close(theta.detach() - before, -seen[-1] * along, rtol=1e-3, atol=1e-6)
            scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
    assert len(set(seen)) > 1 or name == "ConstantLR"


def test_lr_may_be_a_tensor(make):
    (a,), (b,) = parameters(5), parameters(5)
    one, other = make([a], lr=1e-2), make([b], lr=torch.tensor(1e-2, dtype=torch.float64))
    run(one, lambda: (a**2).sum(), 3), run(other, lambda: (b**2).sum(), 3)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_step_hooks_run(make):
    (theta,) = parameters(3)
    opt, seen = make([theta]), []
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    opt.step(lambda: theta.sum())
    assert seen == ["pre", "post"]


def test_no_closure_raises_except_at_lr_0(make):
    (theta,) = parameters(3)
    before = theta.detach().clone()
    with pytest.raises(ValueError, match="closure=None.*call step"):
        make([theta]).step()
    assert make([theta], lr=0.0).step(closure=None) is None
    assert torch.equal(theta, before)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_closure_that_raises_leaves_the_weights_restored_and_the_step_undone(make, at, error):
    (theta,) = parameters(500)
    before, calls = theta.detach().clone(), []

    def closure():
        calls.append(0)
        if len(calls) == at + 1:
            raise error("mid-step")
        return theta.sum()

    opt = make([theta])
    with pytest.raises(error, match="mid-step"):
        opt.step(closure)
    assert (theta - before).abs().max() <= RESTORED and opt.param_groups[0]["step"] == 0
    opt.step(lambda: theta.sum())  # and the optimizer goes on


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (lambda t: t * 1, ValueError, r"shape \(500,\): return a 0-dim loss"),
        (lambda t: None, TypeError, "closure returned NoneType: return the loss itself"),
        (lambda t: "0.3", TypeError, "closure returned str"),
        (lambda t: torch.tensor(1j), TypeError, "torch.complex64: return a real number"),
    ],
)
def test_a_closure_that_returns_no_scalar_is_told_so(make, bad, error, message):
    (theta,) = parameters(500)
    before = theta.detach().clone()
    with pytest.raises(error, match=message):
        make([theta]).step(lambda: bad(theta))
    assert (theta - before).abs().max() <= RESTORED


@pytest.mark.parametrize("size", [3.4e38, 1e30, 1e300])
def test_losses_so_large_that_an_update_would_not_be_finite_move_nothing(make, size):
    (theta,) = parameters(500)
    before, calls = theta.detach().clone(), []
    opt = make([theta], lr=10.0)

    def closure():
        calls.append(0)
        return size * (1 if len(calls) % 2 else -1) if len(calls) <= 12 else float((theta.double() ** 2).sum())

    with pytest.warns(RuntimeWarning, match="step 0 was skipped"):
        opt.step(closure)
    assert (theta - before).abs().max() <= RESTORED and opt.skipped == 1
    calls += [0] * 12
    opt.param_groups[0]["lr"] = 1e-5
    for _ in range(3):
        opt.step(closure)
    assert opt.skipped == 1 and theta.isfinite().all() and not torch.equal(theta, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_loss_that_is_not_finite_skips_restores_counts_and_warns_once(make, value, call, kind):
    (theta,) = parameters(500)
    before, calls = theta.detach().clone(), []
    opt = make([theta], weight_decay=0.5)
    drops = opt.drops  # a step without the members whose loss is not finite, and so all of them are here

    def closure():
        calls.append(0)
        return kind(value if len(calls) == call + 1 or drops else 1.0)

    with pytest.warns(RuntimeWarning, match="step 0 was skipped"):
        opt.step(closure)
    assert (theta - before).abs().max() <= RESTORED and opt.last.skipped and opt.skipped == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(lambda: value)
    assert opt.skipped == 2 and opt.param_groups[0]["step"] == 2
    opt.step(lambda: (theta**2).sum())
    assert opt.skipped == 2 and not torch.equal(theta, before)
    fresh = make([theta])
    fresh.load_state_dict(opt.state_dict())
    assert fresh.skipped == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.step(lambda: (theta**2).sum())
    with pytest.warns(RuntimeWarning, match="step 4 was skipped"):
        fresh.step(lambda: value)
    assert fresh.skipped == 3


def test_estimate_measures_and_restores_and_apply_moves(make):
    (a,), (b,) = parameters(50), parameters(50)
    one, other = make([a]), make([b])
    before = a.detach().clone()
    estimate = one.estimate(lambda: (a**2).sum())
    assert (a - before).abs().max() <= RESTORED and one.param_groups[0]["step"] == 0 and one.last is None
    one.apply(estimate)
    other.step(lambda: (b**2).sum())
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert one.param_groups[0]["step"] == 1


def test_logged_floats_replay_a_run(make):
    (theta,) = parameters(300)
    opt, log = make([theta], weight_decay=0.1), []
    for _ in range(20):
        opt.step(lambda: (theta**2).sum())
        log.append([(key.seed, key.step, key.stream, float(g)) for key, g in opt.last.terms])
    (replayed,) = parameters(300)
    player = make([replayed], weight_decay=0.1)
    for record in log:
        player.apply(Estimate([(NoiseKey(*key), g) for *key, g in record]))
    torch.testing.assert_close(replayed, theta, rtol=0, atol=20 * RESTORED)  # without the roundings of the moves in between


def test_frozen_parameters_are_dropped_and_never_move(make):
    a, b, c = parameters(5, 6, 7)
    b.requires_grad_(False)
    before = b.clone()
    opt = make([("a", a), ("b", b), ("c", c)])
    assert opt.layout.names == ["a", "c"] and len(opt.param_groups[0]["params"]) == 2
    opt.step(lambda: a.sum() + b.sum() + c.sum())
    assert torch.equal(b, before)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        make([b])


def test_tied_and_aliased_weights_move_once(linear, explicit):
    (theta,) = parameters(40)
    alias = torch.nn.Parameter(theta.detach().view(5, 8))
    opt = linear([theta, alias])
    before = theta.detach().double()
    opt.step(lambda: theta.sum())
    moved = before - 1e-3 * sum(float(g) * explicit(key, opt.layout)[0] for key, g in opt.last.terms)
    torch.testing.assert_close(theta.detach().double(), moved, rtol=0, atol=1e-6)


def test_autocast_around_a_step_sees_fresh_weights(make):
    """Its cache of 16-bit weights would serve the +eps weights to the second loss, and g would be exactly 0."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64)
    x = torch.randn(8, 64)
    opt = make(layer.parameters(), eps=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = opt.estimate(lambda: layer(x).float().pow(2).mean())
    outside = opt.estimate(lambda: layer(x).pow(2).mean())
    assert torch.all(inside.projected_grad != 0)
    torch.testing.assert_close(inside.projected_grad, outside.projected_grad, rtol=0.2, atol=0.2)


def test_a_group_added_later_joins_at_the_current_step(make):
    a, b = parameters(5, 6)
    opt = make([a], seed=4)
    run(opt, lambda: a.sum(), 4)
    first = opt.layout.first[0]
    opt.add_param_group({"params": [b], "lr": 0.1})
    assert opt.layout.first == [first, 4096] and [g["step"] for g in opt.param_groups] == [4, 4]
    before = b.detach().clone()
    opt.step(lambda: a.sum() + b.sum())
    opt.step(lambda: a.sum() + b.sum())
    assert not torch.equal(b, before) and 5 in {key.step for key, _ in opt.last.terms}


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"lr": -1e-3}, "lr=-0.001 .*pass a number >= 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"eps": 0.0}, "eps=0.0 .*pass a number > 0"),
        ({"eps": -1e-3}, "eps=-0.001"),
        ({"eps": "1e-3"}, "eps='1e-3'"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"q": 0}, "q=0 .*pass an integer >= 1"),
        ({"q": 1.5}, "q=1.5"),
        ({"seed": -1}, r"seed=-1 .*\[0, 2\*\*64\)"),
    ],
)
def test_settings_out_of_range_are_named(bad, message):
    (theta,) = parameters(3)
    with pytest.raises(ValueError, match=message):
        MeZO([theta], **bad)
    with pytest.raises(ValueError, match=message):
        MeZO([{"params": [theta], **bad}])
    opt = MeZO([theta])
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": parameters(2), **bad})
    assert len(opt.param_groups) == 1


def test_one_seed_for_all_groups():
    a, b = parameters(2, 3)
    with pytest.raises(ValueError, match="seed=2 differs"):
        MeZO([{"params": [a], "seed": 1}, {"params": [b], "seed": 2}])


@pytest.mark.parametrize("params", [[], [{"params": []}]])
def test_an_empty_list_of_parameters_is_refused(make, params):
    with pytest.raises(ValueError, match="empty parameter list|no parameter"):
        make(copy.deepcopy(params))  # to a group, torch adds the settings


def test_lr_0_leaves_the_weights_where_they_were(make):
    (theta,) = parameters(5000)
    before = theta.detach().clone()
    opt = make([theta], lr=0.0)
    opt.param_groups[0].update({name: 0.0 for name in ("lr_full",) if name in opt.param_groups[0]})
    run(opt, lambda: (theta**2).sum(), 10)
    assert (theta - before).abs().max() <= 10 * RESTORED * opt.forwards / 2
