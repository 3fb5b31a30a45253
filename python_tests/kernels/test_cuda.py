"""The CUDA kernels: their bits, by executing the PTX that nvcc makes of them (ptx/), launched by the real binding; their instructions, by
ptxas. What only a GPU shows is in test_cuda_on_gpu.py."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from add_noise_cases import DTYPES, KEY, STORED, add_noise_, assert_same_bits, check_add_noise, expected, weights
from counted_kernels import count
from replay_cases import RUNS, check_replay, of_signs
from update_cases import DENSE, IN_16_BITS, KINDS, LINES, MASKED_LINES, MIXED, POSITIONS, RULES, Piece, check_update, keys_of

import zokern
from zokern import NoiseKey
from zokern.kernels import cuda
from zokern.noise import reference


def test_every_kernel(backend, runtime):
    """What was compiled is executed, all of it, in whole tiles and at a ragged end."""
    piece = Piece(4096 + 3)
    for signs, kept in product((False, True), ([piece], [replace(piece, keep_threshold=2**30)])):
        for (dtype, stored), n, decay in product(STORED, (1, 2, 3), (False, True)):
            check_add_noise(backend.add_noise_, dtype, stored, kept, keys_of(n, signs), decay)
        for dtype in DTYPES:
            check_replay(backend.replay_, dtype, kept, of_signs(RUNS["a step"]) if signs else RUNS["a step"])
        for rule, dtype, state in KINDS:
            check_update(backend.update_, rule, dtype, state, kept, keys_of(1, signs))
    assert {name for name, _, _ in runtime.launches} == runtime.kernels.keys()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms, decay", [(1, None), (1, 0.9), (2, None), (2, 0.9), (3, None), (5, 0.9)])
def test_whole_tiles_and_a_ragged_end(backend, dtype, terms, decay):
    keys = [NoiseKey(2**63 + k, k, 2**32 - 1 - k) for k in range(terms)]
    coefficients = [1e-3 * (k + 1) for k in range(terms)]
    theta = weights(2 * 4096 + 3, dtype)
    wanted = expected(theta, 0, keys, coefficients, decay)
    add_noise_(backend, [theta], [0], keys, [[c] for c in coefficients], None if decay is None else [decay])
    assert_same_bits(theta, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "first", [0, 1, 2, 3, 4095, 2**32 - 1, 2**34 - 4096, 2**34 - 2048, 2**34 - 2049, 2**34 - 1, 5 * 2**34 + 2, 2**63 - 9000]
)
def test_any_first_element(backend, dtype, first):
    """Misaligned with Philox blocks; past 2^32 and 2^34; across a multiple of 2^34, where the low counter word wraps."""
    theta = weights(4096 + 777, dtype)
    wanted = expected(theta, first, [KEY], [0.5])
    add_noise_(backend, [theta], [first], [KEY], [[0.5]])
    assert_same_bits(theta, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_an_address_that_is_no_multiple_of_sixteen(backend, dtype, shift):
    memory = weights(5000, dtype)
    theta = memory[shift : shift + 4500]
    before, wanted = memory.clone(), expected(theta, 0, [KEY], [1.0])
    add_noise_(backend, [theta], [0], [KEY], [[1.0]])
    assert_same_bits(theta, wanted)
    assert_same_bits(memory[:shift], before[:shift])
    assert_same_bits(memory[shift + 4500 :], before[shift + 4500 :])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 127, 512, 4095, 4096, 4097])
def test_awkward_counts_touch_nothing_else(backend, count):
    memory = torch.full((count + 8,), 3.0)
    theta = memory[4 : 4 + count]
    add_noise_(backend, [theta], [12], [KEY], [[1.0]], [0.0])
    assert_same_bits(theta, torch.from_numpy(reference.normal(KEY, 12, count) + np.float32(0)))
    assert (memory[:4] == 3).all() and (memory[4 + count :] == 3).all()


def test_many_tensors_each_with_the_coefficients_of_its_group(backend):
    sizes = [1, 4096, 5, 9000, 0, 64, 8192]
    tensors = [weights(n, torch.float32, seed=n) for n in sizes]
    firsts = np.cumsum([0, *[-(-n // 4096) * 4096 for n in sizes[:-1]]]).tolist()
    keys, c, decay = [KEY, NoiseKey(1)], [[1.0, 2.0, 3.0], [-1.0, 0.5, 0.25]], [1.0, 0.5, 0.0]
    wanted = [expected(t, f, keys, [row[i % 3] for row in c], decay[i % 3]) for i, (t, f) in enumerate(zip(tensors, firsts))]
    add_noise_(backend, tensors, firsts, keys, c, decay)
    for t, w in zip(tensors, wanted, strict=True):
        assert_same_bits(t, w)


@pytest.mark.parametrize("terms", [1, 2, 4])
def test_a_clock_advances_every_step(backend, terms):
    keys = [NoiseKey(5, 10 + k, k) for k in range(terms)]
    theta = weights(5001, torch.float32)
    wanted = expected(theta, 0, [NoiseKey(5, 10 + k + 90, k) for k in range(terms)], [1.0] * terms)
    add_noise_(backend, [theta], [0], keys, [[1.0]] * terms, clock=90)
    assert_same_bits(theta, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms, decay, clock", [(1, None, None), (2, 0.9, 3), (3, None, 5)])
@pytest.mark.parametrize("first", [0, 5, 2**34 - 4096])
def test_masks(backend, dtype, terms, decay, clock, first):
    keys = [NoiseKey(2**63 + k, k, k << 24 | 2**24 - 1 - k) for k in range(terms)]
    later = [NoiseKey(key.seed, key.step + (clock or 0), key.stream) for key in keys]
    theta = weights(4096 + 777, dtype)
    wanted = expected(theta, first, later, [0.5] * terms, decay, keep_threshold=2**30)
    add_noise_(backend, [theta], [first], keys, [[0.5]] * terms, None if decay is None else [decay], clock, keep_threshold=2**30)
    assert_same_bits(theta, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("passes", RUNS.values(), ids=RUNS)
def test_a_run_of_passes(backend, dtype, passes):
    """Ragged counts, groups and masks in one launch; whole tiles without a mask."""
    check_replay(backend.replay_, dtype, MIXED, passes)
    check_replay(backend.replay_, dtype, [Piece(2 * 4096 + 3, 4096, 1), *DENSE], passes)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_run_of_passes_anywhere(backend, dtype, position):
    check_replay(backend.replay_, dtype, POSITIONS[position], RUNS["steps"])


@pytest.mark.parametrize("pieces", [DENSE, MIXED], ids=["dense", "masked"])
def test_a_clock_advances_a_run_of_passes(backend, pieces):
    with backend.clock(torch.tensor(90, dtype=torch.int32)):
        check_replay(backend.replay_, torch.bfloat16, pieces, RUNS["steps"], later=90)


@pytest.mark.parametrize("rule, dtype, state", KINDS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 9])
def test_update(backend, rule, dtype, state, n):
    """Ragged counts, groups and masks in one launch."""
    check_update(backend.update_, rule, dtype, state, MIXED, keys_of(n), decay=n % 2 == 0)
    if n == 1:
        check_update(backend.update_, rule, dtype, state, DENSE, keys_of(n))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("rule, dtype, state", KINDS, ids=str)
def test_update_anywhere(backend, rule, dtype, state, position):
    for n in (1, 2):
        check_update(backend.update_, rule, dtype, state, POSITIONS[position], keys_of(n))


@pytest.mark.parametrize("pieces, n", [(DENSE, 1), (MIXED, 1), (MIXED, 3), (MIXED, 9)])
def test_a_clock_advances_masks_and_rounding_of_an_update(backend, pieces, n):
    with backend.clock(torch.tensor(90, dtype=torch.int32)):
        for at_random in (False, True):
            check_update(backend.update_, "adam", torch.bfloat16, torch.bfloat16, pieces, keys_of(n), at_random=at_random, later=90)


TILES = [Piece(4096 + 1029, 4096, 1), Piece(1100, 2**35 - 1024, 2), Piece(4096 + 8, 2**20 + 64)]
ELSEWHERE = [LINES, MASKED_LINES, [piece for pieces in POSITIONS.values() for piece in pieces]]


@pytest.mark.parametrize("at_random", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("signs", [False, True], ids=["normals", "signs"])
@pytest.mark.parametrize("dtype, stored", STORED, ids=str)
def test_two_addresses(backend, dtype, stored, signs, at_random):
    """In place and elsewhere, of all kinds of noise and of rounding, wherever the elements lie."""
    for n, decay in ((0, False), (1, False), (1, True), (2, False), (3, True)):
        check_add_noise(backend.add_noise_, dtype, stored, TILES, keys_of(n, signs), decay, at_random)
    for pieces in ELSEWHERE:
        check_add_noise(backend.add_noise_, dtype, stored, pieces, keys_of(1, signs), False, at_random)
    check_add_noise(backend.add_noise_, dtype, stored, MASKED_LINES, keys_of(3, signs), True, at_random)


@pytest.mark.parametrize("signs", [False, True], ids=["normals", "signs"])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_numbers_in_the_memory_of_a_device(backend, monkeypatch, n, signs):
    """The backend takes host memory for the emulated device's only where it is told to."""
    monkeypatch.setattr(backend, "_numbers", lambda table, values: values)
    for pieces in (TILES, LINES):
        check_add_noise(backend.add_noise_, torch.bfloat16, None, pieces, keys_of(n, signs), decay=n != 2)
    check_update(backend.update_, "adam", torch.bfloat16, torch.bfloat16, DENSE, keys_of(n, signs), decay=n != 2)


@pytest.mark.parametrize("pieces", [TILES, LINES, MASKED_LINES], ids=["tiles", "lines", "masked lines"])
@pytest.mark.parametrize("signs", [False, True], ids=["normals", "signs"])
def test_a_clock_advances_every_kind_of_noise(backend, pieces, signs):
    with backend.clock(torch.tensor(90, dtype=torch.int32)):
        for n in (1, 2, 3):
            check_add_noise(backend.add_noise_, torch.float32, torch.bfloat16, pieces, keys_of(n, signs), True, True, later=90)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_run_of_passes_of_signs_and_over_lines(backend, dtype):
    for pieces in (TILES, *ELSEWHERE):
        check_replay(backend.replay_, dtype, pieces, of_signs(RUNS["a step"]))
    check_replay(backend.replay_, dtype, LINES, RUNS["a step"])
    check_replay(backend.replay_, dtype, MASKED_LINES, RUNS["queries"])


@pytest.mark.parametrize("rule, dtype, state", KINDS, ids=str)
def test_update_of_signs_and_over_lines(backend, rule, dtype, state):
    for pieces in (LINES, MASKED_LINES):
        check_update(backend.update_, rule, dtype, state, pieces, keys_of(1))
    for n in (1, 2):
        check_update(backend.update_, rule, dtype, state, MIXED, keys_of(n, signs=True))


@pytest.mark.parametrize("rule, dtype, state", IN_16_BITS, ids=str)
def test_update_rounded_at_random(backend, rule, dtype, state):
    """Of all kinds of noise and wherever the elements lie, by bits of their own beside those of the state."""
    for n, pieces in ((0, DENSE), (1, TILES), (1, LINES), (1, ELSEWHERE[2]), (2, MASKED_LINES), (9, MIXED)):
        check_update(backend.update_, rule, dtype, state, pieces, keys_of(n), n == 2, at_random=True)
    for n in (1, 2):
        check_update(backend.update_, rule, dtype, state, MASKED_LINES, keys_of(n, signs=True), at_random=True)


def test_float32_weights_are_stored_as_they_are(backend):
    for state in (torch.float32, torch.bfloat16):
        check_update(backend.update_, "adam", torch.float32, state, MIXED, keys_of(1), at_random=True)


def test_special_values_round_as_torch_rounds(backend):
    for dtype in DTYPES[1:]:
        theta = torch.tensor([float("inf"), float("-inf"), 0.0, -0.0, 3e-8, 65504.0, 1e-40, 2.0**-14]).to(dtype)
        wanted = expected(theta, 0, [KEY], [0.0])
        add_noise_(backend, [theta], [0], [KEY], [[0.0]])
        assert_same_bits(theta, wanted)
        nan = torch.full((4096,), float("nan"), dtype=dtype)
        add_noise_(backend, [nan], [0], [KEY], [[1.0]])
        assert nan.isnan().all()


def test_a_launch_leaves_the_current_device_and_no_error_behind(backend, runtime, monkeypatch):
    def launch(device, stream=0):
        monkeypatch.setattr(cuda, "_device_and_stream", lambda _: (device, stream))
        add_noise_(backend, [torch.zeros(5)], [0], [KEY], [[1.0]])

    launch(1, 77)
    assert runtime.launches[-1][1:] == (1, 77) and runtime.library.fake_device() == 0
    with pytest.raises(RuntimeError, match="could not be launched: error 101"):  # there are two devices
        launch(5)
    launch(0)
    runtime.refuse = 700
    with pytest.raises(RuntimeError, match="could not be launched: error 700"):
        launch(1)
    assert runtime.library.fake_device() == 0
    runtime.refuse = 0
    launch(0)


built = pytest.mark.skipif(cuda._cuda is None, reason=f"zokern._cuda is {cuda.status()}")


@built
def test_the_module_imports_without_a_driver_and_says_what_is_missing():
    assert cuda._cuda.architectures == "sm_80 sm_90 PTX"
    if not torch.cuda.is_available():
        assert "no NVIDIA GPU" in zokern.backends()["cuda"]
        with pytest.raises(RuntimeError, match="zokern's CUDA kernel could not be launched: .*(driver|device)"):
            cuda._cuda.add_noise_((0, 0, 1, False, False, False, [(0, 0, 0)], 1, 0, 1, 0, 0, 0), 0, (0, [1.0]), None, None)


# The most instructions an element in the loop over whole tiles, all of it counted. Measured with nvcc 13.0 on sm_90: 25.8, 24.5, 48.9,
# 47.9, a term of many 24.9; signs 6.2, 4.9, 5.5; sm_80: 26.3, 25.0, 49.8, signs 7.0, 5.8.
COUNTS = [
    *((90, "normals", *case) for case in (("bf16", "1", 26), ("fp32", "1", 25), ("bf16", "2", 49), ("fp32", "2", 49), ("fp16", "n", 26))),
    *((80, "normals", *case) for case in (("bf16", "1", 27), ("fp32", "1", 26), ("bf16", "2", 51))),
    *((90, "signs", *case) for case in (("bf16", "1", 7), ("fp32", "1", 6), ("bf16", "n", 6))),
    *((80, "signs", *case) for case in (("bf16", "1", 8), ("fp32", "1", 6))),
]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """The lines of bench/sass.py about what is built: of add_noise_, replay_ and update_, those of signs last."""
    if cuda._cuda is None:
        pytest.skip(f"zokern._cuda is {cuda.status()}")
    built = ("--backend", "cuda", "--built", "--arch", "80", "90")
    commands = [(*built, *more) for more in ((), ("--passes",), ("--rule", *RULES), ("--noise", "signs"), ("--out", "bf16"))]
    lines, said = count(tmp_path_factory.mktemp("sass"), *commands)
    assert "gives no count" not in said, said
    return tuple(lines.values())


@pytest.mark.parametrize("arch, noise, dtype, terms, most", COUNTS)
def test_compiled_loop(counted, arch, noise, dtype, terms, most):
    wanted = (arch, noise, dtype, dtype, terms, terms == "n")
    lines = [*counted[0], *counted[3]]
    (line,) = [line for line in lines if tuple(line[name] for name in ("arch", "noise", "dtype", "out", "terms", "decay")) == wanted]
    assert (line["per_element"] if terms != "n" else line["per_element_and_term"]) <= most


def test_compiled_loops_use_registers_and_whole_vectors(counted):
    for line in (*counted[0], *counted[3], *counted[4]):
        assert line["spills"] == line["stack_bytes"] == line["shared_bytes"] == 0, line
        # With n terms the loop reads their keys too.
        assert all(access.endswith(".128") for access in line["accesses"] if line["terms"] != "n" or access.startswith("STG")), line


# Instructions an element for a value of a run of passes whose z is made, with all that any value may ask for (a product or an fma, a
# rounding). Measured with nvcc 13.0: 30.1, 31.0, 31.6; sm_80 30.2, 30.8, 31.8.
PASSES = {"fp32": 32, "bf16": 33, "fp16": 34}


def test_compiled_loop_of_a_run_of_passes(counted):
    assert len(counted[1]) == 2 * 3
    for line in counted[1]:
        assert line["per_element_and_term"] <= PASSES[line["dtype"]], line
        assert line["spills"] == line["stack_bytes"] == line["shared_bytes"] == 0, line
        assert all(access.endswith(".128") for access in line["accesses"] if access.startswith("STG")), line


# The same for updates by one term. Measured with nvcc 13.0 on sm_90: 37.0, 49.5, 70.0, 93.6, 73.8; sm_80: 37.5, 47.9, 70.1, 91.4, 72.8.
UPDATES = [  # rule, dtype, state, instructions
    ("momentum", "bf16", "fp32", 40),
    ("momentum", "bf16", "bf16", 52),
    ("adam", "bf16", "fp32", 74),
    ("adam", "bf16", "bf16", 98),
    ("adam", "fp32", "fp32", 77),
]


@pytest.fixture
def sass_of_updates(counted):
    return counted[2]


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("rule, dtype, state, most", UPDATES)
def test_compiled_loop_of_an_update(sass_of_updates, arch, rule, dtype, state, most):
    wanted = (arch, rule, dtype, state, "1")
    (line,) = [line for line in sass_of_updates if tuple(line[name] for name in ("arch", "rule", "dtype", "state", "terms")) == wanted]
    assert line["per_element"] <= most


def test_no_compiled_update_spills_or_reads_less_than_vectors(sass_of_updates):
    assert len(sass_of_updates) == 2 * (42 + 3)
    for line in sass_of_updates:
        assert line["spills"] == line["stack_bytes"] == line["shared_bytes"] == 0, line
        assert all(access.endswith(".128") for access in line["accesses"] if line["terms"] != "n" or access.startswith("STG")), line
