"""A step in two halves, and a step again from its measurements: the same bits as a step in one."""

import math
from functools import partial

import pytest
import torch
from optimizer_cases import OPTIMIZERS, Half, count_of

from zokern import ForwardGradient, ops
from zokern.estimators import Estimate

SETTINGS = dict(lr=1e-4, eps=1e-2, seed=3)
STEPS = 7


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((3, 5), (1023,), (0,), (7,))]


def closure_of(params, at=None, value=math.nan):
    """A loss that differs at every call, and at call number ``at`` is ``value``."""
    calls = [0]

    def closure():
        calls[0] += 1
        loss = sum((p.double() - 1).square().sum() for p in params) * (1 + 0.01 * (calls[0] % 5))
        return loss * value if calls[0] == at else loss

    return closure


def bits(params):
    return [p.detach().view(torch.int32 if p.dtype == torch.float32 else torch.int16).clone() for p in params]


def run(make, dtype, take, at=None):
    params = parameters(dtype)
    optimizer = make(params, **SETTINGS)
    closure = closure_of(params, at)
    taken = []
    for _ in range(STEPS):
        loss = take(optimizer, closure)
        taken.append((loss, bits(params)))
    return optimizer, taken


def halves(optimizer, closure):
    optimizer.measure(closure)
    return optimizer.step()


@pytest.mark.filterwarnings("ignore:step .* was skipped")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_halves_are_a_step(name, dtype):
    make = OPTIMIZERS[name]
    whole, expected = run(make, dtype, lambda optimizer, closure: optimizer.step(closure), at=6)
    split, found = run(make, dtype, halves, at=6)
    for (loss, theta), (loss_, theta_) in zip(expected, found):
        assert torch.equal(torch.nan_to_num(loss), torch.nan_to_num(loss_))
        assert all(map(torch.equal, theta, theta_))
    assert count_of(whole) == count_of(split) == 1


@pytest.mark.filterwarnings("ignore:step .* was skipped")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_readings_repeat_a_step(name, dtype):
    read = []

    def step(optimizer, closure):
        loss = optimizer.step(closure)
        read.append([float(measurement) for measurement in optimizer.measurements])
        return loss

    _, expected = run(OPTIMIZERS[name], dtype, step, at=6)
    later = iter(read)
    again, found = run(OPTIMIZERS[name], dtype, lambda optimizer, closure: optimizer.repeat(next(later)), at=6)
    for (loss, theta), (loss_, theta_) in zip(expected, found):
        assert torch.equal(torch.nan_to_num(loss), torch.nan_to_num(loss_))
        assert all(map(torch.equal, theta, theta_))
    assert count_of(again) == 1


def test_a_forward_gradient_is_repeated():
    a, b = parameters()[:2], parameters()[:2]
    first, second = (ForwardGradient(p, lr=1e-3, q=2) for p in (a, b))
    for _ in range(3):
        loss = first.step(lambda: sum((p - 1).square().sum() for p in a))
        assert len(first.measurements) == 4
        assert torch.equal(second.repeat(first.measurements), loss)
        assert all(map(torch.equal, bits(a), bits(b)))


# name -> how many losses are agreed on at once in a step, where they are not all of them
APART = {"ZOConservative": [2, 3], "ForwardGradient": [2]} | {name: [2, 2] for name in OPTIMIZERS if "SVRG" in name}


@pytest.mark.parametrize("name", [*OPTIMIZERS, "ForwardGradient"])
def test_processes_agree_on_all_losses_of_a_step_at_once(name):
    make = OPTIMIZERS.get(name, lambda params, eps, **settings: ForwardGradient(params, **settings))
    halves_seen = []

    def step(optimizer, closure):
        half = Half(closure)
        loss = optimizer.step(half)
        halves_seen.append((half.asked, optimizer.forwards))
        return loss

    _, expected = run(make, torch.float32, lambda optimizer, closure: optimizer.step(closure))
    parted, found = run(make, torch.float32, step)
    for (loss, theta), (loss_, theta_) in zip(expected, found):
        assert torch.equal(loss, loss_) and all(map(torch.equal, theta, theta_))
    asked, forwards = halves_seen[1]
    assert asked == APART.get(name, [forwards])
    assert len(parted.measurements) == sum(halves_seen[-1][0])


@pytest.mark.parametrize("name", ["MeZO", "MeZO q=2", "ZOConservative", "ZOAdam", "MeZOSVRG replay"])
def test_halves_are_as_many_passes_as_a_step(name, monkeypatch):
    passes = []

    def counted(op, *arguments, **named):
        passes.append(op)
        op(*arguments, **named)

    for op in ("add_noise_", "update_"):
        monkeypatch.setattr(ops, op, partial(counted, getattr(ops, op)))
    counts = []
    for take in (lambda optimizer, closure: optimizer.step(closure), halves):
        passes.clear()
        run(OPTIMIZERS[name], torch.float32, take)
        counts.append(len(passes))
    assert counts[0] == counts[1] > 0


def test_flush_between_the_halves_and_a_step_that_never_comes():
    params, same = parameters(), parameters()
    begun, plain = (OPTIMIZERS["MeZO"](p, **SETTINGS) for p in (params, same))
    closure = closure_of(params)
    begun.measure(closure)
    assert not torch.equal(params[1], same[1])
    begun.flush()
    assert torch.allclose(params[1], same[1], atol=1e-6)
    begun.step()
    plain.step(closure_of(same))
    assert torch.allclose(params[1], same[1], atol=1e-6) and begun.param_groups[0]["step"] == 1
    begun.measure(closure)
    begun.step(closure)  # the estimate that was begun is dropped
    assert begun.param_groups[0]["step"] == 2
    with pytest.raises(ValueError, match=r"closure=None: .*as transformers' Trainer does, take zokern.hf.ZOTrainer"):
        begun.step()


def test_weights_changed_between_the_halves_are_noticed():
    params = parameters()
    optimizer = OPTIMIZERS["MeZO"](params, **SETTINGS)
    optimizer.measure(closure_of(params))
    with torch.no_grad():
        params[1].zero_()
    with pytest.raises(RuntimeError, match="were changed"):
        optimizer.step()


@pytest.mark.parametrize("name, due", [("MeZO", 2), ("MeZO q=2", 4), ("MeZO one-sided", 3), ("MeZOSVRG copy", 2), ("ZOConservative", 5)])
def test_readings_of_another_number_are_refused(name, due):
    params = parameters()
    before = bits(params)
    optimizer = OPTIMIZERS[name](params, **SETTINGS)
    for given in (due - 1, due + 1):
        with pytest.raises(ValueError, match=rf"measurements of step 0: {given}, but a step of \w+ has {due}"):
            optimizer.repeat([1.0] * given)
    assert all(map(torch.equal, before, bits(params)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_estimate_without_terms_is_a_gradient_of_zero(name):
    ends = []
    for terms in (0, 1):
        params = parameters()
        optimizer = OPTIMIZERS[name](params, **SETTINGS, weight_decay=0.1)
        closure = closure_of(params)
        optimizer.step(closure)
        optimizer.apply(Estimate([(optimizer.last.terms[0][0], 0.0)][:terms]))
        optimizer.step(closure)
        ends.append(bits(params))
    assert all(map(torch.equal, *ends))
