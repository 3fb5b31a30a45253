"""The C++ backend where a pass has two addresses, lines, signs or random rounding: it equals the oracle bit for bit."""

from functools import cache

import numpy as np
import pytest
import torch
from replay_cases import RUNS, handed
from update_cases import IN_16_BITS, MASKED_LINES, MIXED, POSITIONS, check_update
from update_cases import LINES as PIECES
from update_cases import keys_of as keys_of_a_kind

from zokern import NoiseKey
from zokern.kernels import cpu
from zokern.kernels import reference as reference_backend
from zokern.kernels.passes import RULES
from zokern.kernels.tables import Row, State, Table, contiguous
from zokern.noise.spec import ANCHOR_SIGNS, PERTURBATION, ROUNDING, SIGNS, WEIGHTS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WRAP = 2**34  # elements after which the low word of the block counter of normals starts again


def bits(tensor):
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def keys_of(n):
    return [NoiseKey(2**64 - 1 - k, 2**32 - 1 - k, k) for k in range(n)]


# (lines, columns, first, step of first, group, ratio kept): lines shorter and longer than a tile, and than what signs are drawn for at a
# time; counters of signs wrap at 2^39 elements.
LINES = [
    (3, 1, 5, 7, 0, 1.0),
    (7, 129, 4096, 512, 1, 1.0),
    (2, 5001, WRAP - 3000, 8192, 0, 1.0),
    (5, 200, 2 * WRAP - 800, 301, 1, 0.4),
    (1, 4099, 2**40 + 7, 1, 2, 1.0),
    (0, 1, 0, 1, 0, 0.5),
    (4, 512, 512, 2048, 2, 1.0),
    (2, 700, 32 * WRAP - 900, 900, 0, 0.5),
]
KINDS = {"normals": (PERTURBATION,), "signs": (SIGNS, ANCHOR_SIGNS)}
WEIGHTS_KEY = NoiseKey.of(2**64 - 7, 2**32 - 2, ROUNDING, WEIGHTS)


def lines_of(dtype, out_dtype=None):
    """-> tensors with something around every line of LINES, and their table."""
    generator = torch.Generator().manual_seed(7)
    tensors, rows = [], []
    for i, (lines, columns, first, step, group, keep) in enumerate(LINES):
        pitches = columns + 2 * i % 5, columns + i % 3
        held = [torch.randn(lines * n + 64, generator=generator).to(d) for n, d in zip(pitches, (dtype, out_dtype or dtype))]
        held[0][17 + i :: 37] = torch.finfo(dtype).max  # overflows where it is written in less
        (here, pitch), (there, out_pitch) = ((t.data_ptr() + (16 + i) * t.element_size(), n) for t, n in zip(held, pitches))
        if out_dtype is None:
            there, out_pitch = here, pitch
        rows.append(Row(here, pitch, there, out_pitch, lines * columns, columns, first, step, group, int(keep * 2**32) - 1))
        tensors += held
    return tensors, Table.of(dtype, torch.device("cpu"), 3, rows, out_dtype=out_dtype)


def of_kind(kind, n):
    return [key.to(KINDS[kind][k % len(KINDS[kind])]) for k, key in enumerate(keys_of(n))]


def added(backend, dtype, out_dtype, kind, rounding):
    """All memory after several passes, each over memory of its own."""
    results = []
    for n_keys, decay in ((0, None), (0, [0.5, 1.0, 2.0]), (1, None), (1, [0.5, 1.0, 2.0]), (2, None), (9, None)):
        tensors, table = lines_of(dtype, out_dtype)
        c = torch.randn(n_keys, 3, generator=torch.Generator().manual_seed(n_keys))
        with np.errstate(all="ignore"):
            backend.add_noise_(table, of_kind(kind, n_keys), c, None if decay is None else torch.tensor(decay), rounding)
        results += tensors
    return results


added_by_the_oracle = cache(lambda *case: added(reference_backend, *case))


@pytest.mark.parametrize("rounding", [None, WEIGHTS_KEY], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype, out_dtype",
    [*((d, None) for d in DTYPES), *((d, d) for d in DTYPES), (torch.float32, torch.bfloat16), (torch.float32, torch.float16)],
)
def test_lines_from_here_to_there(isa, dtype, out_dtype, kind, rounding):
    """Nothing between the lines and around them is written, nor theta where out is another tensor."""
    case = dtype, out_dtype, kind, rounding
    for ours, theirs in zip(added(cpu, *case), added_by_the_oracle(*case), strict=True):
        assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_of_passes_over_lines(isa, dtype, kind):
    keys, instructions, values = handed(4 * RUNS["queries"] + RUNS["without terms"])
    keys, values, results = of_kind(kind, len(keys)), values * torch.tensor([1.0, -0.5, 1.125]), []
    for backend in (cpu, reference_backend):
        tensors, table = lines_of(dtype)
        with np.errstate(all="ignore"):
            backend.replay_(table, keys, instructions, values)
        results.append(tensors)
    for ours, theirs in zip(*results):
        assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_of_lines(isa, dtype, kind, state_dtype):
    """The state of a tensor is contiguous, whatever the tensor's lines."""
    generator = torch.Generator().manual_seed(8)
    a, b, decay = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator), torch.tensor([0.5, 1.0, 2.0])
    numbers = torch.rand(7, 3, generator=generator) + 0.01
    for rule in (RULES["momentum"], RULES["adam"]):
        keys = [NoiseKey.of(5, 6, ROUNDING, s) for s in range(len(rule.state))]
        results = []
        for backend in (cpu, reference_backend):
            tensors, table = lines_of(dtype)
            state = [torch.rand(lines * columns + 5, generator=generator.manual_seed(9)).to(state_dtype) for lines, columns, *_ in LINES]
            state = [[tensor.clone() for tensor in state] for _ in rule.state]
            addresses = torch.tensor([[tensor[3:].data_ptr() for tensor in row] for row in zip(*state)])
            n, rounding = numbers[: len(rule.numbers)].clone(), keys if state_dtype == torch.bfloat16 else None
            with np.errstate(all="ignore"):
                backend.update_(table, rule, of_kind(kind, 2), a, b, decay, n, State(state_dtype, addresses), rounding)
            results.append([*tensors, *(tensor for slot in state for tensor in slot)])
        for ours, theirs in zip(*results):
            assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize("rule, dtype, state", IN_16_BITS, ids=str)
def test_updates_rounded_at_random(isa, rule, dtype, state):
    """Of all kinds of noise and wherever the elements lie, by bits of their own beside those of the state."""
    for n, pieces in ((0, MIXED), (1, PIECES), (2, sum(POSITIONS.values(), []))):
        check_update(cpu.update_, rule, dtype, state, pieces, keys_of_a_kind(n), at_random=True)
    for n, pieces in ((1, PIECES), (2, MASKED_LINES)):
        check_update(cpu.update_, rule, dtype, state, pieces, keys_of_a_kind(n, signs=True), True, at_random=True)


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_rounding_at_random_of_every_kind_of_value(isa, out_dtype):
    """Around every boundary: zero, denormals of both types, powers of two, the largest, overflow, infinities, NaN."""
    middles = torch.tensor(
        [2.0**-149, 2.0**-133, 2.0**-126, 2.0**-40, 2.0**-25, 2.0**-24, 2.0**-15, 2.0**-14, 1.0, 2.0**15, 65504.0, 65520.0]
    )
    near = torch.cat([middles.view(torch.int32) + i for i in range(-3, 4)]).view(torch.float32)
    magnitudes = torch.cat([near, torch.tensor([0.0, 1.1, 6e-8, 3.5e-5, 1e30, 3.4e38, torch.inf])])
    theta = torch.cat([magnitudes, -magnitudes, torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)]).repeat(
        20
    )
    results = []
    for backend in (cpu, reference_backend):
        out = torch.empty(len(theta), dtype=out_dtype)
        row = contiguous(theta.data_ptr(), len(theta), 3)._replace(out=out.data_ptr())
        with np.errstate(all="ignore"):
            table = Table.of(theta.dtype, theta.device, 1, [row], out_dtype=out_dtype)
            backend.add_noise_(table, [], torch.zeros(0, 1), None, WEIGHTS_KEY)
        results.append(out)
    ours, theirs = results
    assert torch.equal(ours.isnan(), theta.isnan()) and torch.equal(theirs.isnan(), theta.isnan())
    assert torch.equal(bits(ours)[~ours.isnan()], bits(theirs)[~theirs.isnan()])


@pytest.mark.parametrize("dtype, out_dtype", [(torch.float32, torch.float16), (torch.bfloat16, None)])
def test_threads_change_no_line(isa, dtype, out_dtype):
    before = torch.get_num_threads()
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            for ours, theirs in zip(
                added(cpu, dtype, out_dtype, "signs", WEIGHTS_KEY), added_by_the_oracle(dtype, out_dtype, "signs", WEIGHTS_KEY)
            ):
                assert torch.equal(bits(ours), bits(theirs))
    finally:
        torch.set_num_threads(before)
