"""zokern.kernels.cuda on the runtime of ptx/."""

import pytest
import torch
from ptx.memory import ADDRESS_OF

from zokern.kernels import cuda


@pytest.fixture
def backend(runtime, monkeypatch):
    """The CUDA backend, for tensors in the host's memory. What its kernels may reach: tensors that were asked for their address."""
    runtime.begin()

    def data_ptr(tensor):
        runtime.memory.hand(tensor)
        return ADDRESS_OF(tensor)

    monkeypatch.setattr(torch.Tensor, "data_ptr", data_ptr)
    monkeypatch.setattr(cuda, "_cuda", runtime)
    monkeypatch.setattr(cuda, "_device_and_stream", lambda device: (0, 0))
    return cuda
