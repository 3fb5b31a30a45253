"""A pass is the same bits, or an exception, whatever state the process and its threads are in."""

import ctypes
import platform
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from functools import cache

import pytest
import torch
from replay_cases import RUNS, handed

from zokern import NoiseKey, ops
from zokern.kernels import cpu, reference
from zokern.kernels.passes import RULES
from zokern.kernels.tables import State, Table, contiguous

ROWS = [(70_001, 5, 0, 2**31), (0, 4096, 1, 9), (40_002, 2**34 - 20_000, 1, 2**32 - 1)]  # (elements, first, group, keep_threshold)
KEYS = [NoiseKey(2**63, 5, 7), NoiseKey(3, 2**32 - 1)]
UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())  # FE_UPWARD of <fenv.h>


@contextmanager
def denormals_flushed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        yield
        assert torch.tensor(1 << 20, dtype=torch.int32).view(torch.float32).mul(1.0) == 0  # what was set stays set
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def rounded_upward():
    if sys.platform != "linux" or UPWARD is None:
        pytest.skip("rounding is set by another number here")
    libm = ctypes.CDLL("libm.so.6")
    libm.fesetround(UPWARD)
    try:
        yield
        assert libm.fegetround() == UPWARD
    finally:
        libm.fesetround(0)


@contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def memory(dtype, seed):
    """A tensor for each row, of numbers of every magnitude below 1, down to the least denormal."""
    generator = torch.Generator().manual_seed(seed)
    for n, *_ in ROWS:
        scale = 2.0 ** -torch.randint(0, 150, (n,), generator=generator).double()
        yield (torch.randn(n, generator=generator, dtype=torch.float64) * scale).to(dtype)


def passes(backend, dtype, state_dtype, inside=nullcontext):
    """The bytes that every kind of pass makes of tensors that begin the same each time."""
    added, replayed, updated = (list(memory(dtype, seed)) for seed in range(3))
    m, v, w = (list(memory(state_dtype, seed)) for seed in range(3, 6))
    state = State(state_dtype, torch.tensor([[tensor.abs_().data_ptr() for tensor in row] for row in zip(m, v, w)]))
    tables = []
    for tensors in (added, replayed, updated):
        rows = (contiguous(t.data_ptr(), *row) for t, row in zip(tensors, ROWS))
        tables.append(Table.of(dtype, torch.device("cpu"), 2, rows))
    decay, coefficients = torch.tensor([0.75, 0.3]), torch.tensor([[2.0**-60, 2.0**-130], [-(2.0**-3), 2.0**-20]])
    numbers = torch.rand(7, 2, generator=torch.Generator().manual_seed(6)) / 64
    keys, instructions, values = handed(RUNS["steps"])
    values = values * torch.tensor([1.0, 2.0**-120])
    rounding = [NoiseKey.of(4, 5, 3, s) for s in range(3)] if state_dtype == torch.bfloat16 else None
    with inside():
        backend.add_noise_(tables[0], KEYS, coefficients, decay)
        backend.replay_(tables[1], keys, instructions, values)
        backend.update_(
            tables[2], RULES["amsgrad"], KEYS, coefficients, coefficients, decay, numbers, state, rounding, NoiseKey.of(4, 5, 3, 2**24 - 1)
        )
    return {
        name: torch.cat(tensors).view(torch.uint8)
        for name, tensors in dict(added=added, replayed=replayed, updated=updated, m=m, v=v, w=w).items()
    }


expected = cache(lambda *dtypes: passes(reference, *dtypes))


@pytest.mark.parametrize("mode", [denormals_flushed, rounded_upward])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_the_callers_treatment_of_floats_changes_nothing(isa, dtypes, n, mode, monkeypatch):
    try:
        cpu._cpu.isa(isa)
    except ValueError:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("ZOKERN_CPU_ISA", isa)
    with threads(n):
        results = passes(cpu, *dtypes, mode)
        with mode():
            z = ops.make_noise(KEYS[0], 3, 1001)
    for name, result in results.items():
        assert torch.equal(result, expected(*dtypes)[name]), name
    assert torch.equal(z, ops.make_noise(KEYS[0], 3, 1001))


def test_the_oracle_keeps_denormals():
    dtypes = torch.float32, torch.float32
    for name, result in passes(reference, *dtypes, denormals_flushed).items():
        assert torch.equal(result, expected(*dtypes)[name]), name


def in_a_process(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not run.returncode, (run.returncode, run.stderr)
    return run.stdout.split()


def test_a_thread_without_memory_is_an_exception_and_nothing_has_moved():
    """Room for the keys, but not for what threads make of them."""
    code = """
import resource, torch
from zokern import Layout, NoiseKey, ops
from zokern.kernels import cpu
torch.set_num_threads(2)
theta = torch.zeros(1 << 17)
(table,), _ = Layout([theta]).tables()
one = torch.ones(200_000, 1)
cpu.add_noise_(table, [NoiseKey(1)], one[:1], torch.zeros(1))  # the threads are there
theta.zero_()
keys = [NoiseKey(1)] * len(one)
words = cpu.words(keys)
cpu.words = lambda _: words
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20),) * 2)
try:
    cpu.add_noise_(table, keys, one, None)
except MemoryError:
    print("MemoryError", theta.count_nonzero().item())
"""
    assert in_a_process(code) == ["MemoryError", "0"]


def test_a_forked_child_makes_the_same_pass():
    """Where the parent has used OpenMP, whose threads a child does not have."""
    code = """
import os, signal, torch, zokern
torch.set_num_threads(2)
theta, again = torch.zeros(2, 1 << 17)
ours, theirs = zokern.Layout([theta]), zokern.Layout([again])
terms = [(zokern.NoiseKey(1), 1.0)]
zokern.ops.add_noise_(ours, terms)
child = os.fork()
if not child:
    signal.alarm(20)
    zokern.ops.add_noise_(theirs, terms)
    os._exit(0 if (again.numpy() == theta.numpy()).all() else 1)
print(os.waitpid(child, 0)[1])
zokern.ops.add_noise_(theirs, terms)
print(torch.equal(theta, again))
"""
    assert in_a_process(code) == ["0", "True"]
