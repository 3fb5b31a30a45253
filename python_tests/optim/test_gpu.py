"""What the contract promises on a GPU: the same bits, no waiting, one launch a pass, no memory of a parameter's size."""

import warnings

import pytest
import torch
from optimizer_cases import OPTIMIZERS

from zokern import Layout, MeZO, NoiseKey, ops
from zokern.noise import reference

pytestmark = pytest.mark.gpu


def parameters(device, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype).to(device)) for shape in ((300, 41), (7,), (), (5000, 3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gpu_and_the_cpu_make_the_same_run(dtype):
    """Given the same losses (floats, so that no reduction differs): every weight, bit for bit."""
    runs = []
    for device in ("cpu", "cuda"):
        params = parameters(device, dtype)
        opt = MeZO([{"params": params[:2], "eps": 1e-2}, {"params": params[2:], "lr": 1e-2}], lr=1e-3, weight_decay=0.1, q=2)
        losses = iter([1.0, 1.5, 0.3, 0.2, float("nan"), 1.0, 1.0, 1.0, 2.0, 1.0, 3.0, 1.0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(3):
                opt.step(lambda: next(losses))  # noqa: B023
        assert opt.skipped == 1
        runs.append([p.detach().cpu() for p in params])
    for a, b in zip(*runs):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer_makes_the_same_run(name, dtype):
    """Given the same losses. A power in float64 may differ in its last bit, and a coefficient in float32 with it; a state in bfloat16
    that is then rounded to the other side is off by 2^-8 of updates near 1e-3. Weights in bfloat16, below 4, by one rounding, or two."""
    runs = []
    for device in ("cpu", "cuda"):
        params = parameters(device, dtype)
        opt = OPTIMIZERS[name](params, lr=1e-3, eps=1e-3)
        losses = iter((1 + 1e-3 * torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).tolist())
        for _ in range(4):
            opt.step(lambda: next(losses))  # noqa: B023
        runs.append([p.detach().cpu() for p in params])
    for a, b in zip(*runs):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-5 if dtype == torch.float32 else 2**-5)
    assert dtype != torch.float32 or (runs[0][0] - parameters("cpu")[0].detach()).abs().max() > 1e-4


def test_a_transposed_parameter_and_two_dtypes_in_one_layout():
    params = [torch.zeros(300, 70, device="cuda").t(), torch.zeros(500, dtype=torch.bfloat16, device="cuda")]
    layout = Layout(params)
    ops.add_noise_(layout, [(NoiseKey(3), 1.0)])
    for p, first in zip(params, layout.first):
        z = torch.from_numpy(reference.normal(NoiseKey(3), first, p.numel())).to(p.dtype).reshape(p.shape)
        assert torch.equal(p.cpu(), z)


def test_a_step_never_waits_for_the_device():
    params = parameters("cuda")
    opt = MeZO([{"params": params[:2]}, {"params": params[2:], "lr": 1e-2, "eps": 1e-2}], lr=1e-3, weight_decay=0.1, q=2)
    closure = lambda: sum((p**2).sum() for p in params)  # noqa: E731
    for _ in range(3):  # the first compile kernels and fill caches
        opt.step(closure)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            opt.step(closure)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(opt.last.loss)


def test_a_pass_is_one_launch_whatever_the_number_of_tensors():
    params = [torch.zeros(n % 97 + 1, device="cuda") for n in range(400)]
    layout = Layout(params)
    ops.add_noise_(layout, [(NoiseKey(0), 1.0)])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ops.add_noise_(layout, [(NoiseKey(1), 1.0)])
        torch.cuda.synchronize()
    launches = sum(event.count for event in profile.key_averages() if "add_noise" in event.key)
    assert launches == 1


def test_a_step_takes_less_than_a_mebibyte_over_its_forwards():
    params = [torch.nn.Parameter(torch.randn(1 << 24, device="cuda")) for _ in range(4)]
    closure = lambda: sum(p.detach()[:100].sum() for p in params)  # noqa: E731
    opt = MeZO(params, q=2)
    opt.step(closure)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    opt.step(closure)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 1 << 20


def test_a_loss_that_is_not_finite_is_noticed_without_waiting():
    (theta,) = (torch.nn.Parameter(torch.ones(1000, device="cuda")),)
    opt = MeZO([theta])
    with pytest.warns(RuntimeWarning, match=r"step \d, or one shortly before it, was skipped"):
        for factor in (1.0, 1.0, float("nan"), 1.0, 1.0):  # whatever is on its way when the third falls
            opt.step(lambda: theta.sum() * factor)  # noqa: B023
        for _ in range(3):  # numbers that arrive only now may be those of before it, and the next ones are on their way
            torch.cuda.synchronize()
            opt.step(lambda: theta.sum())
    assert opt.skipped == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_check_leaves_no_trace(dtype):
    """A closure that draws from the device's generator, under which the checked run and the other differ if it is not put back."""
    runs = []
    for checked in (False, True):
        params = parameters("cuda", dtype)
        opt = MeZO(params, lr=1e-3, eps=1e-2)
        closure = lambda: sum(((p.float() + torch.rand(p.shape, device="cuda")) ** 2).sum() for p in params)  # noqa: B023, E731
        torch.manual_seed(1)
        for _ in range(3):
            if checked:
                assert opt.check(closure).wobble > 0
            opt.step(closure)
        runs.append([p.detach().cpu() for p in params])
    assert all(map(torch.equal, *runs))
