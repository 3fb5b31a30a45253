"""Passes of ``add_noise_`` over tensors in one launch, and what the oracle makes of them: what the CUDA kernels are put through."""

from contextlib import nullcontext

import numpy as np
import torch

from zokern.kernels.tables import KEEP_ALL, Table
from zokern.noise import NoiseKey, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEY = NoiseKey(0x123456789ABCDEF0, 7, 3)


def add_noise_(backend, tensors, firsts, keys, coefficients, decay=None, clock=None, keep_threshold=KEEP_ALL):
    """One launch for contiguous tensors of one dtype and device, tensor i in group i mod groups."""
    device = tensors[0].device
    c = torch.as_tensor(coefficients, dtype=torch.float32, device=device)
    d = None if decay is None else torch.tensor(decay, dtype=torch.float32, device=device)
    rows = [
        (t.data_ptr(), t.numel(), first, i % c.shape[1], keep_threshold) for i, (t, first) in enumerate(zip(tensors, firsts, strict=True))
    ]
    table = Table(tensors[0].dtype, device, c.shape[1], torch.tensor(rows))
    with nullcontext() if clock is None else backend.clock(torch.tensor(clock, dtype=torch.int32, device=device)):
        backend.add_noise_(table, keys, c, d)


def expected(theta, first, keys, coefficients, decay=None, keep_threshold=KEEP_ALL):
    """The oracle: float32, terms in order, one rounding at the end."""
    acc = theta.float().cpu().numpy() * np.float32(1 if decay is None else decay)
    for key, c in zip(keys, coefficients, strict=True):
        acc = reference.fma(np.float32(c), reference.masked_normal(key, keep_threshold, first, theta.numel()), acc)
    return torch.from_numpy(acc).to(theta.dtype)


def weights(count, dtype, seed=0):
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def assert_same_bits(a, b):
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    assert torch.equal(a.view(kind), b.view(kind))
