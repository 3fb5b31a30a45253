"""Updates of tensors in one launch, compared bit for bit with the oracle's: what every GPU backend is put through."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from zokern.kernels import reference
from zokern.kernels.passes import RULES as UPDATES
from zokern.kernels.passes import WINDOWED_ADAM
from zokern.kernels.tables import KEEP_ALL, Row, State, Table
from zokern.noise import NoiseKey
from zokern.noise.spec import ROUNDING, SIGNS, WEIGHTS

RULES = {**UPDATES, WINDOWED_ADAM.name: WINDOWED_ADAM}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
NUMBERS = (-0.03, 0.9, 0.1, 0.99, 0.01, 1.5, 1e-8)
AROUND = 16  # elements on both sides of a tensor, which must not change: whole vectors of every dtype
SPECIAL = torch.tensor([-0.0, 0.0, 6e-5, -6.2e-5, 3e-8, 1e-40, 65519.0, -65521.0, 3e38, float("inf"), float("-inf"), 0.0])
SPECIAL[-1:].view(torch.int32).fill_(0x7FFFFFFF)  # the NaN of a GPU, which has no bits to carry into


@dataclass
class Piece:
    """A tensor of a launch. Shifts: how many elements theta and the state begin behind a multiple of 16 bytes. ``columns``: of its lines,
    0 for one line; ``gap``, ``step``: elements between two lines in memory, and from the index of one to that of the next."""

    count: int
    first: int = 0
    group: int = 0
    keep_threshold: int = KEEP_ALL
    shift: int = 0
    state_shift: int = 0
    columns: int = 0
    gap: int = 0
    step: int = 0

    @property
    def line(self):
        return self.columns or max(self.count, 1)

    @property
    def extent(self):
        """Elements of memory from the first to behind the last line."""
        return self.count // self.line * (self.line + self.gap)

    def row(self, address, out=None, out_pitch=None):
        pitch = self.line + self.gap
        to = (address, pitch) if out is None else (out, out_pitch)
        return Row(address, pitch, *to, self.count, self.line, self.first, self.step or self.line, self.group, self.keep_threshold)


MIXED = [
    Piece(2048 + 29, 4096, 1),
    Piece(3, 2 * 4096, 0),
    Piece(0),
    Piece(1024 + 5, 3 * 4096, 2, KEEP_ALL // 3),
    Piece(77, 4 * 4096, 1, 2**30),
]
DENSE = MIXED[:3]
# What each of the kernels' choices must not change, one at a time; the state is misaligned where theta is not, and the other way round.
POSITIONS = {
    "misaligned": [Piece(1100, 4096, shift=1)],
    "state misaligned": [Piece(1100, 4096, state_shift=3)],
    "first is no multiple of a Philox block": [Piece(1100, 4097)],
    "first is no multiple of a block of rounding": [Piece(1100, 4100)],
    "past 2^34": [Piece(1100, 2**34 + 8), Piece(1100, 2**35 + 2**34 + 5)],
    "across 2^34": [Piece(1100, 2**34 - 1024)],
    "across 2^35, masked": [Piece(1100, 2**35 - 1000, keep_threshold=2**31)],
}
LINES = [  # whole vectors; odd lines; lines that begin anywhere; one long enough for spans of its own, and one that is one line
    Piece(64 * 40, 4096, 1, columns=64, gap=64, step=256),
    Piece(8 * 130, 3 * 4096, 2, columns=8, gap=24, step=8),
    Piece(33 * 50, 5 * 4096, 0, columns=33, gap=2, step=70),
    Piece(24 * 20, 2**20, 1, columns=24, gap=8, step=41),
    Piece(24 * 20, 2**20 + 4096, 1, columns=24, gap=3),
    Piece(90, 7 * 4096, 1, columns=1, gap=2, step=3),
    Piece(4200 * 2, 2**21, 2, columns=4200, gap=8, step=4208),
    Piece(1024 + 5, 2**22, 0),
    Piece(64 * 20, 2**34 - 640, 1, columns=64, gap=64, step=64),
]
MASKED_LINES = [*LINES[1:5], Piece(64 * 20, 8 * 4096, 2, 2**31, columns=64, gap=64, step=128), Piece(1100, 9 * 4096, 0, 2**30)]
# (rule, dtype of theta, dtype of the state)
KINDS = [("sign", dtype, torch.float32) for dtype in DTYPES]
KINDS += list(product(("momentum", "adam", "amsgrad"), DTYPES, (torch.float32, torch.bfloat16)))
KINDS += [(WINDOWED_ADAM.name, dtype, torch.float32) for dtype in DTYPES]
IN_16_BITS = [kind for kind in KINDS if kind[1] != torch.float32]


def keys_of(n, signs=False):
    """Of one kind of noise."""
    purpose = (lambda k: SIGNS + k % 2) if signs else (lambda k: k % SIGNS)
    return [NoiseKey(2**63 + k, 2**32 - 1 - k, purpose(k) << 24 | 2**24 - 1 - k) for k in range(n)]


def later_by(steps, keys):
    return [NoiseKey(key.seed, (key.step + steps) % 2**32, key.stream) for key in keys]


def coefficients(rule, random):
    """(a, b) of an update of random numbers [1 + the rule's of a key, keys, groups]. The last ones of several weigh squares."""
    a, *b = random
    return (a, b[0]) if len(b) == 1 else (a, torch.stack([*b[:-1], b[-1].abs()]))


def with_special(theta):
    """Around every boundary, here and there."""
    some = theta[AROUND:-AROUND:23]
    some.copy_(SPECIAL.repeat(len(some) // len(SPECIAL) + 1)[: len(some)])
    return theta


def differing(actual, wanted):
    """Where bits differ. A NaN is a NaN."""
    actual = actual.cpu()
    x, y = (t.view(INTEGERS[t.dtype]) for t in (actual, wanted))
    return ((x != y) & ~(actual.isnan() & wanted.isnan())).nonzero().flatten()


def check_update(update_, rule, dtype, state_dtype, pieces, keys, decay=False, at_random=False, device="cpu", later=0):
    """``update_`` of a backend, and the oracle's with every step ``later``."""
    rule, groups = RULES[rule], 1 + max(piece.group for piece in pieces)
    generator = torch.Generator().manual_seed(len(keys))
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    slots, n = len(rule.state), len(rule.numbers)
    a, b = coefficients(rule, random(1 + rule.of_key, len(keys), groups))
    a /= 8
    numbers = torch.tensor(NUMBERS[:n])[:, None] * (1 + torch.arange(groups) / 8)
    decay = 1 - torch.arange(1, groups + 1) / 64 if decay else None
    rounding_of = lambda probe: NoiseKey.of(2**64 - 5, 2**32 - 9, ROUNDING, probe)  # noqa: E731
    rounding = [rounding_of(6 + s) for s in range(slots)] if state_dtype == torch.bfloat16 else None, rounding_of(WEIGHTS)
    memory = [[with_special(random(p.extent + p.shift + 2 * AROUND)).to(dtype)] for p in pieces]
    for p, tensors in zip(pieces, memory):
        tensors += [random(p.count + p.state_shift + 2 * AROUND).abs().to(state_dtype) for _ in range(slots)]

    def run(update_, memory, later, device):
        held = [[t[AROUND + s :] for t, s in zip(ts, (p.shift, *[p.state_shift] * slots))] for p, ts in zip(pieces, memory)]
        rows = (p.row(ts[0].data_ptr()) for p, ts in zip(pieces, held))
        table = Table.of(dtype, torch.device(device), groups, rows)
        addresses = torch.tensor([[t.data_ptr() for t in ts[1:]] for ts in held], dtype=torch.int64).reshape(len(pieces), slots)
        values = [v if v is None else v.to(device) for v in (a, b, decay, numbers)]
        of_state, of_theta = rounding[0] and later_by(later, rounding[0]), later_by(later, rounding[1:])[0] if at_random else None
        update_(table, rule, later_by(later, keys), *values, State(state_dtype, addresses), of_state, of_theta)

    on_device = [[t.to(device).clone() for t in ts] for ts in memory]
    with np.errstate(all="ignore"):  # Triton's interpreter is NumPy too
        run(update_, on_device, 0, device)
        run(reference.update_, memory, later, "cpu")
    for p, actual, wanted in zip(pieces, on_device, memory):
        for name, x, y in zip(("theta", *rule.state), actual, wanted):
            differ = differing(x, y)
            assert not len(differ), f"{name} of {p}: {len(differ)} differ, the first at {differ[0].item() - AROUND}"
