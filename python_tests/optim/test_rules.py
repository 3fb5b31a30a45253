"""Every rule and estimator against textbooks in float64 with explicit z; oracle noise, no kernel of zokern's."""

import math

import pytest
import torch

from zokern import AdaMeZO, MeZO, NoiseKey, ZOAdam, ZOConservative, ZOMomentum, ZOSign

STEPS, SEED = 6, 11
SIZES = (37, 5, 61)


def start(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n).to(dtype)) for n in SIZES]


def loss_of(params):
    """Smooth, not quadratic, and every parameter's gradient depends on the others."""
    a, b, c = (p.double() for p in params)
    return (a**2).sum() + torch.sin(b).sum() * c.mean() + (c**4).sum() / 10 + a.mean() * c.sum()


def estimated(params, step, explicit, layout, q=1, one_sided=False, blocks=None, eps=1e-2):
    """The mean over q directions of difference * z, as tensors; each block by itself where there are blocks."""
    total = [torch.zeros_like(p) for p in params]
    for probe in range(q):
        z = explicit(NoiseKey(SEED, step, probe), layout)
        for block in blocks or [range(len(params))]:
            shifted = lambda c, block=block, z=z: [p + c * d if i in block else p for i, (p, d) in enumerate(zip(params, z))]  # noqa: E731
            if one_sided:
                g = (loss_of(shifted(eps)) - loss_of(params)) / eps
            else:
                g = (loss_of(shifted(eps)) - loss_of(shifted(-eps))) / (2 * eps)
            for i in block:
                total[i] += g * z[i] / q
    return total


# Each: (params, gradient, state, t, lr) -> params; the state is the rule's own dict, t counts from 1.
def sgd(params, grad, state, t, lr):
    return [p - lr * g for p, g in zip(params, grad)]


def sign(params, grad, state, t, lr):
    return [p - lr * g.sign() for p, g in zip(params, grad)]


def momentum(params, grad, state, t, lr):
    m = state["m"] = [0.7 * old + g for old, g in zip(state.get("m", [0] * 3), grad)]
    return [p - lr * x for p, x in zip(params, m)]


def adam(params, grad, state, t, lr, amsgrad=False, corrected=True):
    b1, b2, delta = 0.8, 0.95, 1e-3
    zero = [torch.zeros_like(p) for p in params]
    m = state["m"] = [b1 * old + (1 - b1) * g for old, g in zip(state.get("m", zero), grad)]
    v = state["v"] = [b2 * old + (1 - b2) * g**2 for old, g in zip(state.get("v", zero), grad)]
    w = state["w"] = [torch.maximum(old, new) for old, new in zip(state.get("w", zero), v)] if amsgrad else v
    c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1, 1)
    return [p - lr * (x / c1) / ((y / c2).sqrt() + delta) for p, x, y in zip(params, m, w)]


def window(params, grad, state, t, lr, corrected=True):
    """Adam over the gradients of the last four steps alone."""
    grads, begun, steps = state.setdefault("grads", []), {}, 4
    grads.append(grad)
    for n, past in enumerate(grads[-steps:-1]):
        adam(params, past, begun, n + 1, lr)
    return adam(params, grad, begun, min(t, steps), lr, corrected=corrected)


ADAM = dict(lr=1e-2, betas=(0.8, 0.95), delta=1e-3)
RULES = {
    "MeZO": (MeZO, sgd, dict(lr=1e-3)),
    "ZOSign": (ZOSign, sign, dict(lr=1e-2)),
    "ZOMomentum": (ZOMomentum, momentum, dict(lr=1e-3, momentum=0.7)),
    "ZOAdam": (ZOAdam, adam, ADAM),
    "ZOAdam amsgrad": (ZOAdam, lambda *a: adam(*a, amsgrad=True), dict(ADAM, amsgrad=True)),
    "ZOAdam uncorrected": (ZOAdam, lambda *a: adam(*a, corrected=False), dict(ADAM, bias_correction=False)),
    "AdaMeZO": (AdaMeZO, window, dict(ADAM, history=4)),
    "AdaMeZO uncorrected": (AdaMeZO, lambda *a: window(*a, corrected=False), dict(ADAM, history=4, bias_correction=False)),
}
ESTIMATORS = {
    "two-point": {},
    "q=3": dict(q=3),
    "one-sided": dict(one_sided=True, q=2),
    "blocks": dict(blocks=[[1], [0, 2]]),
    "blocks, one-sided, q=2": dict(blocks=[[0], [1], [2]], one_sided=True, q=2),
}


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("sparsity", [None, 0.4])
@pytest.mark.parametrize("how", ESTIMATORS)
@pytest.mark.parametrize("name", RULES)
def test_against_the_textbook(name, how, sparsity, weight_decay, explicit):
    make, rule, settings = RULES[name]
    how = ESTIMATORS[how]
    params = start()
    blocks = how.get("blocks") and [[params[i] for i in block] for block in how["blocks"]]
    estimator = "one-sided" if how.get("one_sided") else "two-point"
    settings = dict(settings, weight_decay=weight_decay, q=how.get("q", 1), estimator=estimator, blocks=blocks, sparsity=sparsity)
    opt = make(params, eps=1e-2, seed=SEED, **settings)
    values, state, lr, calls = [p.detach().double() for p in params], {}, settings["lr"], []
    for t in range(1, STEPS + 1):
        grad = estimated(values, t - 1, explicit, opt.layout, **how)
        values = rule([(1 - lr * weight_decay) * p for p in values], grad, state, t, lr)
        opt.step(lambda: calls.append(1) or loss_of(params))
    assert len(calls) == STEPS * opt.forwards
    for p, value in zip(params, values):
        # Weights are rounded to 1e-7 at each of a few moves; a loss near 100 then is off by 1e-6, g (about 30) by 1e-4 or 3e-6 of it, and
        # what the rule makes of it by as much of a move of at most 0.1 a step.
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=2e-5)


def test_the_scalars_sign(explicit):
    params = start()
    opt = ZOSign(params, lr=1e-2, eps=1e-2, seed=SEED, form="scalar", q=2)
    values = [p.detach().double() for p in params]
    for step in range(STEPS):
        opt.step(lambda: loss_of(params))
        for probe in range(2):
            z = explicit(NoiseKey(SEED, step, probe), opt.layout)
            s = torch.sign(opt.last.projected_grad[probe])
            values = [p - 1e-2 / 2 * s * d for p, d in zip(values, z)]
    for p, value in zip(params, values):
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [ZOMomentum, ZOAdam, lambda p, **kw: ZOAdam(p, amsgrad=True, **kw)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_a_skipped_step_leaves_the_state_and_does_not_count(make, dtype, state_dtype):
    """t counts steps that moved; what float32 state holds is the same to the bit, what bfloat16 holds rounds to itself."""
    params = start(dtype)
    opt, bad = make(params, lr=1e-2, state_dtype=state_dtype, weight_decay=0.1), []
    closure = lambda: torch.tensor(math.nan) if bad else loss_of(params)  # noqa: E731
    opt.step(closure)
    before = {name: [opt.state[p][name].clone() for p in params] for name in opt.slots}
    weights = [p.detach().clone() for p in params]
    bad.append(1)
    with pytest.warns(RuntimeWarning, match="skipped"):
        opt.step(closure)
    assert opt.skipped == 1
    for name, held in before.items():
        for p, old in zip(params, held):
            assert opt.state[p][name].dtype == state_dtype and torch.equal(opt.state[p][name], old)
    for p, old in zip(params, weights):
        assert (p.detach().float() - old.float()).abs().max() <= 4 * torch.finfo(dtype).eps * old.float().abs().max()


def test_state_in_float32_survives_a_resume_of_bfloat16_weights():
    params = start(torch.bfloat16)
    opt = ZOAdam(params, lr=1e-2)
    opt.step(lambda: loss_of(params))
    fresh = ZOAdam(start(torch.bfloat16), lr=1.0)
    fresh.load_state_dict(opt.state_dict())
    for p, q in zip(params, fresh.layout.params):
        assert fresh.state[q]["exp_avg"].dtype == torch.float32
        assert torch.equal(fresh.state[q]["exp_avg"], opt.state[p]["exp_avg"])


@pytest.mark.parametrize("estimator, forwards", [("two-point", 5), ("one-sided", 4)])
def test_the_conservative_step_goes_where_the_loss_is_lowest(estimator, forwards):
    """Of theta - lr g z, theta + lr g z and theta: told by evaluating all three in float64."""
    taken = set()
    for seed in range(12):
        params = start()
        opt = ZOConservative(params, lr=[3e-3, 6e-2][seed % 2], eps=1e-2, seed=seed, estimator=estimator)
        assert opt.forwards == forwards
        before = [p.detach().double() for p in params]
        probe = MeZO(start(), eps=1e-2, seed=seed, estimator=estimator)
        ((key, g),) = probe.estimate(lambda: loss_of(probe.layout.params)).terms  # noqa: B023
        from zokern.noise import reference

        z = [torch.from_numpy(reference.normal(key, first, p.numel())).double() for p, first in zip(params, opt.layout.first)]
        lr = opt.param_groups[0]["lr"]
        candidates = {s: [p + s * lr * g * d for p, d in zip(before, z)] for s in (-1, 1, 0)}
        best = min(candidates, key=lambda s: loss_of(candidates[s]))
        opt.step(lambda: loss_of(params))  # noqa: B023
        taken.add(best)
        for p, value in zip(params, candidates[best]):
            torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=1e-5)
    assert {-1, 0} <= taken


def test_a_candidate_that_is_not_finite_is_never_taken():
    params, calls = start(), []

    def closure():
        calls.append(1)
        return torch.tensor(math.inf if len(calls) in (3, 4) else 1.0 * len(calls))

    before = [p.detach().clone() for p in params]
    ZOConservative(params, lr=1e-2).step(closure)
    assert len(calls) == 5
    for p, old in zip(params, before):
        torch.testing.assert_close(p.detach(), old, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "make, bad, message",
    [
        (ZOMomentum, dict(momentum=1.0), r"momentum=1.0 .*pass a number in \[0, 1\)"),
        (ZOAdam, dict(betas=(0.9, 1.0)), r"betas=\(0.9, 1.0\)"),
        (ZOAdam, dict(betas=0.9), "betas=0.9 .*two numbers"),
        (ZOAdam, dict(delta=0.0), "delta=0.0 .*> 0"),
        (ZOAdam, dict(state_dtype=torch.float16), "state_dtype=torch.float16 .*bfloat16"),
        (ZOAdam, dict(amsgrad="yes"), "amsgrad='yes'"),
        (ZOSign, dict(form="vector"), 'form=.vector. .*"element" or "scalar"'),
        (MeZO, dict(estimator="central"), "estimator='central'"),
    ],
)
def test_settings_out_of_range_are_named(make, bad, message):
    with pytest.raises(ValueError, match=message):
        make(start(), **bad)


@pytest.mark.parametrize("name", RULES)
def test_distributed_checkpointing_resumes(name):
    """It makes the state by a step without a closure at lr = 0, and names parameters instead of numbering them."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    make, _, settings = RULES[name]
    models = [torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)]
    first, second = (make(model.named_parameters(), **settings) for model in models)
    x = torch.ones(5)
    for _ in range(3):
        first.step(lambda: (models[0](x) ** 2).sum())
    models[1].load_state_dict(models[0].state_dict())
    set_optimizer_state_dict(models[1], second, get_optimizer_state_dict(models[0], first))
    first.step(lambda: (models[0](x) ** 2).sum())
    second.step(lambda: (models[1](x) ** 2).sum())
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))
