"""AdaMeZO: Adam begun as many steps ago as it looks back, with noise that no tensor of the model's size holds."""

import copy
import math

import pytest
import torch

from zokern import AdaMeZO, Copied, Streamed, ZOAdam
from zokern.estimators import Estimate

HISTORY = 4
# Weights round to 1e-7 at each of a few moves of a step; what the rule divides is off by as much of itself, in moves of at most 0.1.
CLOSE = 2e-6
KINDS = {"in-place": lambda net: "in-place", "copied": lambda net: Copied(), "streamed": Streamed}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.last = torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator) / 2)
        self.x = torch.randn(4, 5, generator=generator)

    def forward(self):
        return (self.last(torch.tanh(self.first(self.x))) ** 2).mean()


def groups_of(net):
    """Two groups that differ in all that may differ."""
    first = {"params": list(net.first.parameters()), "betas": (0.7, 0.9), "weight_decay": 0.1, "lr": 3e-2, "eps": 2e-3, "delta": 1e-3}
    return [first, {"params": list(net.last.parameters())}]


def moved(params, window, groups, explicit, layout):
    """Adam's step in float64: of the steps that were not skipped, begun at 0, by the settings of each parameter's group."""
    z = {key: explicit(key, layout) for terms in window for key, _ in terms}
    expected = []
    for i, x in enumerate(params):
        group, m, v = groups[layout.coefficient_groups[layout.group[i]][0]], torch.zeros_like(x), torch.zeros_like(x)
        b1, b2 = group["betas"]
        for terms in window:
            g = sum(float(c if c.dim() == 0 else c[layout.group[i]]) * z[key][i] for key, c in terms)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m, v = m / (1 - b1 ** len(window)), v / (1 - b2 ** len(window))
        x = (1 - group["lr"] * group["weight_decay"]) * x
        expected.append(x - group["lr"] * m / (v.sqrt() + group["delta"]))
    return expected


@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("settings", [{}, {"q": 2}, {"sparsity": 0.4, "q": 3}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_is_adam_over_its_window(kind, settings, noise, explicit):
    """Longer than the window, with two steps that are skipped, both of which it sees and then leaves behind."""
    net, bad = Net(), {3, 6}
    opt = AdaMeZO(groups_of(net), lr=1e-2, history=HISTORY, seed=2**60, noise=noise, perturbation=KINDS[kind](net), **settings)
    live = []
    for step in range(11):
        before = [p.detach().double() for p in opt.layout.params]
        opt.step(lambda: net() * (math.nan if step in bad else 1))  # noqa: B023
        if step not in bad:
            live = [(at, terms) for at, terms in [*live, (step, opt.last.terms)] if at > step - HISTORY]
            before = moved(before, [terms for _, terms in live], opt.param_groups, explicit, opt.layout)
        for p, right in zip(opt.layout.params, before):
            assert (p.detach().double() - right).abs().max() < CLOSE
    assert opt.skipped == 2 and not any("exp_avg" in held for held in opt.state.values())


@pytest.mark.parametrize("settings", [{}, {"bias_correction": False, "q": 2}, {"noise": "rademacher", "sparsity": 0.5}], ids=str)
def test_is_zo_adam_until_it_forgets(settings):
    nets, makers = [Net(), Net()], (AdaMeZO, ZOAdam)
    ours, theirs = (
        make(groups_of(net), lr=1e-2, **settings, **({"history": 5} if make is AdaMeZO else {})) for make, net in zip(makers, nets)
    )
    apart = []
    for _ in range(7):
        ours.step(nets[0])
        theirs.repeat(ours.measurements)
        apart.append(max(float((a - b).detach().abs().max()) for a, b in zip(nets[0].parameters(), nets[1].parameters())))
    assert max(apart[:5]) < 5 * CLOSE < 1e-3 < apart[5]


def test_a_skipped_step_moves_nothing():
    net = Net()
    opt = AdaMeZO(net.parameters(), lr=1e-2, weight_decay=0.1, perturbation=Copied())
    for _ in range(3):
        opt.step(net)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.warns(RuntimeWarning, match="skipped"):
        opt.step(lambda: torch.tensor(math.inf))
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before))


def test_what_is_added_has_no_past():
    """As a ZOAdam has it, whose state of what is added is 0."""
    nets = [Net(), Net()]
    made = [make(net.first.parameters(), lr=1e-2) for make, net in zip((AdaMeZO, ZOAdam), nets)]
    for step in range(6):
        if step == 3:
            for opt, net in zip(made, nets):
                opt.add_param_group({"params": list(net.last.parameters()), "lr": 2e-2})
        made[0].step(nets[0])
        made[1].repeat(made[0].measurements)
        for a, b in zip(nets[0].parameters(), nets[1].parameters()):
            assert (a - b).abs().max() < 5 * CLOSE


def test_history_may_change():
    """What it has forgotten does not come back; from then on it is what it would be had it always looked back so far."""
    nets = [Net(), Net(), Net()]
    changed, *always = (AdaMeZO(net.parameters(), lr=1e-2, history=history) for net, history in zip(nets, (6, 6, 2)))
    for step in range(8):
        if step == 5:
            changed.param_groups[0]["history"] = 2
            assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))
            nets[2].load_state_dict(nets[0].state_dict())
        changed.step(nets[0])
        for opt in always:
            opt.repeat(changed.measurements)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[2].parameters()))
    assert len(changed.param_groups[0]["window"]["keys"]) == 2


def test_an_estimate_counts_by_its_own_keys(explicit):
    """One that is applied again, a step later, is the gradient of both steps."""
    net = Net()
    opt = AdaMeZO([{"params": list(net.parameters())}], lr=1e-2, history=3)
    estimate = opt.estimate(net)
    before = [p.detach().double() for p in opt.layout.params]
    for n in (1, 2):
        opt.apply(Estimate(estimate.terms))
        before = moved(before, [estimate.terms] * n, opt.param_groups, explicit, opt.layout)
    for p, right in zip(opt.layout.params, before):
        assert (p.detach().double() - right).abs().max() < CLOSE


def test_what_is_saved_is_the_window_and_goes_on_to_the_bit():
    net, other = Net(), Net()
    opt = AdaMeZO(groups_of(net), lr=1e-2, history=3, q=2)
    for _ in range(5):
        opt.step(net)
    state = copy.deepcopy(opt.state_dict())
    window = opt.param_groups[1]["window"]
    assert not state["state"] and window["coefficients"].shape == (6, 2) and window["live"].tolist() == [True] * 3
    assert [step for keys in window["keys"] for _, step, _ in keys] == [2, 2, 3, 3, 4, 4]
    fresh = AdaMeZO(groups_of(other), lr=1.0)
    other.load_state_dict(net.state_dict())
    fresh.load_state_dict(state)
    for _ in range(4):
        opt.step(net), fresh.step(other)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))


@pytest.mark.parametrize("history", [0, -1, 1.5, None, "20"])
def test_a_history_that_is_none_is_named(history):
    with pytest.raises(ValueError, match=f"history={history!r} .*pass an integer >= 1"):
        AdaMeZO([torch.nn.Parameter(torch.ones(2))], history=history)
