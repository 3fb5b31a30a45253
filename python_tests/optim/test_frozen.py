"""Who is trained is settled when an optimizer is made: to freeze or unfreeze a parameter afterwards stops it, with nothing moved."""

import copy
import pickle

import pytest
import torch
from hybrid_cases import Net
from optimizer_cases import OPTIMIZERS

import zokern
from zokern import ForwardGradient, Hybrid, MeZO, splits
from zokern.estimators import Estimate

MAKE = {**OPTIMIZERS, "ForwardGradient": ForwardGradient}


@pytest.fixture(params=MAKE)
def make(request):
    return lambda params, **settings: MAKE[request.param](params, lr=1e-2, **settings)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1)).eval()
    model[0].bias.requires_grad_(False)
    return model


@pytest.fixture
def loss_of(model):
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
    return lambda: (model(x) - x.sum(1, keepdim=True)).square().mean()


def same(model, before):
    return all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


CALLS = {
    "step": lambda opt, closure: opt.step(closure),
    "begin": lambda opt, closure: opt.measure(closure),
    "estimate": lambda opt, closure: opt.estimate(closure),
    "repeat": lambda opt, closure: opt.repeat([1.0] * opt.measurements_due),
    "apply": lambda opt, closure: opt.apply(Estimate([(zokern.NoiseKey(0), 1.0)])),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_parameter_that_is_frozen_later(make, call, model, loss_of):
    optimizer = make(model.named_parameters())
    optimizer.step(loss_of)
    model[0].weight.requires_grad_(False)
    before, calls = copy.deepcopy(model.state_dict()), []
    with pytest.raises(RuntimeError, match=r"step 1: '0.weight' has been frozen .* make a new optimizer of what is to be trained"):
        call(optimizer, lambda: calls.append(1) or loss_of())
    assert same(model, before) and not calls and optimizer.param_groups[0]["step"] == 1
    model[0].weight.requires_grad_(True)
    optimizer.step(loss_of)
    assert not torch.equal(model[0].weight, before["0.weight"])


AGAIN = {"as it is": lambda x: x, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
def test_a_parameter_that_is_unfrozen_later(make, again, model, loss_of):
    optimizer = make(list(model.named_parameters()))
    optimizer.step(loss_of)
    model, optimizer = again((model, optimizer))
    model[0].bias.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"step 1: '0.bias' was frozen .*add_param_group"):
        optimizer.step(lambda: 1.0)
    assert same(model, before)


def test_an_unfrozen_parameter_that_is_added(model, loss_of):
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    optimizer.step(loss_of)
    before = model[0].bias.requires_grad_(True).detach().clone()
    optimizer.add_param_group({"params": [("0.bias", model[0].bias)]})
    optimizer.step(loss_of)
    assert not torch.equal(model[0].bias, before)


def test_tensors_without_names(model, loss_of):
    optimizer = MeZO(model.parameters(), lr=1e-2)
    model[2].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"a parameter of shape \(1, 7\) has been frozen"):
        optimizer.step(loss_of)


def test_a_log_of_a_run_that_was_stopped_so(model, loss_of, tmp_path):
    """It holds the steps that were made, and is replayed onto frozen parameters, which stay frozen."""
    base = copy.deepcopy(model)
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    with zokern.record(optimizer, tmp_path / "log.jsonl"):
        for _ in range(3):
            optimizer.step(loss_of)
        model[0].weight.requires_grad_(False)
        with pytest.raises(RuntimeError, match="has been frozen"):
            optimizer.step(loss_of)
    for p in base.parameters():
        p.requires_grad_(False)
    trajectory = zokern.Trajectory.read(tmp_path / "log.jsonl")
    trajectory.replay(base)
    assert len(trajectory) == 3 and same(base, model.state_dict())
    assert not any(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("zo", [None, lambda params: MeZO(params, lr=1e-3)], ids=["zo=None", "MeZO"])
@pytest.mark.parametrize("frozen", [True, False])
def test_hybrid(zo, frozen):
    torch.manual_seed(0)
    net = Net().eval()
    names = dict(net.named_parameters())
    first, last = list(names)[0], list(names)[-1]
    names[first].requires_grad_(frozen)
    hybrid = Hybrid(net, zo, lambda params: torch.optim.SGD(params, lr=1e-2), splits.Depth(1))
    batch = torch.randint(0, 11, (5, 3))
    hybrid.step(lambda: net(batch))
    changed = last if frozen else first
    names[changed].requires_grad_(not frozen)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=f"step 1: '{changed}' (has been|was) frozen"):
        hybrid.step(lambda: net(batch))
    assert same(net, before)
