"""The Triton kernels equal the oracle bit for bit: in Triton's interpreter where there is no GPU, on the GPU where there is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from replay_cases import RUNS, check_replay
from triton_cases import DEVICE, MARKS, few_steps  # noqa: F401
from update_cases import DENSE, KINDS, MIXED, POSITIONS, Piece, check_update, keys_of

from zokern.kernels import spans
from zokern.kernels import triton as backend
from zokern.kernels.tables import KEEP_ALL, Table, contiguous
from zokern.noise import NoiseKey, reference

triton = pytest.importorskip("triton", reason="pip install triton")
tl = triton.language
from zokern.kernels.triton import add_noise, noise  # noqa: E402  (needs triton)

pytestmark = MARKS
ROOT = Path(__file__).resolve().parents[2]
KEY = NoiseKey(0xFEDCBA9876543210, 7, 5)
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
F32, BF16, F16 = DTYPES = list(INTEGERS)
# Where the low counter word wraps inside a tensor, where it has just wrapped, and where every index needs 64 bits.
FIRSTS = [0, 1, 4095, 4096, 2**34 - 8, 2**34 + 5, 2**33 + 3]


def add_noise_(tensors, firsts, keys, coefficients, decay=None, groups=None, keep_threshold=KEEP_ALL):
    """The backend on one table. ``coefficients``: [terms, groups] as nested lists; ``decay``: a list or None."""
    groups = groups or [0] * len(tensors)
    rows = (contiguous(t.data_ptr(), t.numel(), first, g, keep_threshold) for t, first, g in zip(tensors, firsts, groups))
    table = Table.of(tensors[0].dtype, tensors[0].device, max(groups) + 1, rows)
    c = torch.tensor(coefficients, dtype=torch.float32, device=DEVICE).reshape(len(keys), table.groups)
    backend.add_noise_(table, keys, c, None if decay is None else torch.tensor(decay, dtype=torch.float32, device=DEVICE))


def make_noise(count, first, key=KEY, dtype=torch.float32):
    """z itself: fma(1, z, -0.0) is z for every z, -0.0 included."""
    theta = torch.full((count,), -0.0, dtype=dtype, device=DEVICE)
    add_noise_([theta], [first], [key], [[1.0]])
    return theta


def expected(theta, first, keys, coefficients, decay=None, keep_threshold=KEEP_ALL):
    """The oracle's arithmetic, with one rounding to the type of theta."""
    acc = theta.float().cpu().numpy()
    if decay is not None:
        acc = np.float32(decay) * acc
    for key, c in zip(keys, coefficients):
        acc = reference.fma(np.float32(c), reference.masked_noise(key, keep_threshold, first, len(acc)), acc)
    return torch.from_numpy(acc).to(theta.dtype)


def assert_same_bits(actual, wanted, what=""):
    actual, wanted = (t.cpu().view(INTEGERS[t.dtype]) for t in (actual, wanted))
    differ = (actual != wanted).nonzero().flatten()
    assert not len(differ), f"{what}: {len(differ)} of {len(wanted)} elements differ, the first at {differ[0].item()}"


def weights(count, dtype, seed=0):
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) / 50).to(dtype).to(DEVICE)


def test_golden_vectors(golden):
    for (seed, step, stream, first), bits in golden:
        z = make_noise(len(bits), first, NoiseKey(seed, step, stream))
        assert_same_bits(z, torch.from_numpy(bits.view(np.float32)), f"{seed} {step} {stream} {first}")


@pytest.mark.parametrize("first", FIRSTS)
def test_noise_is_the_oracles(first):
    sizes = [0, 1, 3, 4, 5, 1023, 4096, 4097, 8192 + 3] if first == 0 else [3, 8192 + 3]
    tensors = [torch.full((n,), -0.0, device=DEVICE) for n in sizes]
    add_noise_(tensors, [first] * len(sizes), [KEY], [[1.0]])
    for tensor in tensors:
        assert_same_bits(tensor, torch.from_numpy(reference.normal(KEY, first, len(tensor))), f"{len(tensor)} elements from {first}")


CASES = [  # dtype, terms, decay
    (torch.float32, 0, True),
    (torch.float32, 2, False),
    (torch.float32, 3, True),
    (torch.bfloat16, 0, True),
    (torch.bfloat16, 1, False),
    (torch.bfloat16, 2, True),
    (torch.float16, 1, True),
    (torch.float16, 3, False),
]


@pytest.mark.parametrize("dtype, terms, decay", CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_terms_decay_and_groups(dtype, terms, decay):
    """Mixed sizes in one launch; each group has its own coefficients and decay."""
    keys = [NoiseKey(2**63 + k, k, k << 24) for k in range(terms)]
    coefficients = [[0.1 + k, -1e-3 * (k + 1)] for k in range(terms)]
    decays = [0.99, 1.0 - 2**-9] if decay else None
    sizes, firsts, groups = [4096 + 5, 7], [3 * 4096, 4096], [1, 0]
    tensors = [weights(n, dtype, seed=n) for n in sizes]
    before = [t.clone() for t in tensors]
    add_noise_(tensors, firsts, keys, coefficients, decays, groups)
    for tensor, theta, first, g in zip(tensors, before, firsts, groups):
        wanted = expected(theta, first, keys, [c[g] for c in coefficients], decays[g] if decay else None)
        assert_same_bits(tensor, wanted, f"{len(tensor)} elements of group {g}")


@pytest.mark.parametrize("dtype, terms", [(torch.float32, 1), (torch.bfloat16, 2), (torch.float16, 3)], ids=str)
@pytest.mark.parametrize("first", [0, 2**34 + 5])
def test_masks(dtype, terms, first):
    keys, coefficients = keys_of(terms), [0.1 + k for k in range(terms)]
    theta = weights(4096 + 77, dtype)
    wanted = expected(theta, first, keys, coefficients, keep_threshold=2**30)
    add_noise_([theta], [first], keys, [[c] for c in coefficients], keep_threshold=2**30)
    assert_same_bits(theta, wanted)


# In the interpreter every run in one dtype, and one with masks and many kinds of passes in all three; on a GPU all of each
# (TestOnGPU).
RUNS_OF = [(name, DTYPES[n % 3]) for n, name in enumerate(RUNS) if name != "without terms"]
RUNS_OF += [("without terms", dtype) for dtype in DTYPES]


@pytest.mark.parametrize("name, dtype", RUNS_OF, ids=str)
def test_a_run_of_passes(name, dtype):
    """A whole block and ragged counts, groups and, with the longer runs, masks in one launch."""
    masked = name in ("steps", "without terms")
    check_replay(backend.replay_, dtype, MIXED if masked else [Piece(4096 + 5, 4096, 1), *DENSE], RUNS[name], device=DEVICE)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_run_of_passes_anywhere(position):
    check_replay(backend.replay_, torch.bfloat16, POSITIONS[position], RUNS["a step"], device=DEVICE)


# In the interpreter every rule in every dtype, and every rule and every dtype with both types of state.
FEW = KINDS if DEVICE == "cuda" else [*KINDS[:3], *(kind for n, kind in enumerate(KINDS[3:]) if (n // 2 + n) % 2 == 0)]


@pytest.mark.parametrize("rule, dtype, state", FEW, ids=str)
def test_update(rule, dtype, state):
    """Ragged counts and groups in one launch."""
    check_update(backend.update_, rule, dtype, state, DENSE, keys_of(1), device=DEVICE)


KINDS_MASKED = [("sign", 0, torch.float32), ("momentum", 1, torch.bfloat16), ("adam", 3, torch.float32), ("amsgrad", 2, torch.bfloat16)]
KINDS_MASKED += [("windowed-adam", 4, torch.float32)]


@pytest.mark.parametrize("rule, n, state", KINDS_MASKED, ids=str)
def test_update_with_masks_decay_and_any_number_of_keys(rule, n, state):
    check_update(backend.update_, rule, DTYPES[n % 3], state, MIXED, keys_of(n), decay=True, device=DEVICE)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype, state", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2], ids=str)
def test_update_anywhere(dtype, state, position):
    check_update(backend.update_, "amsgrad", dtype, state, POSITIONS[position], keys_of(1), device=DEVICE)


KINDS_ROUNDED = [("sign", 1, F16, F32), ("momentum", 2, BF16, BF16), ("adam", 1, F16, BF16), ("amsgrad", 1, BF16, F32)]
KINDS_ROUNDED += [("windowed-adam", 2, BF16, F32)]


@pytest.mark.parametrize("rule, n, dtype, state", KINDS_ROUNDED, ids=str)
def test_update_rounded_at_random(rule, n, dtype, state):
    """By bits of their own beside those of the state."""
    pieces = MIXED if n == 2 else [*DENSE, *POSITIONS["first is no multiple of a block of rounding"], *POSITIONS["across 2^34"]]
    check_update(backend.update_, rule, dtype, state, pieces, keys_of(n), n == 2, at_random=True, device=DEVICE)


def test_float32_weights_are_stored_as_they_are():
    check_update(backend.update_, "momentum", F32, BF16, DENSE, keys_of(1), at_random=True, device=DEVICE)


def test_no_terms_and_no_decay_write_nothing():
    theta = weights(9, torch.float32)
    before = theta.clone()
    add_noise_([theta], [0], [], [])
    assert_same_bits(theta, before)


def test_terms_are_added_in_order():
    keys = [NoiseKey(1, step) for step in range(7)]
    theta = weights(33, torch.float32)
    wanted = expected(theta, 4096, keys, [10.0**-k for k in range(7)])
    add_noise_([theta], [4096], keys, [[10.0**-k] for k in range(7)])
    assert_same_bits(theta, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_at_any_address_leave_their_neighbours_alone(dtype):
    whole = weights(4096 + 64, dtype)
    for begin, end in ((1, 4096 + 1), (8, 4096 + 8 + 3)):  # misaligned; aligned with a ragged end
        before = whole.clone()
        add_noise_([whole[begin:end]], [4096], [KEY], [[0.5]])
        assert_same_bits(whole[begin:end], expected(before[begin:end], 4096, [KEY], [0.5]), f"[{begin}:{end}]")
        assert_same_bits(whole[:begin], before[:begin])
        assert_same_bits(whole[end:], before[end:])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, on inf - inf in the interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_not_finite_stays_so_and_the_smallest_survive(dtype):
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), torch.finfo(dtype).smallest_normal / 4, -0.0], dtype=dtype)
    for count in (len(special), 4096):  # the path by elements, and the path by blocks
        theta = special.repeat(-(-count // len(special)))[:count].to(DEVICE)
        before = theta.clone()
        add_noise_([theta], [0], [KEY], [[0.0]])
        assert torch.equal(theta.isnan(), before.isnan())
        kept = ~before.isnan() & ~(before == 0)  # -0.0 + 0 * z is either zero
        assert_same_bits(theta[kept], before[kept])
        assert (theta[before == 0] == 0).all()


def test_bfloat16_rounds_to_nearest_even():
    """A decay of 1.5 makes a tie of every other product below 2."""
    theta = torch.arange(0x3F80, 0x3F80 + 128, dtype=torch.int16).view(torch.bfloat16).to(DEVICE)
    wanted = expected(theta, 0, [], [], 1.5)
    add_noise_([theta], [0], [], [], [1.5])
    assert_same_bits(theta, wanted)
    add_noise_([theta], [0], [KEY], [[np.uint32(0x7FFFFFFF).view(np.float32)]])
    assert theta.isnan().all(), "rounding must not carry a NaN into its sign"


@triton.jit
def fma_kernel(operands, result):
    i = tl.arange(0, 4)
    tl.store(result + i, noise.fma(tl.load(operands + i), tl.load(operands + 4 + i), tl.load(operands + 8 + i)))


def test_fma_rounds_once():
    """Sums a hair beside a tie of float32, closer than float64 can tell: rounding twice gives the even neighbour."""
    a, b, c = 64 * (1 + 2**-23), 1 - 2**-23, 2.0**30 + 2**7
    operands = torch.tensor([[a, -a, a, -a], [b, b, b, b], [c, -c, -c, c]], device=DEVICE)
    result = torch.empty(4, device=DEVICE)
    fma_kernel[(1,)](operands, result)
    assert result.tolist() == [c, -c, -c, c]


@pytest.mark.parametrize("programs, block, warps", [(1, 4096, 4), (5, 2048, 2), (10**6, 8192, 4)])
def test_noise_does_not_depend_on_the_launch(monkeypatch, programs, block, warps):
    for place, name, value in (
        (spans, "PROGRAMS", programs),
        (spans, "BLOCK", block),
        (add_noise, "BLOCK", block),
        (add_noise, "WARPS", warps),
    ):
        monkeypatch.setattr(place, name, value)
    count, first = 3 * 4096 + 3, 2**34 - 8192  # a span may end where the low counter word wraps, or go past it
    assert_same_bits(make_noise(count, first, dtype=torch.bfloat16), torch.from_numpy(reference.normal(KEY, first, count)).bfloat16())


def test_the_package_does_not_load_triton():
    code = "import sys, zokern.kernels.triton; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("terms", [1, 2, 5])
    def test_a_million_elements(self, dtype, terms):
        theta = weights(1_000_003, dtype)
        keys = [NoiseKey(3, step) for step in range(terms)]
        wanted = expected(theta, 2**33, keys, [0.01] * terms, 0.999)
        add_noise_([theta], [2**33], keys, [[0.01]] * terms, [0.999])
        assert_same_bits(theta, wanted)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_run_of_passes(self, dtype):
        for run in RUNS.values():
            check_replay(backend.replay_, dtype, [Piece(1_000_003, 4096, 1), *MIXED], run, device=DEVICE)

    @pytest.mark.parametrize("rule, dtype, state", KINDS, ids=str)
    @pytest.mark.parametrize("masked, at_random", [(False, False), (True, True)])
    def test_update(self, rule, dtype, state, masked, at_random):
        """Two kernels of each kind, which compile for seconds: one key, all noise; nine keys, masks, decay, theta rounded at random."""
        every = [[Piece(1_000_003, 4096, 1)], DENSE, MIXED, *POSITIONS.values()]
        for pieces in every:
            if masked == any(piece.keep_threshold != KEEP_ALL for piece in pieces):
                check_update(backend.update_, rule, dtype, state, pieces, keys_of(9 if masked else 1), masked, at_random, DEVICE)

    def test_the_host_does_not_wait(self):
        theta, keys = weights(100_000, torch.bfloat16), [KEY, NoiseKey(1)]
        table = Table.of(theta.dtype, theta.device, 1, [contiguous(theta.data_ptr(), theta.numel(), 0)])
        c = torch.ones(2, 1, device=DEVICE)
        backend.add_noise_(table, keys, c, None)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            backend.add_noise_(table, keys, c, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_runs_on_the_current_stream(self):
        theta = weights(1_000_000, torch.float32)
        wanted = expected(theta, 0, [KEY, KEY], [1.0, -0.5])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for c in (1.0, -0.5):
                add_noise_([theta], [0], [KEY], [[c]])
        stream.synchronize()
        assert_same_bits(theta, wanted)
