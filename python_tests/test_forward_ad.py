"""Tangents: what carries a derivative, what is refused, and that z of the whole model never exists."""

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

from zokern import Layout, NoiseKey, ops
from zokern.estimators.forward_ad import tangents
from zokern.noise import reference

KEY = NoiseKey(7, 3, 1)


def derivative(closure, *params, covered=()):
    """d closure along z(KEY) of the parameters, and that z in their shapes, from the oracle."""
    layout = Layout(params)
    with tangents(layout, [*params, *covered], KEY):
        value = forward_ad.unpack_dual(closure()).tangent
    z = [torch.from_numpy(reference.normal(KEY, first, p.numel())).reshape(p.shape) for p, first in zip(layout.params, layout.first)]
    return value, z


@pytest.fixture
def w():
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(6, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_noise_like_is_the_oracles_z_rounded_once(dtype, keep):
    shapes = (3,), (5, 1023), (), (0,), (40, 30)
    params = [torch.ones(shape, dtype=dtype) for shape in shapes]
    params[-1] = params[-1].t()
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    layout = Layout(groups, keep=[keep] * len(params))
    mask = NoiseKey(7, 3, 2 << 24 | 1)
    for i, (p, first) in enumerate(zip(params, layout.first)):
        z = reference.normal(KEY, first, p.numel()) * reference.mask(mask, keep, first, p.numel())
        made = ops.noise_like(layout, i, KEY)
        assert made.shape == p.shape and made.stride() == p.stride() and made.dtype == dtype
        assert torch.equal(made, torch.from_numpy(z).to(dtype).reshape(p.shape))
    with pytest.raises(TypeError, match="zokern.NoiseKey"):
        ops.noise_like(layout, 0, 7)


READ = {
    "a function": lambda w, x: torch.nn.functional.linear(x, w.t()).sum(),
    "an operator": lambda w, x: (x @ w).sum(),
    "from the right": lambda w, x: (x.sum(0)[:, None] * w).sum(),
    "an attribute": lambda w, x: (w.T @ x.T).sum(),
    "a keyword": lambda w, x: torch.matmul(input=x, other=w).sum(),
    "a list": lambda w, x: (x @ torch.stack([torch.zeros_like(w), w])).sum(),
    "under no_grad": lambda w, x: torch.no_grad()(lambda: (x @ w).sum())(),
    "in vmap": lambda w, x: torch.vmap(lambda row: row @ w)(x).sum(),
    "twice": lambda w, x: (x @ w).sum() * 3 - 2 * (x @ w).sum(),
    "row by row": lambda w, x: sum((x[:, i, None] * w[i]).sum() for i in range(len(w))),
}


@pytest.mark.parametrize("how", READ)
def test_however_a_parameter_is_read_its_derivative_comes_along(w, how):
    x = torch.randn(3, 6)
    value, (z,) = derivative(lambda: READ[how](w, x), w)
    torch.testing.assert_close(value, (x @ z).sum(), rtol=1e-5, atol=1e-5)


def test_views_made_before_and_parameters_in_anothers_memory(w):
    x, view = torch.randn(3, 6), w.t()[1:]
    value, (z,) = derivative(lambda: (x @ view.t()).sum(), w)
    torch.testing.assert_close(value, (x @ z[:, 1:]).sum(), rtol=1e-5, atol=1e-5)
    inner = torch.nn.Parameter(w.detach().view(-1)[5:17].view(3, 4).t())
    weights = torch.randn(4, 3)
    value, (z,) = derivative(lambda: (inner * weights).sum(), w, covered=[inner])
    torch.testing.assert_close(value, (z.view(-1)[5:17].view(3, 4).t() * weights).sum(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"params\[1\] is torch.bfloat16 in the memory of theta\[0\].*pass .clone\(\)"):
        derivative(lambda: w.sum(), w, covered=[w.detach().view(torch.bfloat16)])


def test_parameters_of_any_strides(w):
    strided, transposed = torch.nn.Parameter(torch.randn(6, 8)[:, ::2]), torch.nn.Parameter(torch.randn(4, 6).t())
    before = strided.t()[2]
    value, (za, zb) = derivative(lambda: (strided * w.detach()).sum() + (transposed**2).sum() + before.sum(), strided, transposed)
    torch.testing.assert_close(value, (za * w).sum() + (2 * transposed * zb).sum() + za[:, 2].sum(), rtol=1e-5, atol=1e-5)


def test_what_autograd_holds_constant_is_constant(w):
    x = torch.randn(3, 6)
    value, (z,) = derivative(lambda: (x @ w).sum() * w.detach().sum() * w.data.sum(), w)
    torch.testing.assert_close(value, (x @ z).sum() * w.sum() ** 2, rtol=1e-4, atol=1e-5)


def test_asking_about_a_parameter_makes_no_z(w, monkeypatch):
    made, make = [], ops.noise_like
    monkeypatch.setattr(ops, "noise_like", lambda *args: made.append(0) or make(*args))
    with tangents(Layout([w]), [w], KEY):
        assert w.shape == (w.size(0), w.size(1)) and w.numel() == 24 and len(w) == 6 and w.dim() == w.ndim == 2 and w.stride() == (4, 1)
        assert w.dtype == torch.float32 and w.device.type == "cpu" and w.requires_grad and w.is_contiguous() and w.is_floating_point()
        assert not made
        w.sum()
    assert len(made) == 1


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x


def in_inference_mode(w):
    with torch.inference_mode():
        return w.sum()


@torch.library.custom_op("zokern_tests::cubed", mutates_args=())
def cubed(x: torch.Tensor) -> torch.Tensor:
    return x**3


cubed.register_autograd(
    lambda ctx, grad: 3 * grad * ctx.saved_tensors[0] ** 2, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


@torch.library.custom_op("zokern_tests::doubled_", mutates_args=("x",))
def doubled_(x: torch.Tensor) -> None:
    x.mul_(2)


@torch.library.custom_op("zokern_tests::largest", mutates_args=())
def largest(x: torch.Tensor) -> torch.Tensor:
    return x.argmax()


REFUSED = {
    "inference mode": (in_inference_mode, r"theta\[0\] \('layer.weight'\) is read .*\(by sum\).*use torch.no_grad\(\)"),
    "a custom function on it": (Square.apply, r"theta\[0\] \('layer.weight'\) is read .* custom autograd.Function"),
    "a custom function later": (lambda w: Square.apply(w * 2), "forward mode stopped: .*jvp.*zokern.MeZO"),
    "its address": (lambda w: w.data_ptr(), r"'layer.weight'\) is read by its address .*zokern.MeZO"),
    "a library's operation": (
        lambda w: cubed(w).sum(),
        "forward mode stopped: the operation zokern_tests::cubed has no forward AD.*zokern.MeZO",
    ),
    "a library's operation later": (lambda w: torch.ops.zokern_tests.cubed(w * 2), "the operation zokern_tests::cubed has no"),
    "a library's operation in place": (lambda w: doubled_(w * 2), "the operation zokern_tests::doubled_ has no"),
    "no formula": (lambda w: torch.cdist(w, w), "forward mode stopped: .*_cdist_forward.*attn_implementation='eager'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_lose_the_derivative_is_refused_by_name(w, what):
    read, message = REFUSED[what]
    with pytest.raises(NotImplementedError, match=message), tangents(Layout([("layer.weight", w)]), [w], KEY):
        read(w)
    assert forward_ad.unpack_dual(w).tangent is None
    with tangents(Layout([w]), [w], KEY):
        assert forward_ad.unpack_dual(w.sum()).tangent is not None


def test_a_librarys_operation_that_gives_no_real_number(w):
    value, (z,) = derivative(lambda: w.flatten()[largest(w)] + w.sum(), w)
    torch.testing.assert_close(value, z.flatten()[w.argmax()] + z.sum(), rtol=1e-5, atol=1e-5)


def test_compiled_code_is_passed_over_inside_only(w):
    calls = []

    def backend(graph, inputs):
        calls.append(0)
        return graph.forward

    compiled = torch.compile(lambda x: (x @ w).sum(), backend=backend)
    x = torch.randn(3, 6)
    value, (z,) = derivative(lambda: compiled(x), w)
    torch.testing.assert_close(value, (x @ z).sum(), rtol=1e-5, atol=1e-5)
    assert not calls
    compiled(x)
    assert calls


CODE = """
import resource, torch
from zokern import Layout, NoiseKey
from zokern.estimators.forward_ad import tangents
torch.set_num_threads(1)

def now():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(model, x):
    with tangents(Layout(model.parameters()), model.parameters(), NoiseKey(0)):
        return torch.autograd.forward_ad.unpack_dual(model(x).sum()).tangent.isfinite()

make = lambda width: torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(6)]).to(torch.{dtype}).eval()
run(make(8), torch.ones(2, 8, dtype=torch.{dtype}))
model, x, between = make(2048), torch.ones(2, 2048, dtype=torch.{dtype}), []
with torch.no_grad():
    model(x)
for layer in model:
    layer.register_forward_hook(lambda *_: between.append(now()))
filler = torch.ones(peak() - now(), dtype=torch.uint8)  # what the past has taken: from here on, the peak is this run's
before, start = peak(), now()
assert run(model, x)
print(peak() - before, max(between) - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read the way Linux counts it")
@pytest.mark.parametrize("dtype, layer", [("float32", 16 << 20), ("bfloat16", 8 << 20)])
def test_z_of_one_layer_exists_at_a_time(dtype, layer):
    """Six layers of 16 MiB (8 in bfloat16): measured by the operating system, in a process whose allocator gives back what is freed."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", CODE.format(dtype=dtype)], capture_output=True, text=True, check=True, env=environment)
    peak, between = map(int, run.stdout.split())
    # One z while a layer is called and none between two; kernels of torch that are loaded late come on top.
    assert 0.9 * layer < peak < layer + (4 << 20) and between < 4 << 20, (peak, between)
