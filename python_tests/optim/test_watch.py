"""What trains nothing says so, once; what trains says nothing."""

import copy
import io
import pickle
import warnings
from fractions import Fraction
from functools import partial

import numpy as np
import optimizer_cases
import pytest
import torch
from optimizer_cases import OPTIMIZERS
from torch.nn.functional import cross_entropy

import zokern
from zokern import ForwardGradient, MeZO


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).eval()


@pytest.fixture
def loss_of(net):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 8, generator=generator), torch.randint(3, (32,), generator=generator)
    return lambda: cross_entropy(net(x), y)


def said(optimizer, closure, steps):
    """[(step, warning)] of so many steps."""
    found = []
    for step in range(steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step(closure)
        caught = [w for w in caught if w.category is RuntimeWarning]
        assert all(w.filename in (__file__, optimizer_cases.__file__) for w in caught)  # whose line it is
        found += [(step, str(w.message)) for w in caught]
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_losses_of_16_bits_are_noticed_at_once(name, net, loss_of):
    optimizer = OPTIMIZERS[name](net.named_parameters(), lr=1e-5, eps=1e-3)
    (step, message), *later = said(optimizer, lambda: loss_of().bfloat16(), 3)
    assert step == 0 and "torch.bfloat16, which has 8 bits" in message and "logits.float()" in message
    assert not [m for _, m in later if "bits" in m]


@pytest.mark.parametrize("dtype, bits", [(torch.float16, 11), (torch.bfloat16, 8), (torch.float32, None), (torch.float64, None)])
def test_bits_of_a_loss(net, loss_of, dtype, bits):
    found = said(MeZO(net.parameters(), lr=1e-5), lambda: loss_of().to(dtype), 1)
    assert (f"{dtype}, which has {bits} bits" in found[0][1]) if bits else not found


def test_a_loss_under_autocast(net):
    x = torch.randn(32, 8)

    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).square().mean()

    assert "torch.bfloat16" in said(MeZO(net.parameters(), lr=1e-5), loss, 1)[0][1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_losses_that_do_not_depend_on_the_weights(name, net, loss_of):
    """The fifth step running tells; a difference in between begins the count again."""
    make = partial(OPTIMIZERS[name], lr=1e-3, eps=1e-3)
    fixed = float(loss_of())
    ((step, message),) = said(make(net.named_parameters()), lambda: fixed, 12)
    assert step == 4 and "5th running whose losses did not differ at all" in message
    optimizer = make(net.named_parameters())
    for _ in range(3):
        assert not said(optimizer, lambda: fixed, 4)
        assert not said(optimizer, loss_of, 4 if "MeZOSVRG" in name else 1)  # which is sent the same losses at an anchor
    assert said(optimizer, lambda: fixed, 5)


def test_a_derivative_that_is_zero(net, loss_of):
    optimizer = ForwardGradient(net.parameters(), lr=1e-3)
    ((step, message),) = said(optimizer, lambda: loss_of() * 0, 6)
    assert step == 4 and "did not differ" in message


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_learns_says_nothing(name, net, loss_of):
    assert not said(OPTIMIZERS[name](net.named_parameters(), lr=1e-3, eps=1e-3), loss_of, 12)


def test_skipped_steps_are_not_equal_ones(net):
    ((step, message),) = said(MeZO(net.parameters()), lambda: float("nan"), 8)
    assert step == 0 and "was skipped: a loss was not finite" in message


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_watches_for_itself(net, again):
    optimizer = MeZO(net.parameters(), lr=1e-3)
    assert len(said(optimizer, lambda: 1.0, 5)) == 1
    assert len(said(again(optimizer), lambda: 1.0, 5)) == 1


def test_a_replay_says_nothing_again(net, tmp_path):
    base = copy.deepcopy(net)
    optimizer = MeZO(net.named_parameters(), lr=1e-3)
    with zokern.record(optimizer, tmp_path / "log.jsonl"):
        said(optimizer, lambda: 1.0, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zokern.Trajectory.read(tmp_path / "log.jsonl").replay(base)


NUMBERS = [0.5, 1, Fraction(1, 2), np.float32(0.5), np.float64(0.5), np.int64(1), np.array(0.5), np.array(1, np.int32), torch.tensor(0.5)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__} {n}")
def test_any_real_number_is_a_loss(number, net):
    optimizer = MeZO(net.parameters())
    assert optimizer.step(lambda: number).item() == float(number)


@pytest.mark.parametrize("number", [True, np.bool_(True), 1j, np.complex64(1), "0.5", None, [0.5]], ids=repr)
def test_what_is_no_real_number(number, net):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TypeError, match=f"closure returned {type(number).__name__}: return the loss itself, a number"):
        MeZO(net.parameters(), eps=0.5).step(lambda: number)
    assert all(torch.allclose(p, before[name], atol=1e-6) for name, p in net.state_dict().items())


@pytest.mark.parametrize("array", [np.zeros(2), np.zeros((1, 1)), torch.zeros(2)], ids=lambda a: f"{type(a).__name__} {tuple(a.shape)}")
def test_an_array_of_losses(array, net):
    with pytest.raises(ValueError, match=rf"of shape \({array.shape[0]}.*loss.mean\(\)"):
        MeZO(net.parameters()).step(lambda: array)


@pytest.mark.parametrize("number", [float, np.float32, np.float64, Fraction], ids=lambda n: n.__name__)
def test_settings_are_any_real_numbers(number, net, loss_of):
    """The same step, bit for bit, where the number is the same."""
    other = copy.deepcopy(net)
    MeZO(net.parameters(), lr=0.25, eps=2**-7, weight_decay=0.5).step(lambda: 1.0)
    optimizer = MeZO(other.parameters(), lr=number(0.25), eps=number(2**-7), weight_decay=number(0.5))
    optimizer.step(lambda: 1.0)
    torch.save(optimizer.state_dict(), state := io.BytesIO())
    assert torch.load(io.BytesIO(state.getvalue()), weights_only=True)["param_groups"][0]["lr"] == 0.25
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))
