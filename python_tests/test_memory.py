"""What an optimizer needs beyond the weights: its state, and never anything else of a parameter's size. Measured by the operating system,
in a process of its own."""

import json
import subprocess
import sys

import pytest

CODE = """
import gc, json, re, torch, zokern
torch.set_num_threads(1)
n = {n}
theta = torch.nn.Parameter({theta})
small = torch.nn.Parameter(torch.zeros(100))
def closure():  # reads every weight, holds nothing
    return sum(float(part.detach().float().sum()) for part in theta.view(-1).split(1 << 16)) if theta.is_contiguous() else 1.0
def run(optimizer, params, closure):
    opt = eval("zokern." + optimizer)
    full = [closure] if "SVRG" in optimizer else []
    for _ in range(2):
        opt.step(closure, *full)
    opt.estimate(closure, *full)
    opt.state_dict()
def peak():  # not getrusage's, which begins with that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
optimizers = {optimizers}
for optimizer in optimizers:
    run(optimizer, [small], lambda: small.sum())
closure()
before, found = peak(), []
for optimizer in optimizers:
    run(optimizer, [theta, small], closure)
    gc.collect()
    found.append((peak() - before) / (4 * n))
print(json.dumps(found))
"""
# Ascending, because a peak that has been seen hides lower ones. State in units of a float32 number an element.
OPTIMIZERS = {
    "MeZO(params, weight_decay=0.1)": 0,
    "MeZO(params, q=3)": 0,
    "MeZO(params, estimator='one-sided')": 0,
    "MeZO(params, sparsity=0.5)": 0,
    "MeZO(params, blocks=[[p] for p in params])": 0,
    "ZOSign(params)": 0,
    "ZOConservative(params)": 0,
    "MeZOSVRG(params, anchor='replay')": 0,
    "EvolutionStrategies(params, population=6)": 0,
    "EvolutionStrategies(params, population=6, mirrored=True, shaping='ranks')": 0,
    "FZOO(params)": 0,
    "MEAZO(params)": 0,
    "AdaMeZO(params)": 0,
    "ZOMomentum(params, state_dtype=torch.bfloat16)": 0.5,
    "ZOMomentum(params, weight_decay=0.1)": 1,
    "MeZOSVRG(params, anchor='copy', weight_decay=0.1)": 1,
    "ZOAdam(params, amsgrad=True, state_dtype=torch.bfloat16)": 1.5,
    "ZOAdam(params)": 2,
}
STRIDED = {"MeZO(params, q=3)": 0, "MeZO(params, sparsity=0.5)": 0, "EvolutionStrategies(params, population=6)": 0, "ZOMomentum(params)": 1}
SIXTEEN = {
    "MeZO(params, q=3, perturbation='in-place')": 0,
    "MeZO(params, sparsity=0.5, perturbation='in-place')": 0,
    "AdaMeZO(params, perturbation='in-place')": 0,
    "EvolutionStrategies(params, population=6, perturbation='in-place')": 0,
    "MeZO(params, perturbation='copied-own')": 0.5,
    "MeZO(params)": 1,
    "ZOMomentum(params, perturbation='in-place')": 1,
    "MeZOSVRG(params, anchor='copy')": 2,
    "ZOMomentum(params)": 2,
}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read the way Linux counts it")
@pytest.mark.parametrize(
    "theta, n, optimizers",
    [
        ("torch.ones(n)", 1 << 24, OPTIMIZERS),
        ("torch.ones(n, dtype=torch.bfloat16)", 1 << 24, SIXTEEN),
        ("torch.ones(4096, n // 4096).t()", 1 << 23, STRIDED),
    ],
)
def test_an_optimizer_needs_its_state_and_no_more(theta, n, optimizers):
    code = CODE.format(n=n, optimizers=list(optimizers), theta=theta)
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    # A strided parameter is gathered 512 KiB at a time; code that is loaded late and the allocator's slack come on top.
    slack = (20 << 20) / (4 * n)
    for (name, state), extra in zip(optimizers.items(), found):
        assert state - 0.05 < extra < state + slack, f"{name}: {extra:.2f}"


STREAMED = """
import re, torch, zokern
from torch import nn
torch.set_num_threads(1)
def model(*widths):
    return nn.Sequential(*(nn.Sequential(nn.Linear(a, b, dtype=torch.{dtype}), nn.Tanh()) for a, b in zip(widths, widths[1:]))).eval()
def run(model):
    layout, streamed = zokern.Layout(model.named_parameters()), zokern.Streamed(model)
    x = torch.ones(1, model[0][0].in_features, dtype=torch.{dtype})
    with torch.no_grad():
        model(x)
        for coefficient in (1e-3, -1e-3):
            with streamed.showing([layout], [layout], [[(zokern.NoiseKey(1), coefficient)]]):
                model(x)
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
large = model(1024, 1024, 4096, 2048, 64, 1024)
with torch.no_grad():
    large(torch.ones(1, 1024, dtype=torch.{dtype}))
run(model(8, 8, 8))
before = peak()
run(large)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read the way Linux counts it")
@pytest.mark.parametrize("dtype, largest", [("float32", 32 << 20), ("bfloat16", 16 << 20)])
def test_streaming_needs_the_largest_part_and_no_more(dtype, largest):
    """Of parts of 4, 16, 32, 0.5 and 0.25 MiB in float32."""
    code = STREAMED.format(dtype=dtype)
    found = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert abs(found - largest) < 3 << 20
