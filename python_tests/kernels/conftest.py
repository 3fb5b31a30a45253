"""zokern.kernels.cuda on the runtime of ptx/."""

import pytest

from zokern.kernels import cuda


@pytest.fixture
def backend(runtime, monkeypatch):
    """The CUDA backend, for tensors in the host's memory. What its kernels may reach: tensors that were asked for their address."""
    runtime.begin()
    runtime.memory.follow(monkeypatch)
    monkeypatch.setattr(cuda, "_cuda", runtime)
    monkeypatch.setattr(cuda, "_device_and_stream", lambda device: (0, 0))
    return cuda
