"""replay_ is add_noise_, pass by pass, bit for bit: on every backend that runs here, and for a run that was logged."""

from itertools import product

import pytest
import torch
from replay_cases import handed

import zokern
from zokern import Layout, NoiseKey, ops, use_backend
from zokern.kernels import backends, reference
from zokern.kernels.passes import DECAY, NEXT_KEY, ROUND

GPU = torch.cuda.is_available()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = [name for name, status in backends().items() if status.startswith("available")]
A, B, C = (NoiseKey(7, step) for step in range(3))


def step(key, g, decay=1.0):
    """The three passes of a two-point step."""
    return [([(key, 1e-3)], 1.0), ([(key, -2e-3)], 1.0), ([(key, 1e-3 - g)], decay)]


def bits(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(bits(a), bits(b))


def by_loop(layout, passes):
    for terms, decay in passes:
        ops.add_noise_(layout, terms, decay)


def weights(dtype):
    """Awkward sizes, a misaligned view, a transposed parameter, one with gaps; -0.0 and the smallest numbers among them."""
    random = torch.Generator().manual_seed(0)
    made = [torch.randn(n, generator=random).mul(0.02).to(dtype) for n in (0, 1, 3, 1023, 4097)]
    made[3][::7] = -0.0
    made[4][::5] = torch.finfo(dtype).smallest_normal / 4
    made.append(torch.randn(1003, generator=random).to(dtype)[3:])
    made.append(torch.randn(30, 70, generator=random).to(dtype).t())
    made.append(torch.randn(50, 64, generator=random).to(dtype)[:, 3:40])
    return made


def layout_of(params, keep=None):
    half = len(params) // 2
    return Layout([{"params": params[:half]}, {"params": params[half:]}], keep=keep)


each = torch.tensor  # one value a group
RUNS = {
    "one pass": [([(A, 0.5)], 1.0)],
    "steps": [*step(A, 1e-2, 0.99), *step(B, -3e-3), *step(C, each([1e-3, 0.0]), each([0.5, 1.0]))],
    "skipped steps": [*step(A, 1e-3), *[([(B, c)], 1.0) for c in (0.0, -0.0, each([0.0, -0.0]))]],
    "without terms": [([], 0.75), ([], 1.0), ([(A, 1e-3)], 1.0), ([], each(1.5)), ([(A, 0.1), (A, 0.2), (B, 0.3)], 1 / 3), ([], 1)],
    "no passes": [],
}


# In Triton's interpreter every run in one dtype.
EACH = [case for case in product(BACKENDS, enumerate(DTYPES), enumerate(RUNS))]
EACH = [(backend, dtype, name) for backend, (i, dtype), (j, name) in EACH if backend != "triton" or GPU or i == j % 3]


@pytest.mark.parametrize("backend, dtype, name", EACH, ids=str)
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
def test_equals_the_loop_of_add_noise(backend, dtype, name, monkeypatch):
    if backend == "triton" and not GPU:  # the interpreter pays for each step, whatever its size
        monkeypatch.setattr("zokern.kernels.triton.replay.SLOW", 2048)
    make = weights if backend != "triton" else lambda dtype: weights(dtype)[2:7]  # the interpreter is slow
    ours, theirs = make(dtype), make(dtype)
    with use_backend("reference"):
        by_loop(layout_of(theirs), RUNS[name])
    with use_backend(backend):
        ops.replay_(layout_of(ours), RUNS[name])
    assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_and_several_dtypes_in_one_layout(dtype):
    results = []
    for run in (ops.replay_, by_loop):
        params = weights(dtype) + weights(torch.float32)
        run(layout_of(params, keep=[0.5, 1.0] * (len(params) // 2)), RUNS["steps"])
        results.append(params)
    assert_same(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thousands_of_passes(dtype):
    run = [entry for k in range(1500) for entry in step(NoiseKey(1, k), 1e-2 * (-1) ** k, 1.0 - 1e-3 * (k % 2))]
    results = []
    for apply in (ops.replay_, by_loop):
        params = [weights(dtype)[4], weights(dtype)[6]]
        apply(Layout(params), iter(run))
        results.append(params)
    assert_same(*results)


def test_a_layout_keeps_what_is_tied_and_aliased_once():
    results = []
    for run in (ops.replay_, by_loop):
        whole = torch.ones(100)
        run(Layout([whole, whole[:50], whole]), RUNS["steps"][:6])
        results.append([whole])
    assert_same(*results)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("options", [{}, {"q": 2, "weight_decay": 0.1}, {"defer": True}, {"sparsity": 0.5}], ids=str)
def test_a_run_as_it_was_logged(transformer, tokens, monkeypatch, dtype, options):
    """The passes that training made, caught at the primitive, bring the first weights to the last."""
    model, logged, plain = transformer.to(dtype), [], ops.add_noise_
    first = [p.detach().clone() for p in model.parameters()]
    optimizer = zokern.MeZO(model.parameters(), lr=1e-2, eps=1e-2, perturbation="in-place", **options)

    def logging(layout, terms, decay=1.0, **how):
        terms = list(terms)
        logged.append((terms, decay))
        plain(layout, terms, decay, **how)

    monkeypatch.setattr(ops, "add_noise_", logging)
    for _ in range(4):
        optimizer.step(lambda: model(tokens))
    if options.get("defer"):
        optimizer.flush()
    monkeypatch.undo()
    assert len(logged) >= 9
    last = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, before in zip(model.parameters(), first):
            p.copy_(before)
    ops.replay_(optimizer.layout, logged)
    assert_same([p.detach() for p in model.parameters()], last)
    assert not all(torch.equal(a, b) for a, b in zip(first, last))


def test_every_rounding_is_kept():
    """2^-8 is half of the last place of 1 in bfloat16 and lost to even, each time; twice that, not rounded between, would not be."""
    ours = torch.ones(4, dtype=torch.bfloat16)
    ops.replay_(Layout([ours]), [([], 1 + 2.0**-8)] * 8)
    assert ours.tolist() == [1.0] * 4


def test_z_is_made_once_for_uses_that_follow_each_other(monkeypatch):
    made, plain = [], reference.masked_noise
    monkeypatch.setattr(reference, "masked_noise", lambda key, *rest: made.append(key) or plain(key, *rest))
    run = [*step(A, 0.1), *step(B, 0.1, 0.9), ([(B, 1.0), (A, 1.0)], 1.0), ([], 0.5), ([(A, 1.0)], 1.0)]
    with use_backend("reference"):
        ops.replay_(Layout([torch.ones(9)]), run)
    assert made == [A, B, A]


def test_passes_as_kernels_take_them():
    passes = [([(A, 1.0)], 1.0), ([], 0.5), ([], 1), ([(A, 2.0), (B, 3.0)], 0.25), ([(A, 4.0)], 1.0)]
    keys, instructions, values = handed(passes)
    assert keys == [A, B, A]
    assert values.tolist() == [[1.0], [0.5], [0.25], [2.0], [3.0], [4.0]]
    assert instructions.tolist() == [NEXT_KEY | ROUND, DECAY | ROUND, DECAY, 0, NEXT_KEY | ROUND, NEXT_KEY | ROUND]


def test_autograd_notices_that_weights_changed():
    theta = torch.ones(3, requires_grad=True)
    loss = (theta * theta).sum()
    ops.replay_(Layout([theta]), step(A, 0.1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "entry, error, message",
    [
        ((A, 1.0), TypeError, r"passes\[1\] is .*pass \(terms, decay\)"),
        ([(A, 1.0)], TypeError, r"passes\[1\] is .*pass \(terms, decay\)"),
        (3, TypeError, r"passes\[1\] is 3: pass \(terms, decay\)"),
        (([("key", 1.0)], 1.0), TypeError, r"passes\[1\]\[0\]\[0\] has the key 'key'"),
        (([(A, torch.ones(3))], 1.0), ValueError, r"coefficient of passes\[1\]\[0\]\[0\] has shape \(3,\).*\[1\]"),
        (([], torch.ones(1, 1)), ValueError, r"decay of passes\[1\] has shape \(1, 1\)"),
        (([], "1"), TypeError, r"decay of passes\[1\] is '1'"),
    ],
)
def test_bad_passes_are_refused_before_anything_changes(entry, error, message):
    theta = torch.ones(3)
    with pytest.raises(error, match=message):
        ops.replay_(Layout([theta]), [([(A, 1.0)], 1.0), entry])
    assert torch.equal(theta, torch.ones(3))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_on_a_gpu(backend, dtype):
    ours, theirs = [p.cuda() for p in weights(dtype)], weights(dtype)
    by_loop(layout_of(theirs), RUNS["steps"])
    with use_backend(backend):
        ops.replay_(layout_of(ours), RUNS["steps"])
    assert_same([p.cpu() for p in ours], theirs)
