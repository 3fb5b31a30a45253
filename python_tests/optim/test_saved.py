"""A state is loaded by the optimizer that saved it, and by no other: what does not fit is refused before anything is written."""

import copy
import math
from functools import partial

import pytest
import torch
from hybrid_cases import Net
from optimizer_cases import OPTIMIZERS

from zokern import AdaMeZO, ForwardGradient, Hybrid, MeZO, MeZOSVRG, ZOAdam, splits

MAKE = {**OPTIMIZERS, "ForwardGradient": ForwardGradient}
# Optimizers that differ in the values of their settings alone, which a state brings along.
SAME = [{"MeZO", "MeZO q=2", "MeZO one-sided", "MeZO in place"}, {"ZOSign", "ZOSign scalar"}, {"ZOMomentum", "ZOMomentum bfloat16"}]
SAME += [{"ZOAdam", "ZOAdam signs", "ZOAdam amsgrad bfloat16", "ZOAdam in place"}]
SAME += [{"MeZOSVRG copy", "MeZOSVRG replay", "MeZOSVRG signs", "MeZOSVRG copy in place"}]
SAME += [{"MeZOSVRG copy copied", "MeZOSVRG replay copied"}]
SAME += [{"MeZO sparse", "MeZO signs"}]
SAME += [{"EvolutionStrategies", "EvolutionStrategies rewards"}, {"MEAZO", "MEAZO q=2"}]


def parameters(names=("a", "b"), shapes=((5, 3), (7,))):
    generator = torch.Generator().manual_seed(0)
    return [(name, torch.nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in zip(names, shapes)]


def saved(name, params=None):
    params = parameters() if params is None else params
    optimizer = MAKE[name](params, lr=1e-3)
    optimizer.step(lambda: sum((p**2).sum() for _, p in params))
    return optimizer.state_dict()


@pytest.fixture(scope="module")
def states():
    return {name: saved(name) for name in MAKE}


def untouched(optimizer, params, load, error, match):
    before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    with pytest.raises(error, match=match):
        load()
    after = optimizer.state_dict()
    assert repr(after) == repr(before[0]) and all(torch.equal(p, old) for p, old in zip(params, before[1]))


@pytest.mark.parametrize("mine", MAKE)
@pytest.mark.parametrize("theirs", MAKE)
def test_of_another_optimizer(mine, theirs, states):
    params = parameters()
    optimizer = MAKE[mine](params, lr=1e-3)
    optimizer.step(lambda: sum((p**2).sum() for _, p in params))
    load = lambda: optimizer.load_state_dict(copy.deepcopy(states[theirs]))  # noqa: E731
    if mine == theirs or any({mine, theirs} <= same for same in SAME):
        load()
        optimizer.step(lambda: sum((p**2).sum() for _, p in params))  # KeyError 'state_dtype', once
        assert optimizer.param_groups[0]["step"] == 2
    else:
        kind = type(optimizer).__name__
        another = rf"by another optimizer than this {kind}: it has (no )?\w+"
        match = rf"param_groups\[0\] was saved ({another}|with perturbation='[\w-]+', this {kind})"
        untouched(optimizer, [p for _, p in params], load, ValueError, match)


OTHERS = {
    "another name": (parameters(names=("a", "c")), r"saved with the parameter 'c' where this \w+ has 'b'"),
    "another order": (parameters(names=("b", "a"), shapes=((7,), (5, 3))), "saved with the parameter 'b' where"),
    "another shape": (parameters(shapes=((5, 3), (8,))), r"\['params'\]\[1\] was saved as \(8,\), here it is \(7,\)"),
    "transposed": (parameters(shapes=((3, 5), (7,))), r"\['params'\]\[0\] was saved as \(3, 5\), here it is \(5, 3\)"),
    "one more": (parameters(names="abc", shapes=((5, 3), (7,), (2,))), "was saved with 3 parameters, here are 2"),
    "two groups": ([{"params": [pair]} for pair in parameters()], r"has 2 parameter groups, this \w+ has 1"),
}


@pytest.mark.parametrize("name", ["MeZO", "ZOAdam", "MeZOSVRG copy", "MeZO sparse"])
@pytest.mark.parametrize("other", OTHERS)
def test_of_other_parameters(name, other):
    given, match = OTHERS[other]
    optimizer = MAKE[name](given, lr=1e-3)
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.step(lambda: sum((p**2).sum() for p in flat))
    mine = parameters()
    fresh = MAKE[name](mine, lr=1e-3)
    untouched(fresh, [p for _, p in mine], lambda: fresh.load_state_dict(optimizer.state_dict()), ValueError, match)


def test_a_checkpoint_that_keeps_no_shapes():
    """torch.distributed.checkpoint keeps param_groups and state: those of the state are left."""
    mine = parameters()
    for shapes, fits in ((((5, 3), (7,)), True), (((5, 3), (8,)), False)):
        state = saved("ZOAdam", parameters(shapes=shapes))
        del state["shapes"]
        fresh = ZOAdam(mine, lr=1e-3)
        if fits:
            fresh.load_state_dict(state)
        else:
            match = r"exp_avg of param_groups\[0\]\['params'\]\[1\] was saved as \(8,\)"
            untouched(fresh, [p for _, p in mine], lambda: fresh.load_state_dict(state), ValueError, match)  # noqa: B023


def test_parameters_without_names_fit_those_with():
    state = saved("ZOAdam")
    ZOAdam([p for _, p in parameters()]).load_state_dict(state)


@pytest.mark.parametrize("make", [partial(torch.optim.SGD, lr=1e-3), torch.optim.AdamW], ids=["SGD", "AdamW"])
def test_of_torch(make):
    mine = parameters()
    optimizer = MeZO(mine)
    state = make([p for _, p in parameters()]).state_dict()
    match = r"param_groups\[0\] was not saved by a zokern optimizer: pass what MeZO.state_dict\(\) gave"
    untouched(optimizer, [p for _, p in mine], lambda: optimizer.load_state_dict(state), ValueError, match)


def hybrid(fo=torch.optim.SGD):
    torch.manual_seed(0)
    net = Net().eval()
    return net, Hybrid(net, partial(MeZO, lr=1e-3), lambda params: fo(params, lr=1e-2), splits.Depth(1))


def test_between_hybrids_and_others():
    net, optimizer = hybrid()
    params = list(net.parameters())
    mezo = MeZO(net.named_parameters())
    match = "holds zo, fo, .*, no param_groups and state: pass what MeZO.state_dict"
    untouched(mezo, params, lambda: mezo.load_state_dict(optimizer.state_dict()), ValueError, match)
    match = "was not saved by a Hybrid: it has no first_order, fo"
    untouched(optimizer, params, lambda: optimizer.load_state_dict(mezo.state_dict()), ValueError, match)
    _, adam = hybrid(torch.optim.AdamW)
    match = "saved with an fo that makes AdamW, here it makes SGD"
    untouched(optimizer, params, lambda: optimizer.load_state_dict(adam.state_dict()), ValueError, match)


FORGED = {
    "lr": [math.nan, -1.0, math.inf, "0.1", None, [1.0]],
    "eps": [0.0, math.nan, "x"],
    "weight_decay": [math.inf, {}],
    "q": [0, 1 << 24, 1 << 32, 1.5, None],
    "seed": [-1, 1 << 64, "0"],
    "step": [-1, 1 << 32, 0.5, None],
    "skipped": [-1, math.inf, "x"],
    "estimator": ["three-point", 1],
    "defer": [1.5, "False"],
    "keep": [[], [2.0] * 2, "xy", None],
    "block": [[], None, ["a", "b"], [0, 0, 0]],
    "betas": [(0.9,), (0.9, 1.0), 0.9],
    "trail": [5, {}, {"anchor": 0, "g_full": 1, "good": True, "moves": ()}],
    "window": [
        5,
        {},
        {"keys": (((1, 2, 3),),), "coefficients": torch.zeros(2, 2), "live": torch.tensor([True])},
        {"keys": (((1, 2, 3, 4),),), "coefficients": torch.zeros(1, 2), "live": torch.tensor([True])},
        {"keys": (((1, 2, -3),),), "coefficients": torch.zeros(1, 2), "live": torch.tensor([True])},
        {"keys": (((1, 2, 3),),), "coefficients": torch.zeros(1, 2), "live": torch.tensor([1])},
    ],
}


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("name", FORGED)
def test_a_setting_that_no_state_holds_is_refused_before_anything_changes(name, group):
    makers = {"betas": ZOAdam, "trail": MeZOSVRG, "window": AdaMeZO, "keep": partial(MeZO, sparsity=0.3)}
    params = [torch.nn.Parameter(torch.randn(4)) for _ in range(3)]
    blocks = {"blocks": [[p] for p in params]} if name == "block" else {}
    optimizer = makers.get(name, MeZO)([{"params": params[:2]}, {"params": params[2:]}], **blocks)
    for _ in range(2):
        closures = [lambda: sum((p**2).sum() for p in params)] * (2 if isinstance(optimizer, MeZOSVRG) else 1)
        optimizer.step(*closures)
    state, before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    for value in FORGED[name]:
        state["param_groups"][group][name] = value
        with pytest.raises(ValueError, match=f"the state was changed since it was saved.*{name}"):
            optimizer.load_state_dict(copy.deepcopy(state))
        assert repr(optimizer.state_dict()) == repr(before)
