"""defer=True: the same run in two passes a step, and nobody is shown weights that are not settled without having asked for it."""

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch

from zokern import MeZO, MeZOSVRG, ops


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((40, 7), (3,), (300,))]


def quadratic(params):
    return lambda: sum((p**2).sum() for p in params)


def run(steps, params=None, **settings):
    params = params or parameters()
    opt = MeZO([{"params": params[:2]}, {"params": params[2:], "lr": 2e-3, "eps": 1e-2}], lr=1e-3, weight_decay=0.5, **settings)
    for _ in range(steps):
        opt.step(quadratic(params))
    return params, opt


@pytest.mark.parametrize("q", [1, 3])
def test_the_run_is_the_same(q):
    eager, _ = run(6, q=q)
    deferred, opt = run(6, q=q, defer=True)
    assert any(not torch.equal(a, b) for a, b in zip(eager, deferred))
    opt.flush()
    for a, b in zip(eager, deferred):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6)
    before = [p.detach().clone() for p in deferred]
    opt.flush()
    assert all(torch.equal(a, b) for a, b in zip(before, deferred))


def test_a_step_is_two_passes_and_the_first_of_them_has_two_terms(monkeypatch):
    passes, real = [], ops.add_noise_
    monkeypatch.setattr(
        ops, "add_noise_", lambda layout, terms, *how, **more: (passes.append(len(terms)), real(layout, terms, *how, **more))
    )
    _, opt = run(3, defer=True)
    opt.flush()
    assert passes == [1, 1, 2, 1, 2, 1, 1]


def test_a_skipped_step_moves_nothing():
    params, opt = run(1, defer=True)
    opt.flush()
    before = [p.detach().clone() for p in params]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opt.step(lambda: float("nan"))
    opt.flush()
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(before, params))


@pytest.mark.parametrize(
    "look",
    [
        MeZO.state_dict,
        MeZO.flush,
        copy.copy,
        lambda opt: opt.add_param_group({"params": [torch.ones(3, requires_grad=True)]}),
    ],
)
def test_whoever_looks_through_the_optimizer_sees_settled_weights(look):
    eager, _ = run(2)
    deferred, opt = run(2, defer=True)
    look(opt)
    for a, b in zip(eager, deferred):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("between", [False, True], ids=["between steps", "between the halves"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", [partial(MeZO, defer=True), partial(MeZOSVRG, anchor="copy", q=3)], ids=["MeZO", "MeZOSVRG"])
def test_a_copy_owes_what_is_owed(order, between, copied, make):
    """Whichever is copied first: copy and original are the same run, bit for bit, and ``flush`` brings both to theta."""
    net = torch.nn.Linear(5, 3)
    opt = make(net.parameters(), lr=1e-2, eps=0.1)
    full = lambda net, opt: [lambda: loss_of(net)] * (2 if isinstance(opt, MeZOSVRG) else 1)  # noqa: E731
    for _ in range(2):
        opt.step(*full(net, opt))
    if between:
        opt.measure(*full(net, opt))
    pair = copied((net, opt) if order == "model first" else (opt, net))
    twin, other = pair if order == "model first" else pair[::-1]
    assert next(twin.parameters()) is other.param_groups[0]["params"][0]
    for _ in range(3):
        opt.flush()
        other.flush()
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
        assert all(map(torch.equal, anchors(opt), anchors(other)))
        opt.step(*full(net, opt))
        other.step(*full(twin, other))


def anchors(opt):
    return [opt.state[p].get("anchor", p) for p in opt.layout.params]


def loss_of(net):
    return sum((p.double() ** 2).sum() for p in net.parameters())


def test_estimating_settles():
    eager, reference = run(2)
    deferred, opt = run(2, defer=True)
    assert opt.estimate(quadratic(deferred)).loss == pytest.approx(float(reference.estimate(quadratic(eager)).loss), rel=1e-5)
    for a, b in zip(eager, deferred):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_an_exception_leaves_the_weights_settled_with_the_update_done():
    eager, _ = run(2)
    deferred, opt = run(2, defer=True)
    with pytest.raises(KeyError):
        opt.step(lambda: {}["loss"])
    for a, b in zip(eager, deferred):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_resuming_goes_on_with_the_same_run():
    whole, opt = run(6, defer=True)
    opt.flush()
    params, first = run(3, defer=True)
    state = first.state_dict()
    _, second = run(0, params, defer=True)
    second.load_state_dict(state)
    for _ in range(3):
        second.step(quadratic(params))
    second.flush()
    for a, b in zip(whole, params):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)  # settled in between: one more rounding


@pytest.mark.parametrize("then", [MeZO.flush, lambda opt: opt.step(lambda: 1.0)])
def test_weights_that_were_written_to_meanwhile_are_an_error(then):
    params, opt = run(1, defer=True)
    with torch.no_grad():
        params[0].copy_(torch.zeros_like(params[0]))
    with pytest.raises(RuntimeError, match="the update of step 0 was still pending .*call flush"):
        then(opt)
    assert (params[0] == 0).all()


def test_only_a_bool_will_do():
    with pytest.raises(ValueError, match="defer='yes' in param_groups.*True or False"):
        MeZO(parameters(), defer="yes")
