"""zokern.kernels.cuda on the runtime of ptx/."""

import os

import pytest
import torch
from ptx.memory import ADDRESS_OF
from ptx.runtime import Runtime, build, find_nvcc

from zokern.kernels import cuda


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    if (nvcc := find_nvcc()) is None:
        pytest.skip("no nvcc in $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda: install the CUDA toolkit")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "ptx"
    build(nvcc, folder)
    return Runtime(folder)


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
