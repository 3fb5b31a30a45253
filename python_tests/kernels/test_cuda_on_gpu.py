"""The CUDA kernels on a GPU, as ptxas has made them: the oracle's bits."""

import numpy as np
import pytest
import torch
from add_noise_cases import DTYPES, KEY, STORED, add_noise_, assert_same_bits, check_add_noise, expected, weights
from replay_cases import RUNS, check_replay, of_signs
from update_cases import DENSE, KINDS, LINES, MASKED_LINES, MIXED, POSITIONS, Piece, check_update, keys_of

from zokern import Layout, NoiseKey, ops, use_backend
from zokern.kernels import cuda
from zokern.kernels.tables import KEEP_ALL

pytestmark = pytest.mark.gpu

LARGE = [Piece(1_000_003, 4096, 1)]


@pytest.fixture(autouse=True)
def forced():
    with use_backend("cuda"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("shift", [0, 1])
def test_the_oracle_and_triton(dtype, terms, shift):
    theta = weights(1_000_003, dtype)
    keys = [NoiseKey(3, step) for step in range(terms)]
    wanted = expected(theta[shift:], 0, keys, [0.01] * terms, 0.999)
    for name in ("cuda", "triton"):
        on_gpu = theta.cuda()[shift:]
        with use_backend(name):
            ops.add_noise_(Layout([on_gpu]), [(key, 0.01) for key in keys], 0.999)
        assert_same_bits(on_gpu.cpu(), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms, decay, clock", [(1, False, None), (1, True, 7), (2, True, None), (2, False, 2**30), (9, True, 90)])
@pytest.mark.parametrize("keep_threshold", [KEEP_ALL, 2**30])
def test_groups_masks_and_a_clock(dtype, terms, decay, clock, keep_threshold):
    sizes, firsts = [1, 4096, 5, 9000, 0, 64, 8192], [0, 4096, 8192, 2**34 - 4096, 7 * 4096, 2**34 + 5, 2**63 - 9000]
    tensors = [weights(n, dtype, seed=n) for n in sizes]
    keys = [NoiseKey(2**63 + k, k, k << 24 | 2**24 - 1 - k) for k in range(terms)]
    later = [NoiseKey(key.seed, (key.step + (clock or 0)) % 2**32, key.stream) for key in keys]
    c = [[1e-3 * (k + 1), -0.5, 0.25 * k] for k in range(terms)]
    d = [1.0, 0.9, 0.0] if decay else None
    wanted = [
        expected(t, f, later, [row[i % 3] for row in c], d and d[i % 3], keep_threshold) for i, (t, f) in enumerate(zip(tensors, firsts))
    ]
    on_gpu = [t.cuda() for t in tensors]
    add_noise_(cuda, on_gpu, firsts, keys, c, d, clock, keep_threshold)
    for t, w in zip(on_gpu, wanted, strict=True):
        assert_same_bits(t.cpu(), w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("first", [0, 1, 4095, 2**32 - 1, 2**34 - 2049, 2**34 - 1, 5 * 2**34 + 2])
def test_any_place_leaves_its_neighbours_alone(dtype, shift, first):
    memory = weights(13_000, dtype).cuda()
    before, theta = memory.clone(), memory[shift : shift + 4 * 3000 + 1]
    wanted = expected(theta, first, [KEY], [0.5])
    add_noise_(cuda, [theta], [first], [KEY], [[0.5]])
    assert_same_bits(theta.cpu(), wanted)
    assert_same_bits(memory[:shift], before[:shift])
    assert_same_bits(memory[shift + len(theta) :], before[shift + len(theta) :])


def test_special_values_round_as_torch_rounds():
    for dtype in DTYPES[1:]:
        theta = torch.tensor([float("inf"), float("-inf"), 0.0, -0.0, 3e-8, 65504.0, 1e-40, 2.0**-14]).to(dtype).repeat(1024)
        wanted = expected(theta, 0, [KEY], [0.0])
        add_noise_(cuda, [on_gpu := theta.cuda()], [0], [KEY], [[0.0]])
        assert_same_bits(on_gpu.cpu(), wanted)
        nan = torch.full((8192,), float("nan"), dtype=dtype, device="cuda")
        add_noise_(cuda, [nan], [0], [KEY], [[1.0]])
        assert nan.isnan().all()


def test_golden_vectors(golden):
    for (seed, step, stream, first), bits in golden:
        z = torch.full((len(bits),), -0.0, device="cuda")
        add_noise_(cuda, [z], [first], [NoiseKey(seed, step, stream)], [[1.0]])
        assert_same_bits(z.cpu(), torch.from_numpy(bits.view(np.float32)))


@pytest.mark.parametrize("at_random", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("signs", [False, True], ids=["normals", "signs"])
@pytest.mark.parametrize("dtype, stored", STORED, ids=str)
def test_two_addresses(dtype, stored, signs, at_random):
    for pieces in (DENSE, MIXED, LINES, MASKED_LINES, LARGE, *POSITIONS.values()):
        many = pieces is MIXED or pieces is LARGE  # NumPy takes seconds for nine keys
        for n, decay in ((0, False), (1, False), (1, True), (2, False), (3, True), *[(9, False)] * many):
            check_add_noise(cuda.add_noise_, dtype, stored, pieces, keys_of(n, signs), decay, at_random, device="cuda:0")


@pytest.mark.parametrize("at_random", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("rule, dtype, state", KINDS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 9])
def test_update(rule, dtype, state, n, at_random):
    for pieces in (DENSE, MIXED, LINES, MASKED_LINES, *POSITIONS.values()) if n < 9 else (MIXED, LINES):
        for signs in (False, True):
            check_update(cuda.update_, rule, dtype, state, pieces, keys_of(n, signs), True, at_random, device="cuda:0")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("passes", RUNS.values(), ids=RUNS)
def test_a_run_of_passes(dtype, passes):
    for pieces in (DENSE, MIXED, LINES, MASKED_LINES, LARGE, *POSITIONS.values()):
        check_replay(cuda.replay_, dtype, pieces, passes, device="cuda:0")
        check_replay(cuda.replay_, dtype, pieces, of_signs(passes), device="cuda:0")


def test_runs_on_the_current_stream():
    theta = torch.zeros(1_000_000, device="cuda")
    layout, stream = Layout([theta]), torch.cuda.Stream()
    wanted = expected(torch.zeros(1_000_000), 0, [KEY, NoiseKey(1)], [1.0, -0.5])
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ops.add_noise_(layout, [(KEY, 1.0), (NoiseKey(1), -0.5)])
    stream.synchronize()
    assert_same_bits(theta.cpu(), wanted)


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here, two are needed")
    theta = torch.zeros(5000, device="cuda:1")
    with torch.cuda.device(0):
        ops.add_noise_(Layout([theta]), [(KEY, 1.0)])
        assert torch.cuda.current_device() == 0
    assert_same_bits(theta.cpu(), expected(torch.zeros(5000), 0, [KEY], [1.0]))
