"""What tests of the compiled CPU backend share."""

import pytest

from zokern import use_backend
from zokern.kernels import cpu


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
