"""The model and the batch of the tests of Hybrid and its splits."""

import pytest
import torch
from hybrid_cases import Net


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batch():
    return torch.randint(0, 11, (5, 3), generator=torch.Generator().manual_seed(1))
