"""What tests of the compiled backends share."""

import pytest

from zokern import use_backend
from zokern.kernels import cpu, cuda


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request, monkeypatch):
    """Everything runs on the C++ backend, with this instruction set."""
    try:
        cpu._cpu.isa(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("ZOKERN_CPU_ISA", request.param)
    with use_backend("cpu"):
        yield request.param


@pytest.fixture
def backend(runtime, monkeypatch):
    """The CUDA backend on the runtime of ptx/, for tensors in the host's memory. What its kernels may reach: tensors that were asked for
    their address."""
    runtime.begin()
    runtime.memory.follow(monkeypatch)
    monkeypatch.setattr(cuda, "_cuda", runtime)
    monkeypatch.setattr(cuda, "_device_and_stream", lambda device: (0, 0))
    return cuda
