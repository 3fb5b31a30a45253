"""Passes of ``add_noise_`` over tensors in one launch, and what the oracle makes of them: what the CUDA kernels are put through."""

from contextlib import nullcontext

import numpy as np
import torch
from update_cases import AROUND, DTYPES, INTEGERS, differing, later_by, with_special

from zokern.kernels import reference as oracle
from zokern.kernels.tables import KEEP_ALL, Table, contiguous
from zokern.noise import NoiseKey, reference
from zokern.noise.spec import ROUNDING, WEIGHTS

STORED = [*((dtype, None) for dtype in DTYPES), *((torch.float32, dtype) for dtype in DTYPES), *((dtype, dtype) for dtype in DTYPES[1:])]
KEY = NoiseKey(0x123456789ABCDEF0, 7, 3)


def add_noise_(backend, tensors, firsts, keys, coefficients, decay=None, clock=None, keep_threshold=KEEP_ALL):
    """One launch for contiguous tensors of one dtype and device, tensor i in group i mod groups."""
    device = tensors[0].device
    c = torch.as_tensor(coefficients, dtype=torch.float32, device=device)
    d = None if decay is None else torch.tensor(decay, dtype=torch.float32, device=device)
    table = Table.of(
        *(tensors[0].dtype, device, c.shape[1]),
        (
            contiguous(t.data_ptr(), t.numel(), first, i % c.shape[1], keep_threshold)
            for i, (t, first) in enumerate(zip(tensors, firsts, strict=True))
        ),
    )
    with nullcontext() if clock is None else backend.clock(torch.tensor(clock, dtype=torch.int32, device=device)):
        backend.add_noise_(table, keys, c, d)


def expected(theta, first, keys, coefficients, decay=None, keep_threshold=KEEP_ALL):
    """The oracle: float32, terms in order, one rounding at the end."""
    acc = theta.float().cpu().numpy() * np.float32(1 if decay is None else decay)
    for key, c in zip(keys, coefficients, strict=True):
        acc = reference.fma(np.float32(c), reference.masked_noise(key, keep_threshold, first, theta.numel()), acc)
    return torch.from_numpy(acc).to(theta.dtype)


def weights(count, dtype, seed=0):
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def assert_same_bits(a, b):
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    assert torch.equal(a.view(kind), b.view(kind))


def check_add_noise(add_noise_, dtype, stored, pieces, keys, decay=False, at_random=False, device="cpu", later=0):
    """``add_noise_`` of a backend against the oracle's with every step ``later``, into memory of dtype ``stored``, or in place (None)."""
    groups = 1 + max(piece.group for piece in pieces)
    random = torch.Generator().manual_seed(len(keys))
    c = torch.randn(len(keys), groups, generator=random) / 8
    scale = 1 - torch.arange(1, groups + 1) / 64 if decay else None
    rounding = NoiseKey.of(2**64 - 5, 2**32 - 9, ROUNDING, WEIGHTS) if at_random else None
    theta = [with_special(torch.randn(p.extent + p.shift + 2 * AROUND, generator=random)).to(dtype) for p in pieces]
    # Out has lines of its own: another gap.
    out = (
        [torch.full((p.extent + 3 * p.shift + 8 * (p.count // p.line) + 2 * AROUND,), 3.0, dtype=stored) for p in pieces]
        if stored
        else theta
    )

    def run(add_noise_, theta, out, keys, rounding, device):
        rows = [
            p.row(t[AROUND + p.shift :].data_ptr(), *(() if stored is None else (o[AROUND + 3 * p.shift :].data_ptr(), p.line + p.gap + 8)))
            for p, t, o in zip(pieces, theta, out)
        ]
        table = Table.of(dtype, torch.device(device), groups, rows, out_dtype=stored)
        add_noise_(table, keys, c.to(device), scale if scale is None else scale.to(device), rounding)

    on_device = [tensor.to(device).clone() for tensor in theta]
    read, written = on_device, on_device if stored is None else [tensor.to(device).clone() for tensor in out]
    before = [tensor.clone() for tensor in theta]
    run(add_noise_, read, written, keys, rounding, device)
    with np.errstate(all="ignore"):
        run(oracle.add_noise_, theta, out, later_by(later, keys), rounding and later_by(later, [rounding])[0], "cpu")
    for p, actual, wanted in zip(pieces, written, out):
        differ = differing(actual, wanted)
        assert not len(differ), f"{p}: {len(differ)} of {p.count} differ, the first at {differ[0].item() - AROUND}"
    if stored is not None:
        for unchanged, tensor in zip(before, read):
            assert torch.equal(unchanged.view(INTEGERS[dtype]), tensor.cpu().view(INTEGERS[dtype]))
