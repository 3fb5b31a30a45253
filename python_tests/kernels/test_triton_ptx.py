"""The Triton kernels as Triton compiles them for a GPU: their PTX, executed without one, equals the oracle bit for bit. A sample: all of
them, in Triton's interpreter, are in test_triton.py."""

import pytest
import torch
from add_noise_cases import DTYPES, add_noise_, assert_same_bits, expected, weights
from ptx.memory import Memory
from ptx.triton_kernel import Compiler, TritonKernel
from replay_cases import RUNS, check_replay
from update_cases import DENSE, IN_16_BITS, KINDS, MIXED, POSITIONS, Piece, check_update, keys_of

from zokern.kernels import triton as backend
from zokern.kernels.tables import KEEP_ALL

triton = pytest.importorskip("triton", reason="pip install triton")
from zokern.kernels.triton import add_noise, replay, update  # noqa: E402  (needs triton)

compiles = tuple(map(int, triton.__version__.split(".")[:2])) >= backend.COMPILES
pytestmark = pytest.mark.skipif(not compiles, reason=f"triton {triton.__version__} compiles wrong code, and is refused on GPUs")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    compiler = Compiler(tmp_path_factory.mktemp("triton"), arch=90)
    yield compiler
    compiler.close()


@pytest.fixture(autouse=True)
def executed(compiler, monkeypatch):
    """The kernels, for tensors in the host's memory. What they may reach: tensors that were asked for their address."""
    memory = Memory()
    memory.follow(monkeypatch)
    for module in (add_noise, replay, update):
        name = f"{module.__name__.rpartition('.')[2]}_kernel"
        monkeypatch.setattr(module, name, TritonKernel(getattr(module, name).fn, compiler, memory))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms, decay, keep_threshold", [(0, 0.9, KEEP_ALL), (1, None, KEEP_ALL), (2, 0.9, 2**30), (3, None, 2**30)])
def test_add_noise(dtype, terms, decay, keep_threshold):
    sizes, firsts, keys = [4096 + 5, 1, 0, 4096 + 777, 700], [0, 4096 * 7, 0, 2**34 - 4096, 2**34 + 5], keys_of(terms)
    memory = [weights(n + 3, dtype, seed=n) for n in sizes]
    tensors = [m[shift:][:n] for m, n, shift in zip(memory, sizes, (0, 0, 0, 0, 3))]
    coefficients, decay = [[1e-3 * (k + 1), -0.5] for k in range(terms)] or torch.zeros(0, 2).tolist(), decay and [decay, 1.0]
    c = torch.tensor(coefficients).reshape(terms, 2)
    wanted = [expected(t, f, keys, c[:, i % 2], decay and decay[i % 2], keep_threshold) for i, (t, f) in enumerate(zip(tensors, firsts))]
    add_noise_(backend, tensors, firsts, keys, c, decay, keep_threshold=keep_threshold)
    for t, w in zip(tensors, wanted, strict=True):
        assert_same_bits(t, w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replay(dtype):
    for passes in (RUNS["steps"], RUNS["without terms"]):
        check_replay(backend.replay_, dtype, MIXED, passes)
        check_replay(backend.replay_, dtype, [Piece(4096 + 5, 4096, 1), *DENSE], passes)


@pytest.mark.parametrize("rule, dtype, state", KINDS[1::3], ids=str)
def test_update_by_one_key(rule, dtype, state):
    for pieces in (DENSE, *(POSITIONS[name] for name in ("misaligned", "state misaligned", "across 2^34"))):
        check_update(backend.update_, rule, dtype, state, pieces, keys_of(1))


@pytest.mark.parametrize("rule, dtype, state", KINDS[::3], ids=str)
def test_update_by_several_keys_with_masks_and_decay(rule, dtype, state):
    check_update(backend.update_, rule, dtype, state, MIXED, keys_of(3), decay=True)


@pytest.mark.parametrize("rule, dtype, state", IN_16_BITS[::4], ids=str)
def test_update_rounded_at_random(rule, dtype, state):
    for n, pieces in ((1, [*DENSE, *POSITIONS["across 2^34"]]), (2, MIXED)):
        check_update(backend.update_, rule, dtype, state, pieces, keys_of(n), n == 2, at_random=True)
