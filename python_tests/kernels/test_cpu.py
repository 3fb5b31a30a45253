"""The C++ backend equals the oracle bit for bit: every instruction set, dtype, size, offset, alignment and thread count."""

import numpy as np
import pytest
import torch
from replay_cases import RUNS, A, B, check_replay
from update_cases import MIXED, POSITIONS, RULES, Piece, coefficients

import zokern
from zokern import Layout, NoiseKey, ops, use_backend
from zokern.kernels import cpu
from zokern.kernels import reference as reference_backend
from zokern.kernels.tables import State, Table, contiguous
from zokern.noise import reference
from zokern.noise.spec import PERTURBATION, SIGNS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WRAP = 2**34  # elements after which the low word of the block counter starts again


def bits(tensor):
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def test_the_compiled_backend_is_there_and_says_which_instructions_it_uses(isa):
    assert zokern.backends()["cpu"].startswith(f"available: {isa}")


def test_golden_vectors(isa, golden):
    for (seed, step, stream, first), expected in golden:
        z = ops.make_noise(NoiseKey(seed, step, stream), first, len(expected))
        np.testing.assert_array_equal(z.numpy().view(np.uint32), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 1023, 4097])
@pytest.mark.parametrize("first", [0, 1, 2, 3, 4095, 2**32 - 3, 2**33 + 3, WRAP - 70, WRAP - 1, WRAP + 5, 2**40 - 9, 2**63 - 5000])
def test_noise_of_any_range(isa, first, count):
    rng = np.random.default_rng(first % 1000 + count)
    drawn = NoiseKey(int(rng.integers(2**64, dtype=np.uint64)), int(rng.integers(2**32)), int(rng.integers(2**32)))
    for key in (drawn.to(PERTURBATION), drawn.to(SIGNS)):
        z = ops.make_noise(key, first, count).numpy()
        np.testing.assert_array_equal(z.view(np.uint32), reference.noise(key, first, count).view(np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [1.0, 0.75])
@pytest.mark.parametrize("terms", [0, 1, 2, 7])
def test_add_noise_equals_the_reference_backend(isa, dtype, decay, terms):
    """Sums of several terms, rounded once, on tensors of awkward sizes that start at any element of a buffer."""
    generator = torch.Generator().manual_seed(terms)
    sizes = [1, 3, 1023, 0, 4096, 5001]
    make = lambda: [torch.randn(n + 3, generator=generator.manual_seed(n)).to(dtype)[3:] for n in sizes]  # noqa: E731
    ours, theirs = make(), make()
    noise = [(NoiseKey(9, k, k), 10.0 ** -(k % 4)) for k in range(terms)]
    ops.add_noise_(Layout(ours), noise, decay)
    with use_backend("reference"):
        ops.add_noise_(Layout(theirs), noise, decay)
    for a, b in zip(ours, theirs):
        assert torch.equal(bits(a), bits(b))


# (elements, first, group, ratio kept): ragged sizes; firsts at which a tensor cannot start but a piece of one can; counters of the noise
# wrap at 2^34 elements, those of the rounding at 2^35.
ROWS = [
    (1, 0, 0, 1.0),
    (5, 3, 1, 0.5),
    (1023, 4, 0, 1.0),
    (300, WRAP - 131, 1, 1.0),
    (0, 8192, 0, 0.5),
    (700, 2 * WRAP - 333, 1, 0.25),
    (2051, 2**40 + 7, 0, 2**-32),
    (4096, 4096, 0, 0.9),
    (777, 2**62 + 2, 2, 1.0),
]


def memory(dtype, seed, rows=ROWS):
    """A tensor for each row, at any element of a buffer."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(row[0] + 3, generator=generator).to(dtype)[i % 4 :][: row[0]] for i, row in enumerate(rows)]


def table_of(tensors, rows=ROWS):
    words = (contiguous(t.data_ptr(), n, first, group, int(keep * 2**32) - 1) for t, (n, first, group, keep) in zip(tensors, rows))
    return Table.of(tensors[0].dtype, torch.device("cpu"), 3, words)


def keys_of(n):
    return [NoiseKey(2**64 - 1 - k, 2**32 - 1 - k, k % 2 << 24 | k) for k in range(n)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_keys", [0, 1, 2, 5])
def test_masked_noise_equals_the_reference_backend(isa, dtype, n_keys):
    results = []
    for backend in (cpu, reference_backend):
        theta = memory(dtype, 1)
        table, numbers = table_of(theta), torch.randn(n_keys, 3, generator=torch.Generator().manual_seed(2))
        assert table.masked
        backend.add_noise_(table, keys_of(n_keys), numbers, torch.tensor([0.5, 1.0, 2.0]))
        results.append(theta)
    for ours, theirs in zip(*results):
        assert torch.equal(bits(ours), bits(theirs))


def updated(backend, rule, dtype, state_dtype, n_keys, decay, rows=ROWS):
    """theta and the states after two steps."""
    generator = torch.Generator().manual_seed(n_keys)
    theta, state = memory(dtype, 3, rows), [memory(state_dtype, 4 + s, rows) for s in range(len(rule.state))]
    state[1:] = [[v.abs() for v in slot] for slot in state[1:]]
    held = State(state_dtype, torch.tensor([[slot[i].data_ptr() for slot in state] for i in range(len(rows))], dtype=torch.int64))
    for step in (1, 2):
        a, b = coefficients(rule, torch.randn(1 + rule.of_key, n_keys, 3, generator=generator))
        numbers = torch.rand(len(rule.numbers), 3, generator=generator) + 0.01
        rounding = [NoiseKey(5, step, 3 << 24 | s) for s in range(len(state))] if state_dtype == torch.bfloat16 else None
        backend.update_(table_of(theta, rows), rule, keys_of(n_keys), a, b, decay, numbers, held, rounding)
    return [*theta, *(tensor for slot in state for tensor in slot)]


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_equals_the_reference_backend(isa, rule, dtype, state_dtype):
    if not rule.state:
        state_dtype = torch.float32
    for n_keys, decay in ((0, None), (1, torch.tensor([0.5, 1.0, 2.0])), (2, None), (5, None)):
        ours, theirs = (updated(backend, rule, dtype, state_dtype, n_keys, decay) for backend in (cpu, reference_backend))
        for a, b in zip(ours, theirs):
            assert not b.isnan().any() and torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("rule", ["momentum", "amsgrad"])
def test_state_of_every_kind_of_value(isa, rule):
    """Every bfloat16 there is, infinities and NaN among them, as it comes out of a step with and without stochastic rounding."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    rule = RULES[rule]
    numbers = torch.tensor([[-1.0], [1.0], [0.5], [0.75], [1e-3], [1.5], [0.0]])[: len(rule.numbers)]
    for dtype in (torch.float32, torch.bfloat16):
        results = []
        for backend in (cpu, reference_backend):
            theta, state = torch.ones(len(every)), [every.to(dtype).roll(s) for s in range(len(rule.state))]
            table = Table.of(theta.dtype, theta.device, 1, [contiguous(theta.data_ptr(), len(theta), 0)])
            held = State(dtype, torch.tensor([[slot.data_ptr() for slot in state]]))
            rounding = [NoiseKey(0, 0, 3 << 24 | s) for s in range(len(state))] if dtype == torch.bfloat16 else None
            one = torch.ones(1, 1)
            with np.errstate(all="ignore"):
                backend.update_(table, rule, [NoiseKey(8)], one, one, None, numbers, held, rounding)
            results.append([theta, *state])
        for ours, theirs in zip(*results):
            assert torch.equal(ours.isnan(), theirs.isnan()) and ours.isnan().any()
            assert torch.equal(bits(ours)[~ours.isnan()], bits(theirs)[~ours.isnan()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("passes", RUNS.values(), ids=RUNS)
def test_a_run_of_passes(isa, dtype, passes):
    check_replay(cpu.replay_, dtype, MIXED, passes)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_of_passes_anywhere(isa, dtype, position):
    check_replay(cpu.replay_, dtype, POSITIONS[position], RUNS["steps"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_finite_on_the_way(isa, dtype):
    """Every bit pattern of a NaN among the numbers: rounding must not carry it into a number. Overflow on the way stays what it is."""
    nan = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    for passes in (
        [([(A, nan)], 1.0), ([(B, 1.0)], 1.0)],
        [([], nan), ([(B, 1.0)], 1.0)],
        [([(A, 3e38)], 1.0), ([(A, -3e38)], 1.0), ([(A, 3e38)], 0.5), ([(B, 1.0)], 1.0)],
    ):
        check_replay(cpu.replay_, dtype, [Piece(1000, 4096)], passes)


def test_threads_change_no_run_of_passes(isa):
    """With a few keys a part for each thread, with many several for each."""
    before = torch.get_num_threads()
    try:
        for threads, times in ((2, 1), (2, 3), (5, 6)):
            torch.set_num_threads(threads)
            pieces = [Piece(30_001, 5), Piece(7, 2**33, 1), Piece(20_000, WRAP - 9_001, 2)]
            check_replay(cpu.replay_, torch.bfloat16, pieces, times * RUNS["steps"])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_update(isa, state_dtype):
    rows = [(150_001, 5, 0, 0.5), (7, 2**33, 0, 1.0), (90_000, WRAP - 40_001, 1, 1.0)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(updated(cpu, RULES["adam"], torch.bfloat16, state_dtype, 1, None, rows))
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*results):
        assert all(torch.equal(bits(one), bits(other)) for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_of_every_kind_of_value(isa, dtype):
    """Zeros, denormals, ties, overflow and infinities go through a pass that changes nothing, and through one that halves."""
    if dtype == torch.float32:
        values = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3.4e38, float("inf"), -float("inf"), 1.0] * 20)
    else:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        values = every[~every.isnan()]
    same = values.clone()
    ops.add_noise_(Layout([same]), [(NoiseKey(0), 0.0)])
    assert torch.equal(same, values)  # a zero may lose its sign: -0 + 0 z is +0 where z > 0
    halved = values.clone()
    ops.add_noise_(Layout([halved]), [], decay=0.5)
    assert torch.equal(bits(halved), bits((values.float() * 0.5).to(dtype)))
    doubled = values.clone()
    ops.add_noise_(Layout([doubled]), [], decay=2.0)
    assert torch.equal(bits(doubled), bits((values.float() * 2.0).to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_nan(isa, dtype):
    patterns = {torch.float32: [0x7F800001, 0x7FFFFFFF, -1], torch.bfloat16: [0x7F81, 0x7FFF, -1], torch.float16: [0x7C01, 0x7FFF, -1]}
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    theta = torch.tensor(patterns[dtype] * 30, dtype=kind).view(dtype)
    ops.add_noise_(Layout([theta]), [(NoiseKey(0), 1.0)], decay=0.5)
    assert theta.isnan().all()
    # A NaN whose bits are all ones would round up into a number.
    theta, ones = torch.zeros(300, dtype=dtype), torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    ops.add_noise_(Layout([theta]), [(NoiseKey(0), ones)])
    assert theta.isnan().all()


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_change_nothing(isa, threads):
    before = torch.get_num_threads()
    tensors = [torch.zeros(n) for n in (300_001, 7, 50_000, 1, 129_000)]
    torch.set_num_threads(threads)
    try:
        ops.add_noise_(Layout(tensors), [(NoiseKey(1), 1.0), (NoiseKey(2), 0.5)])
    finally:
        torch.set_num_threads(before)
    layout = Layout(tensors)
    for tensor, first in zip(tensors, layout.first):
        expected = torch.from_numpy(reference.normal(NoiseKey(1), first, len(tensor)))
        expected = reference.fma(np.float32(0.5), reference.normal(NoiseKey(2), first, len(tensor)), expected.numpy())
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_the_number_of_threads_is_torchs():
    """Fewer threads than cores were asked for: the process must not use more. Counted by the kernel, in a process of its own."""
    import subprocess
    import sys

    code = (
        "import os, torch, zokern; t = torch.empty(1 << 20)\n"
        "for n in (1, 2):\n"
        "    torch.set_num_threads(n)\n"
        "    before = set(os.listdir('/proc/self/task'))\n"
        "    zokern.ops.add_noise_(zokern.Layout([t]), [(zokern.NoiseKey(0), 1.0)])\n"
        "    print(len(set(os.listdir('/proc/self/task')) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "1"]


def test_an_instruction_set_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("ZOKERN_CPU_ISA", "avx1024")
    with pytest.raises(ValueError, match="ZOKERN_CPU_ISA=avx1024"):
        ops.make_noise(NoiseKey(0), 0, 4)


def test_the_gil_is_released():
    """Another Python thread runs while a pass does."""
    import threading

    theta, ticks, done = torch.zeros(1 << 24), 0, threading.Event()
    layout = Layout([theta])
    layout.tables()

    def tick():
        nonlocal ticks
        while not done.is_set():
            ticks += 1

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        start = ticks
        ops.add_noise_(layout, [(NoiseKey(k), 1.0) for k in range(8)])
        during = ticks - start
    finally:
        done.set()
        thread.join()
        torch.set_num_threads(before)
    assert during > 1000  # with the lock held it could not tick at all while the pass runs
