"""What a step asks of a GPU, without one (fake_gpu.py): no waiting, and in a capture nothing that a graph cannot repeat."""

import pytest
import torch
from fake_gpu import FakeGPUs
from optimizer_cases import OPTIMIZERS

import zokern
from zokern import MeZO
from zokern.optim import trained


@pytest.fixture
def gpus(runtime, monkeypatch):
    monkeypatch.setattr(trained, "kept_by_magnitude", lambda groups, sparsity: [[1 - sparsity] * len(group["params"]) for group in groups])
    return FakeGPUs(runtime, monkeypatch)


def parameters(device="cuda:0", dtype=torch.float32):
    return [torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) for shape in ((300, 41), (7,), (), (5000, 3))]


def groups_of(params):
    return [{"params": params[:2]}, {"params": params[2:], "lr": 1e-2, "eps": 1e-2}]


MORE = {
    "MeZO groups": lambda params: MeZO(groups_of(params), lr=1e-3, weight_decay=0.1, q=2),
    "MeZO q=4": lambda params: MeZO(params, q=4),
    "MeZO defer": lambda params: MeZO(groups_of(params), defer=True, lr=1e-3),
    "MeZO one-sided groups": lambda params: MeZO(groups_of(params), estimator="one-sided", lr=1e-3),
}


@pytest.mark.parametrize("name", [*OPTIMIZERS, *MORE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_does_not_wait(gpus, name, dtype):
    with gpus.tensors():
        params = parameters(dtype=dtype)
        opt = {**OPTIMIZERS, **MORE}[name](params)
        closure = lambda: sum((p.float() ** 2).sum() for p in params)  # noqa: E731
        for step in range(4):
            before = len(gpus.launches)
            with gpus.step():
                opt.step(closure)
            assert len(gpus.launches) - before >= 2
    assert {(device, stream or 0) for _, device, stream in gpus.launches} == {(0, 0)}
