"""Whatever goes wrong, and wherever in a step, the weights are brought back and the optimizer goes on."""

import copy
import signal
from contextlib import nullcontext

import pytest
import torch
from optimizer_cases import OPTIMIZERS
from tolerances import RESTORED

from zokern import MeZO, MeZOSVRG, ZOAdam, ZOMomentum, ops
from zokern.kernels import backend_for


def start(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(200).to(dtype))


def loss_of(theta):
    return (theta.double() ** 2).sum()


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return lambda params, **settings: OPTIMIZERS[request.param](params, **{"lr": 1e-5, "eps": 0.1, **settings})


def third_step(opt, theta, monkeypatch, at=0, comes=None):
    """-> the passes of a step, after two others. Ctrl-C comes before or after the kernel of one of them."""
    for _ in range(2):
        opt.step(lambda: loss_of(theta))
    before, backend, passes = theta.detach().clone(), backend_for(torch.device("cpu")), []

    def counted(kernel):
        def call(*arguments):
            passes.append(1)
            if len(passes) == at and comes == "before":
                signal.raise_signal(signal.SIGINT)
            kernel(*arguments)
            if len(passes) == at and comes == "after":
                signal.raise_signal(signal.SIGINT)

        return call

    with monkeypatch.context() as patch:
        for name in ("add_noise_", "update_"):
            patch.setattr(backend, name, counted(getattr(backend, name)))
        with pytest.raises(KeyboardInterrupt) if at else nullcontext():
            opt.step(lambda: loss_of(theta))
    return len(passes), before


@pytest.mark.parametrize("comes", ["before", "after"])
def test_a_signal_beside_a_pass(make, comes, monkeypatch):
    """Ctrl-C before or after the kernel of a pass: the step is made in full and counted, or neither, and the next one is as without."""
    twin = start()
    other = make([twin])
    passes, before = third_step(other, twin, monkeypatch)
    made, once, state = [], twin.detach().clone(), copy.deepcopy([*other.state[twin].items()])
    other.step(lambda: loss_of(twin))
    for at in range(1, passes + 1):
        theta = start()
        opt = make([theta])
        third_step(opt, theta, monkeypatch, at, comes)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        made.append(opt.param_groups[0]["step"] == 3)
        if made[-1]:
            assert torch.equal(theta, once)
            assert [*opt.state[theta]] == [name for name, _ in state]
            for name, held in state:
                assert torch.allclose(opt.state[theta][name], held, rtol=0, atol=4 * RESTORED)
        else:
            assert (theta.detach() - before).abs().max() <= 4 * RESTORED
            theta.data.copy_(before)  # without the rounding of the way back
            opt.step(lambda: loss_of(theta))  # noqa: B023
        opt.step(lambda: loss_of(theta))  # noqa: B023
        assert torch.allclose(theta, twin, rtol=0, atol=1e-5)
    assert made == sorted(made) and made[-1] and not made[0]


@pytest.mark.parametrize("setting, error", [(dict(lr="x"), ValueError), (dict(weight_decay=(1,)), TypeError)])
def test_a_setting_that_is_found_bad_after_the_losses(make, setting, error):
    theta = start()
    opt = make([theta])
    opt.step(lambda: loss_of(theta))
    before = theta.detach().clone()
    opt.param_groups[0].update(setting)
    with pytest.raises(error, match="float"):
        opt.step(lambda: loss_of(theta))
    assert (theta.detach() - before).abs().max() <= 4 * RESTORED


def test_memory_for_the_state_runs_out_before_anything_moves(monkeypatch):
    theta, looked = start(), []
    before = theta.detach().clone()
    opt = ZOAdam([theta], eps=0.1)

    def full(*arguments, **settings):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "zeros_like", full)
    with pytest.raises(torch.OutOfMemoryError):
        opt.step(lambda: looked.append(1) or loss_of(theta))
    assert torch.equal(theta, before) and not looked


def test_a_state_without_its_anchor_is_refused():
    theta = start()
    opt = MeZOSVRG([theta], q=4, anchor="copy")
    for _ in range(2):
        opt.step(lambda: loss_of(theta), lambda: loss_of(theta))
    state = opt.state_dict()
    fresh = MeZOSVRG([theta], q=4, anchor="copy")
    fresh.load_state_dict({**state, "state": {}})
    with pytest.raises(ValueError, match="step 2 is between two anchors, and the state holds none for 1 parameters"):
        fresh.step(lambda: loss_of(theta))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looking_at_the_state_changes_nothing(make, dtype):
    results = []
    for looks in (False, True):
        theta = start(dtype)
        opt = make([theta], eps=1e-2)
        for _ in range(7):
            opt.step(lambda: loss_of(theta))  # noqa: B023
            if looks:
                opt.state_dict()
        results.append(theta.detach().clone())
    assert torch.equal(*results)


def test_state_beside_a_parameter_that_changed_is_looked_at_again():
    theta = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    other = torch.nn.Parameter(theta.detach().clone().contiguous())
    first, second = ZOMomentum([theta], lr=1e-3), ZOMomentum([other], lr=1e-3)
    for step in range(6):
        if step == 3:
            theta.data = theta.data.contiguous()
            with pytest.raises(ValueError, match="make it with torch.zeros_like"):
                first.step(lambda: loss_of(theta))
            first.state[theta]["momentum_buffer"] = first.state[theta]["momentum_buffer"].contiguous()
        first.step(lambda: loss_of(theta))
        second.step(lambda: loss_of(other))
    torch.testing.assert_close(theta.detach(), other.detach(), rtol=0, atol=1e-4)
    theta.data = torch.zeros(7)
    with pytest.raises(ValueError, match=r"has shape \(7,\) now, it had \(2, 3, 4, 5\)"):
        ops.add_noise_(first.layout, [])


def test_loading_while_an_update_is_owed():
    theta = start()
    opt = MeZO([theta], lr=1e-3, defer=True)
    opt.step(lambda: loss_of(theta))
    state = opt.state_dict()
    opt.step(lambda: loss_of(theta))
    opt.load_state_dict(state)
    assert opt.param_groups[0]["step"] == 1
    opt.step(lambda: loss_of(theta))
    opt.flush()


def test_parameters_that_an_anchor_cannot_serve_are_refused_later_too():
    theta = start()
    opt = MeZOSVRG([theta], q=1, anchor="replay")
    with pytest.raises(ValueError, match='anchor="replay" with weight_decay'):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))], "weight_decay": 1.0})
    assert len(opt.param_groups) == 1 and len(opt.layout.params) == 1
    opt.step(lambda: loss_of(theta), lambda: loss_of(theta))
