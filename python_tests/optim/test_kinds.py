"""The kinds of perturbation: what the model computes with, where theta is, and that theta moves by updates alone."""

import copy
import io
import pickle

import pytest
import torch
from optimizer_cases import OPTIMIZERS, SVRG

import zokern
from zokern import Copied, ForwardGradient, Layout, MeZO, NoiseKey, ops
from zokern.noise.spec import ROUNDING, WEIGHTS

SIXTEEN = [torch.bfloat16, torch.float16]
EPS, LR = 1e-3, 1e-3


def parameters(dtype=torch.bfloat16):
    """Awkward ones: of several pieces, transposed, empty, one element."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(dtype)) for shape in ((3, 5), (4500,), (0,), (6, 4), ())]
    made[3].data = made[3].data.t()
    return made


def loss_of(params):
    return sum((p.float() + 0.01).square().sum() for p in params)


def bits(tensors):
    return [t.detach().contiguous().view(torch.int16 if t.itemsize == 2 else torch.int32).clone() for t in tensors]


def same(a, b):
    return all(map(torch.equal, bits(a), bits(b)))


def expected(theta, terms, dtype, rounding="nearest"):
    """theta + sum c z in the dtype, by the NumPy reference, out of place."""
    out = [torch.empty_like(t, dtype=dtype) for t in theta]
    with zokern.use_backend("reference"):
        ops.add_noise_(Layout(theta), terms, out=out, rounding=rounding)
    return out


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("kind", [Copied(), Copied(dtype=None)], ids=repr)
def test_a_step_of_copied_weights_by_hand(kind, dtype):
    params, seen = parameters(dtype), []
    theta = [p.detach().to(kind.dtype or dtype, copy=True) for p in params]
    optimizer = MeZO(params, lr=LR, eps=EPS, perturbation=kind)

    def closure():
        seen.append([p.detach().clone() for p in params])
        return loss_of(params)

    for step in range(3):
        optimizer.step(closure)
        key = NoiseKey.of(0, step)
        assert same(seen[0], expected(theta, [(key, EPS)], dtype)) and same(seen[1], expected(theta, [(key, -EPS)], dtype))
        seen.clear()
        g = float(optimizer.last.projected_grad)
        rounding = NoiseKey.of(0, step, ROUNDING, WEIGHTS) if kind.dtype is None else "nearest"
        theta = expected(theta, [(key, -LR * g)], theta[0].dtype, rounding)
        assert same([optimizer.state[p]["theta"] for p in params], theta)
        assert same(params, [t.to(dtype) for t in theta])


NOT_IN_PLACE = [name for name in OPTIMIZERS if "in place" not in name and name != "ZOConservative"]


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("name", NOT_IN_PLACE)
def test_weights_do_not_drift(name, dtype):
    """Where nothing is to be learnt they are the same bits after any number of steps."""
    params = parameters(dtype)
    before = bits(params)
    optimizer = OPTIMIZERS[name](params, lr=0.0, eps=EPS, **({"lr_full": 0.0} if "SVRG" in name else {}))
    for _ in range(20):
        optimizer.step(lambda: loss_of(params))
    optimizer.flush()
    assert all(map(torch.equal, before, bits(params)))


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_in_place_they_do_which_has_to_be_asked_for(dtype):
    params = parameters(dtype)
    before = bits(params)
    optimizer = MeZO(params, lr=0.0, eps=EPS, perturbation="in-place")
    for _ in range(20):
        optimizer.step(lambda: loss_of(params))
    assert not all(map(torch.equal, before, bits(params))) and optimizer.param_groups[0]["rounding"] == "nearest"


DEFAULTS = {
    "float32": (torch.float32, {}, "in-place", "nearest"),
    "bfloat16": (torch.bfloat16, {}, "copied", "nearest"),
    "bfloat16 in place": (torch.bfloat16, dict(perturbation="in-place"), "in-place", "nearest"),
    "bfloat16 in place, stochastic": (torch.bfloat16, dict(perturbation="in-place", rounding="stochastic"), "in-place", "stochastic"),
    "bfloat16 own": (torch.bfloat16, dict(perturbation=Copied(dtype=None)), "copied-own", "stochastic"),
    "bfloat16 own, nearest": (torch.bfloat16, dict(perturbation="copied-own", rounding="nearest"), "copied-own", "nearest"),
    "float32 copied": (torch.float32, dict(perturbation="copied"), "copied", "nearest"),
}


@pytest.mark.parametrize("case", DEFAULTS)
def test_what_is_chosen_where_nothing_is_said(case):
    dtype, given, kind, rounding = DEFAULTS[case]
    group = MeZO(parameters(dtype), **given).param_groups[0]
    assert (group["perturbation"], group["rounding"]) == (kind, rounding)


@pytest.mark.parametrize("case", DEFAULTS)
def test_a_copy_that_nobody_asked_for_is_told(case, recwarn):
    dtype, given, _, _ = DEFAULTS[case]
    optimizer = MeZO(parameters(dtype), **given)
    told = [w for w in recwarn if "there are weights in 16 bits" in str(w.message)]
    assert len(told) == (case == "bfloat16")
    if told:
        assert "in float32 beside them, 0.0 MiB: pass perturbation=zokern.Streamed(model), which" in str(told[0].message)
        assert told[0].filename == __file__
        copy.deepcopy(optimizer), optimizer.load_state_dict(optimizer.state_dict())
        MeZO([torch.nn.Parameter(torch.empty(1024, 1536, dtype=dtype)), torch.nn.Parameter(torch.empty(4))])
        assert "beside them, 6.0 MiB" in str(recwarn[-1].message) and len(recwarn) == len(told) + 1


def test_a_forward_gradient_perturbs_nothing_and_so_stays_in_place():
    for dtype, rounding in ((torch.float32, "nearest"), (torch.bfloat16, "stochastic")):
        group = ForwardGradient(parameters(dtype)).param_groups[0]
        assert (group["perturbation"], group["rounding"]) == ("in-place", rounding)


WRONG = {
    "a kind": (
        dict(perturbation="beside"),
        ValueError,
        r'perturbation=\'beside\': pass "in-place", "copied", "copied-own", zokern',
    ),
    "a class": (dict(perturbation=Copied), TypeError, r"perturbation is <class .*: pass zokern.Copied\(\)"),
    "a rounding": (dict(rounding="down"), ValueError, 'rounding=\'down\' in param_groups.0.: pass None, "nearest" or "stochastic"'),
    "float32": (
        dict(rounding="stochastic"),
        ValueError,
        'rounding="stochastic": the weights are kept in float32, which',
    ),
    "streamed": (dict(perturbation="streamed"), RuntimeError, r"names no model .* pass zokern.Streamed\(model\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused(case):
    given, error, message = WRONG[case]
    params = parameters(torch.float32)
    before = bits(params)
    with pytest.raises(error, match=message):
        MeZO(params, **given).step(lambda: loss_of(params))
    assert all(map(torch.equal, before, bits(params)))


def test_stochastic_rounding_of_a_float32_copy_is_refused():
    with pytest.raises(ValueError, match="the weights are kept in float32"):
        MeZO(parameters(), perturbation=Copied(), rounding="stochastic")
    with pytest.raises(ValueError, match=r"Copied\(dtype=torch.bfloat16\): pass torch.float32, or None"):
        Copied(dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["MeZO copied", "MeZO copied own", "ZOAdam copied", "MeZOSVRG copy copied"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("half", [False, True], ids=["between steps", "between halves"])
def test_a_copy_of_model_and_optimizer_goes_on_alike(name, way, half):
    params = torch.nn.ParameterList(parameters())
    optimizer = OPTIMIZERS[name](params.parameters(), lr=LR, eps=EPS)
    for _ in range(3):
        optimizer.step(lambda: loss_of(params))
    if half:
        optimizer.measure(lambda: loss_of(params))
    other, twin = copy.deepcopy((params, optimizer)) if way == "deepcopy" else pickle.loads(pickle.dumps((params, optimizer)))
    for model, its in ((params, optimizer), (other, twin)):
        for _ in range(2):
            its.step(lambda: loss_of(model))  # noqa: B023
    assert same(params, other) and not same(params, parameters())


@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_model_and_state_are_loaded_in_either_order(first):
    """The state holds what 16 bits cannot: a theta in float32, which stays."""
    trained, fresh = torch.nn.ParameterList(parameters()), torch.nn.ParameterList(parameters())
    optimizer, other = (MeZO(model.parameters(), lr=LR, eps=EPS, perturbation="copied") for model in (trained, fresh))
    for _ in range(3):
        optimizer.step(lambda: loss_of(trained))
        other.step(lambda: -loss_of(fresh))
    buffer = io.BytesIO()
    torch.save((trained.state_dict(), optimizer.state_dict()), buffer)
    buffer.seek(0)
    model_state, state = torch.load(buffer, weights_only=True)
    loads = [lambda: fresh.load_state_dict(model_state), lambda: other.load_state_dict(state)]
    for load in loads if first == "model" else loads[::-1]:
        load()
    other.flush()
    assert same(trained, fresh)
    for model, its in ((trained, optimizer), (fresh, other)):
        its.step(lambda: loss_of(model))  # noqa: B023
    assert same(trained, fresh)
    assert same([optimizer.state[p]["theta"] for p in trained], [other.state[p]["theta"] for p in fresh])


def test_what_is_written_to_the_model_between_steps_is_theta():
    params = parameters()
    optimizer = MeZO(params, lr=LR, eps=EPS)
    optimizer.step(lambda: loss_of(params))
    untouched = optimizer.state[params[1]]["theta"].clone()
    with torch.no_grad():
        params[0].fill_(0.5)
    optimizer.step(lambda: torch.zeros(()))  # a step that moves nothing
    assert torch.equal(optimizer.state[params[0]]["theta"], torch.full((3, 5), 0.5)) and bool((params[0] == 0.5).all())
    assert torch.equal(optimizer.state[params[1]]["theta"], untouched)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("kind, share", [("in-place", 0.1), ("copied-own", None), ("copied", None)])
def test_small_updates_arrive(kind, share, dtype):
    """Of updates of 1e-6 z into weights of size 0.02; the standard error of the mean is that of the rounding."""
    n = 1 << 20
    start = (torch.randn(n, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype)
    p = torch.nn.Parameter(start.clone())
    optimizer = MeZO([p], lr=1e-6, eps=EPS, perturbation=kind)
    optimizer.apply(along_z(1.0))
    theta = optimizer.state[p]["theta"] if kind != "in-place" else p.detach()
    z = ops.make_noise(NoiseKey.of(0, 0), 0, n).double()
    arrived = float((theta.double() - start.double()) @ z / (-1e-6 * (z @ z)))
    if share is not None:
        assert arrived < share or dtype == torch.float16
    else:
        spacing = 2.0 ** (torch.frexp(start.float()).exponent.double() - (8 if dtype == torch.bfloat16 else 11))
        error = float((spacing * 1e-6 * z.abs() * z.square()).sum().sqrt() / (1e-6 * (z @ z))) if kind == "copied-own" else 0.0
        assert abs(arrived - 1) < 4 * error + 1e-4


def along_z(g):
    """The estimate g z of the first direction."""
    key = NoiseKey.of(0, 0)
    return zokern.Estimate.along(key, torch.tensor(g, dtype=torch.float64), (torch.zeros((), dtype=torch.float64),))


@pytest.mark.parametrize("anchor", ["copy", "replay"])
def test_both_anchors_are_measured_around_a_theta_that_stays(anchor):
    """Of copied float32 weights in a float32 model: the losses of a run in place, up to rounding."""
    losses = []
    for kind in ("in-place", "copied"):
        params = parameters(torch.float32)
        optimizer = SVRG(params, lr=1e-5, lr_full=1e-5, eps=EPS, q=3, anchor=anchor, perturbation=kind)
        seen = []
        for _ in range(7):
            optimizer.step(lambda: loss_of(params))  # noqa: B023
            seen.append([float(x) for x in optimizer.measurements])
        losses.append(seen)
    for one, other in zip(*losses):
        assert one == pytest.approx(other, rel=1e-5)
