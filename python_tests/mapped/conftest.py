"""A file of weights."""

import pytest
from mapped_cases import some

pytest.importorskip("safetensors")

from zokern.mapped import write  # noqa: E402


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "weights.safetensors", some())
    return tmp_path / "weights.safetensors"
