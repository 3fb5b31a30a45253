"""Backends by name: what is here, what is missing and why, and which one runs."""

import os
import subprocess
import sys

import pytest
import torch

import zokern
from zokern import Layout, NoiseKey, ops, use_backend
from zokern.kernels import backend_for


def test_every_backend_says_how_it_is():
    status = zokern.backends()
    assert list(status) == ["reference", "cpu", "cuda", "triton"]
    assert status["reference"] == "available" and all(status.values())


def test_cpu_tensors_go_to_the_compiled_backend_and_a_forced_one_wins():
    device = torch.device("cpu")
    assert backend_for(device).__name__ == "zokern.kernels.cpu"
    with use_backend("reference"):
        assert backend_for(device).__name__ == "zokern.kernels.reference"
        with use_backend("cpu"):
            assert backend_for(device).__name__ == "zokern.kernels.cpu"
        assert backend_for(device).__name__ == "zokern.kernels.reference"
    assert backend_for(device).__name__ == "zokern.kernels.cpu"


def test_the_environment_forces_one_too(monkeypatch):
    monkeypatch.setenv("ZOKERN_BACKEND", "reference")
    assert backend_for(torch.device("cpu")).__name__ == "zokern.kernels.reference"


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'fpga' is unknown: pass one of 'reference', 'cpu', 'cuda', 'triton'"):
        with use_backend("fpga"):
            pass


def test_a_backend_that_cannot_reach_the_parameters_is_refused():
    with use_backend("cpu"), pytest.raises(RuntimeError, match="'cpu' cannot reach parameters on cuda.*move them to cpu"):
        backend_for(torch.device("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, so Triton is not missing")
def test_a_missing_backend_says_why_and_what_to_do():
    code = "import zokern\nwith zokern.use_backend('triton'): pass"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode and last.startswith("RuntimeError: backend 'triton' is no")
    assert "TRITON_INTERPRET=1" in last or "pip install" in last


def test_a_triton_that_compiles_wrong_code_only_interprets(monkeypatch):
    triton = pytest.importorskip("triton", reason="pip install triton")
    from zokern.kernels.triton import noise, status

    monkeypatch.setattr(triton, "__version__", "3.3.1")
    monkeypatch.setattr(noise, "INTERPRETED", False)
    assert status().startswith("not able to run on triton 3.3.1, which compiles wrong code: pip install 'torch>=2.8'")


def test_import_loads_no_backend():
    code = (
        "import sys, torch; before = set(sys.modules); import zokern\n"
        "new = set(sys.modules) - before - {f'zokern.kernels.{n}' for n in ('passes', 'tables', 'location')}\n"
        "print([m for m in new if m.startswith(('triton', 'zokern.kernels.', 'zokern._c', 'transformers', 'typer', 'zokern.noise.ref'))])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_without_the_compiled_backend_numpy_takes_over_and_says_so(monkeypatch, caplog):
    from zokern import kernels
    from zokern.kernels import cpu

    monkeypatch.setattr(cpu, "_cpu", None)
    monkeypatch.setattr(cpu, "_why", "No module named 'zokern._cpu'", raising=False)
    kernels._default.cache_clear()
    try:
        theta = torch.zeros(5)
        ops.add_noise_(Layout([theta]), [(NoiseKey(0), 1.0)])
        assert "not built" in caplog.text and "C++ compiler" in caplog.text and theta.abs().min() > 0
        with pytest.raises(RuntimeError, match="'cpu' is not built"), use_backend("cpu"):
            pass
    finally:
        kernels._default.cache_clear()


def test_compiled_code_of_other_sources_is_not_called():
    """Sources that were updated beside an extension module that was not: what it is handed would be misread."""
    stale = (
        "import sys, types; sys.modules['zokern._cpu'] = types.ModuleType('zokern._cpu'); import zokern; print(zokern.backends()['cpu'])"
    )
    said = subprocess.run([sys.executable, "-c", stale], capture_output=True, text=True, check=True).stdout
    assert "zokern._cpu was compiled from other sources than these" in said and "then pip install" in said
