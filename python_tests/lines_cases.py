"""Passes over tensors that are lines, in place and out of place, with normals and signs, compared bit for bit with the oracle's, all of
the memory around them included: what every backend may be put through."""

from dataclasses import dataclass

import numpy as np
import torch

from zokern.kernels import reference
from zokern.kernels.passes import RULES
from zokern.kernels.tables import KEEP_ALL, Row, State, Table
from zokern.noise import NoiseKey
from zokern.noise.spec import ROUNDING, SIGNS, WEIGHTS

GROUPS = 2
AROUND = 64  # elements on both sides of a tensor, which must not change
NUMBERS = (-0.03, 0.9, 0.1, 0.99, 0.01, 1.5, 1e-8)
ROUNDING_KEY = NoiseKey.of(2**64 - 3, 2**32 - 5, ROUNDING, WEIGHTS)


@dataclass(frozen=True)
class Lines:
    """``count`` lines of a tensor. ``gap``, ``out_gap``, ``skip``: elements between the end of one line and the next one's begin, in
    theta, in out, and in indices. ``shift``: how many elements they begin behind a multiple of 16 bytes."""

    count: int
    columns: int
    first: int = 4096
    gap: int = 0
    out_gap: int = 0
    skip: int = 0
    group: int = 0
    keep_threshold: int = KEEP_ALL
    shift: int = 0


CONTIGUOUS = [Lines(1, 2 * 4096 + 13, group=1), Lines(1, 3, 5), Lines(1, 0), Lines(1, 1100, 2**20 + 128)]
# Whole vectors and Philox blocks, in tiles that hold several lines or parts of them; and anything.
LINES = [
    Lines(9, 1024, gap=128, out_gap=64, skip=3 * 1024, group=1),
    Lines(40, 128, gap=8, out_gap=16, skip=128),
    Lines(1, 4096 + 7, 2**20, group=1),
    Lines(3, 0),
    Lines(7, 13, gap=3, out_gap=1, skip=100),
    Lines(9, 1, 2**40 + 3, gap=2, out_gap=3, skip=8, group=1),
    Lines(3, 800, gap=8, out_gap=8, skip=96),
]
# What each of a kernel's choices must not change, one at a time.
ONE_BY_ONE = {
    "misaligned": Lines(3, 1536, gap=8, out_gap=8, skip=512, shift=1),
    "a gap that is no vector": Lines(3, 1536, gap=3, out_gap=8, skip=512),
    "columns that are no vector": Lines(3, 1532, gap=12, out_gap=4, skip=4),
    "a gap of out that is no vector": Lines(3, 1536, gap=8, out_gap=1, skip=512),
    "a step that is no Philox block": Lines(3, 1536, gap=8, out_gap=8, skip=2),
    "a step that is no block of signs": Lines(3, 1536, gap=8, out_gap=8, skip=64),
    "a first that is no block of rounding": Lines(3, 1536, 4100, gap=8, out_gap=8, skip=512),
    "across 2^34": Lines(3, 1536, 2**34 - 2048, gap=8, out_gap=8, skip=512),
    "across 2^39": Lines(3, 1536, 2**39 - 2048, gap=8, out_gap=8, skip=512),
    "past 2^39": Lines(3, 1536, 2**40 + 2**39, gap=8, out_gap=8, skip=512),
}
MASKED = [
    Lines(3, 1536, gap=8, out_gap=8, skip=512, keep_threshold=2**31),
    Lines(2, 37, gap=1, group=1, keep_threshold=2**30),
    Lines(1, 1100, 2**20),
]


def keys_of(n, signs=False):
    return [NoiseKey.of(2**63 + k, 2**32 - 1 - k, SIGNS if signs else 0, k) for k in range(n)]


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def special(memory, dtype):
    """Zeros, subnormals and the greatest among ordinary values."""
    some = torch.tensor([-0.0, torch.finfo(dtype).smallest_normal / 4, -torch.finfo(dtype).max, 65519.0, 65520.0, 6.2e-5, -3e-6])
    memory[5::97] = some.repeat(len(memory[5::97]) // len(some) + 1)[: len(memory[5::97])].to(dtype)
    return memory


class Memory:
    """Tensors in one dtype each, with what lies around them."""

    def __init__(self, pieces, dtype, gap, shift="shift"):
        self.starts, end = [], 0
        self.pitches = [p.columns + getattr(p, gap) for p in pieces]
        for p, pitch in zip(pieces, self.pitches):
            self.starts.append(end + AROUND + getattr(p, shift))
            end = -(-(self.starts[-1] + p.count * pitch + AROUND) // AROUND) * AROUND
        self.held = special(values(end, seed=end) / 8, torch.float32).to(dtype)

    def on(self, device):
        """A copy there, and where each tensor begins."""
        held = torch.empty(len(self.held) + AROUND, dtype=self.held.dtype, device=device)
        held = held[-held.data_ptr() // held.element_size() % 16 :][: len(self.held)].copy_(self.held)
        return held, [held.data_ptr() + start * held.element_size() for start in self.starts]


def table_of(pieces, theta, out, device):
    """-> (the table, the memory of theta, the memory that is written)."""
    held, addresses = theta.on(device)
    written, targets = (held, addresses) if out is None else out.on(device)
    rows = [
        Row(
            address,
            pitch,
            target,
            out_pitch,
            p.count * p.columns,
            max(p.columns, 1),
            p.first,
            p.columns + p.skip,
            p.group,
            p.keep_threshold,
        )
        for p, address, pitch, target, out_pitch in zip(
            pieces, addresses, theta.pitches, targets, (theta if out is None else out).pitches, strict=True
        )
    ]
    out_dtype = None if out is None else written.dtype
    return Table.of(held.dtype, torch.device(device), GROUPS, rows, out_dtype=out_dtype), held, written


def assert_same(actual, wanted, what):
    actual = actual.cpu()
    integers = torch.int32 if actual.dtype == torch.float32 else torch.int16
    differ = ((actual.view(integers) != wanted.view(integers)) & ~(actual.isnan() & wanted.isnan())).nonzero().flatten()
    assert not len(differ), f"{what}: {len(differ)} of {len(actual)} differ, the first at {differ[0].item()}"


def check_add_noise(backend, pieces, dtype, out=None, keys=(), decay=False, rounding=None, device="cpu"):
    """``out``: the dtype of what is written; None: in place."""
    theta = Memory(pieces, dtype, "gap")
    target = None if out is None else Memory(pieces, out, "out_gap")
    c = values(len(keys), GROUPS) / 8
    scale = torch.tensor([0.99, 1.25]) if decay else None
    table, held, written = table_of(pieces, theta, target, device)
    backend.add_noise_(table, keys, c.to(device), scale if scale is None else scale.to(device), rounding)
    if target is not None:
        assert_same(held, theta.held, "theta, which is only read")
    table, _, wanted = table_of(pieces, theta, target, "cpu")
    with np.errstate(all="ignore"):
        reference.add_noise_(table, keys, c, scale, rounding)
    assert_same(written, wanted, "what is written")


def check_replay(backend, pieces, dtype, keys, instructions, device="cpu"):
    theta, codes, v = Memory(pieces, dtype, "gap"), torch.tensor(instructions, dtype=torch.uint8), values(len(instructions), GROUPS) / 8
    table, written, _ = table_of(pieces, theta, None, device)
    backend.replay_(table, keys, codes, v.to(device))
    table, wanted, _ = table_of(pieces, theta, None, "cpu")
    with np.errstate(all="ignore"):
        reference.replay_(table, keys, codes, v)
    assert_same(written, wanted, "theta")


def check_update(backend, pieces, rule, dtype, state_dtype, keys, decay=False, device="cpu"):
    rule = RULES[rule]
    theta = Memory(pieces, dtype, "gap")
    flat = [Lines(1, p.count * p.columns) for p in pieces]
    states = [Memory(flat, state_dtype, "gap") for _ in rule.state]
    for state in states:
        state.held = state.held.abs()
    a, b = values(len(keys), GROUPS) / 8, values(len(keys), GROUPS, seed=1)
    numbers = torch.tensor(NUMBERS[: len(rule.numbers)])[:, None] * (1 + torch.arange(GROUPS) / 8)
    scale = torch.tensor([0.99, 1.25]) if decay else None
    rounding = [NoiseKey.of(5, 6, ROUNDING, n) for n in range(len(states))] if state_dtype == torch.bfloat16 else None

    def run(backend, device):
        table, held, _ = table_of(pieces, theta, None, device)
        slots = [state.on(device) for state in states]
        addresses = torch.tensor([where for _, where in slots], dtype=torch.int64).reshape(len(states), len(pieces)).T
        on_device = [v if v is None else v.to(device) for v in (a, b, scale, numbers)]
        backend.update_(table, rule, keys, *on_device, State(state_dtype, addresses), rounding)
        return [held, *(slot for slot, _ in slots)]

    with np.errstate(all="ignore"):
        wanted = run(reference, "cpu")
    for name, x, y in zip(("theta", *rule.state), run(backend, device), wanted):
        assert_same(x, y, name)
