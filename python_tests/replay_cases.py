"""Runs of passes over tensors in one launch, compared bit for bit with the oracle's ``add_noise_``, pass by pass: what every backend is
put through."""

import numpy as np
import pytest
import torch
from update_cases import AROUND, INTEGERS, later_by

from zokern import Layout, ops, use_backend
from zokern.kernels import reference
from zokern.kernels.tables import Table
from zokern.noise import NoiseKey
from zokern.noise.spec import SIGNS

GROUPS = 3
A, B, C = (NoiseKey(2**64 - 1 - k, 2**32 - 200 - k, k << 24 | 2**24 - 1 - k) for k in range(3))


def step(key, g, decay=1.0):
    """The three passes of a two-point step."""
    return [([(key, 1e-3)], 1.0), ([(key, -2e-3)], 1.0), ([(key, 1e-3 - g)], decay)]


RUNS = {
    "nothing": [([], 1.0)],
    "one pass": [([(A, 0.5)], 1.0)],
    "a step": step(A, 1e-4),
    "steps": [*step(A, 1e-2, 0.99), *step(B, -3e-3), *step(C, 1e-3, 0.5)],
    "skipped": [([(A, 0.0)], 1.0), ([(A, -0.0)], 1.0), ([(B, 0.0)], 1.0)],
    "queries": [([(A, 1.0)], 1.0), ([(A, -2.0)], 1.0), ([(A, 1.0), (B, 1.0)], 1.0), ([(B, -2.0)], 1.0), ([(B, 0.9), (A, -0.1)], 0.9)],
    "without terms": [([], 0.75), ([], 1.0), ([(A, 1e-3)], 1.0), ([], 1.5), ([(A, 0.1), (A, 0.2), (B, 0.3), (A, 0.4)], 1.0), ([], 1.0 / 3)],
    "only decays": [([], 0.9), ([], 0.9)],
}


def of_signs(passes):
    return [([(key.to(SIGNS), c) for key, c in terms], decay) for terms, decay in passes]


def each_group(value):
    """A number as one value a group, none of them the same."""
    return value * (1 + torch.arange(GROUPS) / 8)


def handed(passes):
    """What ``ops.replay_`` hands to a backend beside a table: keys, instructions, and values [n, 1]."""
    taken = [([], torch.zeros(0, dtype=torch.uint8), torch.zeros(0, 1))]  # nothing, where there is nothing to do
    with pytest.MonkeyPatch.context() as patch, use_backend("reference"):
        patch.setattr(reference, "replay_", lambda table, *given: taken.append(given))
        ops.replay_(Layout([torch.ones(1)]), passes)
    return taken[-1]


def check_replay(replay_, dtype, pieces, passes, device="cpu", later=0):
    """``replay_`` of a backend against the oracle's add_noise_ with every step ``later``, one pass after the other."""
    random = torch.Generator().manual_seed(len(passes))
    special = torch.tensor([-0.0, 0.0, torch.finfo(dtype).smallest_normal / 4, -torch.finfo(dtype).max, torch.finfo(dtype).max / 2])
    memory = []
    for p in pieces:
        tensor = torch.randn(p.extent + p.shift + 2 * AROUND, generator=random).to(dtype)
        some = tensor[AROUND + p.shift + 2 :][: max(p.extent - 2, 0)][:: max(p.count // 50, 1)]
        some.copy_(special.to(dtype).repeat(len(some) // 5 + 1)[: len(some)])
        memory.append(tensor)

    def table_of(memory, device):
        rows = (p.row(tensor[AROUND + p.shift :].data_ptr()) for p, tensor in zip(pieces, memory))
        return Table.of(dtype, torch.device(device), GROUPS, rows)

    keys, instructions, values = handed(passes)
    on_device = [tensor.to(device).clone() for tensor in memory]
    replay_(table_of(on_device, device), keys, instructions, each_group(values).to(device))
    with np.errstate(all="ignore"):
        for terms, decay in passes:
            moved = later_by(later, [key for key, _ in terms])
            c = torch.stack([each_group(c) for _, c in terms]) if terms else torch.zeros(0, GROUPS)
            reference.add_noise_(table_of(memory, "cpu"), moved, c, None if decay == 1 else each_group(decay))
    for p, actual, wanted in zip(pieces, on_device, memory):
        x, y = actual.cpu().view(INTEGERS[dtype]), wanted.view(INTEGERS[dtype])
        differ = ((x != y) & ~(actual.cpu().isnan() & wanted.isnan())).nonzero().flatten()
        assert not len(differ), f"{p}: {len(differ)} of {p.count} differ, the first at {differ[0].item() - AROUND - p.shift}"
