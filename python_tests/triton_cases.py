"""Where the Triton kernels run in tests: on the GPU, or in the interpreter, which is spared what it would take long for."""

import pytest
import torch

from zokern.kernels import triton as backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARKS = [
    pytest.mark.skipif(not backend.status().startswith("available"), reason=f"triton: {backend.status()}"),
    # The interpreter of Triton 3.6 and older turns arrays of one element into integers.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]
if DEVICE == "cuda":
    MARKS.append(pytest.mark.gpu)  # all of them: what the interpreter has shown, the compiler may undo


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """The interpreter pays for each step, whatever its size."""
    if DEVICE == "cpu":
        monkeypatch.setattr("zokern.kernels.triton.add_noise.SLOW", 16384)
        monkeypatch.setattr("zokern.kernels.triton.update.SLOW", 1024)
        monkeypatch.setattr("zokern.kernels.triton.replay.SLOW", 2048)
