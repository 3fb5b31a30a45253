"""Theta stays what it is, to the bit, whatever happens to the model and the optimizer between steps and in them."""

import copy

import pytest
import torch
from torch import nn

from zokern import Copied, Layout, MeZO, NoiseKey, Streamed, ops

SIXTEEN = [torch.bfloat16, torch.float16]
KINDS = {"in-place": lambda net: "in-place", "copied": lambda net: Copied(), "copied-own": lambda net: "copied-own", "streamed": Streamed}


def model(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 2)).to(dtype)


def loss_of(net):
    return (net(torch.ones(4, 3, dtype=net[0].weight.dtype)).float() - 1).square().mean()


def trained(kind, dtype=torch.bfloat16, steps=3, make=MeZO, **settings):
    net = model(dtype)
    optimizer = make(net.named_parameters(), lr=1e-2, eps=1e-2, perturbation=KINDS[kind](net), **settings)
    go_on(net, optimizer, steps)
    return net, optimizer


def go_on(net, optimizer, steps=2):
    for _ in range(steps):
        optimizer.step(lambda: loss_of(net))


def theta(net, optimizer):
    """Copies of where theta is kept."""
    return [optimizer.state[p].get("theta", p).detach().clone() for p in net.parameters()]


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN], ids=str)
@pytest.mark.parametrize("kind", ["copied", "copied-own"])
def test_elements_that_nobody_wrote_keep_their_theta(kind, dtype):
    """As where the row of the padding is set to zero after each step."""
    net, optimizer = trained(kind, dtype)
    expected = theta(net, optimizer)
    with torch.no_grad():
        net[0].weight[2] = 0
    expected[0][2] = 0
    optimizer.flush()
    assert same(theta(net, optimizer), expected)


@pytest.mark.parametrize("after", ["another group", "a copy"])
def test_what_is_written_once_the_optimizer_has_been_remade_is_seen(after):
    net, optimizer = trained("copied")
    if after == "another group":
        optimizer.add_param_group({"params": [("more", more := nn.Parameter(torch.ones(3, dtype=torch.bfloat16)))]})
        assert "more" in optimizer.param_groups[1]["param_names"] and bool((more == 1).all())
    else:
        net, optimizer = copy.deepcopy((net, optimizer))
    expected = theta(net, optimizer)
    with torch.no_grad():
        net[0].bias.fill_(2.0)
    expected[1].fill_(2.0)
    optimizer.flush()
    assert same(theta(net, optimizer), expected) and bool((net[0].bias == 2).all())


@pytest.mark.parametrize("now", [torch.float32, *SIXTEEN], ids=str)
@pytest.mark.parametrize("before", [torch.float32, *SIXTEEN], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_another_dtype_goes_on_from_the_same_theta(kind, before, now):
    """And is measured in that dtype."""
    net, optimizer = trained(kind, before)
    held = theta(net, optimizer)
    net.to(now)
    optimizer.flush()
    kept = [t if kind == "copied" else t.to(now) for t in held]
    assert same(theta(net, optimizer), kept)
    assert same(net.parameters(), [t.to(now) for t in kept])

    other = copy.deepcopy(net)
    ops.add_noise_(Layout(kept), [(NoiseKey.of(0, 3), 1e-2)], out=[p.detach() for p in other.parameters()])
    with torch.no_grad():
        expected = loss_of(other).double()
    go_on(net, optimizer, 1)
    assert torch.equal(optimizer.measurements[0], expected)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_a_theta_of_another_dtype_is_loaded_as_that_of_the_model(dtype):
    net, optimizer = trained("copied-own", dtype, rounding="nearest")
    other = model(torch.float32)
    fresh = MeZO(other.named_parameters(), lr=1e-2, eps=1e-2, perturbation="copied-own")
    fresh.load_state_dict(optimizer.state_dict())
    fresh.flush()
    assert same(other.parameters(), [p.float() for p in net.parameters()])
    go_on(other, fresh)


def more(dtype=torch.bfloat16):
    return {"params": [("more", nn.Parameter(torch.ones(3, dtype=dtype)))]}


SAID = {
    "nothing": ({}, "perturbation would have been 'copied', and is 'in-place': make .* or say perturbation='in-place'"),
    "a copy": ({"perturbation": "copied-own"}, "rounding would have been 'stochastic', and is 'nearest': make"),
    "in place": ({"perturbation": "in-place"}, None),
    "a float32 copy": ({"perturbation": "copied"}, None),
    "both": ({"perturbation": "copied-own", "rounding": "nearest"}, None),
}


@pytest.mark.parametrize("case", SAID)
def test_the_first_weights_in_16_bits_are_not_added_to_what_was_chosen_for_others(case):
    said, error = SAID[case]
    net = model(torch.float32)
    optimizer = MeZO(net.named_parameters(), **said)
    before = [*optimizer.param_groups]
    optimizer.add_param_group(more(torch.float32) | {"lr": 1.0})
    if error:
        with pytest.raises(ValueError, match=error):
            optimizer.add_param_group({"params": [("most", nn.Parameter(torch.ones(3).half()))]})
        assert len(optimizer.param_groups) == len(before) + 1
        go_on(net, optimizer)
    else:
        optimizer.add_param_group({"params": [("most", nn.Parameter(torch.ones(3).half()))]})
        assert optimizer.param_groups[2]["perturbation"] == said["perturbation"] and len(optimizer.layout.params) == 8


@pytest.mark.parametrize("kind", ["in-place", "copied-own", "streamed"])
def test_a_run_that_rounds_at_random_goes_on_in_float32(kind):
    """Where it is stored as it is."""
    net, optimizer = trained(kind, rounding="stochastic")
    net.float()
    net, optimizer = copy.deepcopy((net, optimizer))
    go_on(net, optimizer)
    other = model(torch.float32)
    fresh = MeZO(other.named_parameters(), lr=1e-2, eps=1e-2, perturbation=KINDS[kind](other))
    other.load_state_dict(net.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    go_on(net, optimizer), go_on(other, fresh)
    assert same(net.parameters(), other.parameters()) and fresh.param_groups[0]["rounding"] == "stochastic"


@pytest.mark.parametrize("kind", ["copied", "copied-own"])
def test_a_check_leaves_a_theta_that_was_loaded(kind):
    net, optimizer = trained(kind)
    other = copy.deepcopy(net)
    fresh = MeZO(other.named_parameters(), lr=1e-2, eps=1e-2, perturbation=kind)
    fresh.load_state_dict(optimizer.state_dict())
    fresh.check(lambda: loss_of(other))
    assert same(theta(other, fresh), theta(net, optimizer)) and all("theta" in held for held in fresh.state.values())
    go_on(net, optimizer), go_on(other, fresh)
    assert same(theta(other, fresh), theta(net, optimizer))


def test_a_parameter_of_another_shape_is_refused_each_time():
    net, optimizer = trained("copied")
    net[0].bias.data = torch.zeros(9, dtype=torch.bfloat16)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"has shape \(9,\) now, it had \(7,\)"):
            optimizer.flush()
