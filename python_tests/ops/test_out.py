"""add_noise_ with two addresses: what is written elsewhere has the bits of the pass in place, theta is only read; rounding is as asked."""

import mmap

import numpy as np
import pytest
import torch
from tolerances import ROUNDING, STOCHASTIC

from zokern import Layout, NoiseKey, ops
from zokern.noise import reference
from zokern.noise.spec import ROUNDING as PURPOSE
from zokern.noise.spec import WEIGHTS

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PAIRS = [(F32, F32), (F32, BF16), (F32, F16), (BF16, BF16), (F16, F16)]
SHAPES = ((37, 11), (), (5000,), (0,), (3, 4, 5))
TERMS = {
    "normals": [(NoiseKey(4, 1), 0.3), (NoiseKey(4, 2), -1.7), (NoiseKey(4, 1, 1), 2e-3)],
    "signs": [(NoiseKey.of(4, 1, 4), 0.3), (NoiseKey.of(4, 2, 5), -1.7), (NoiseKey.of(4, 1, 4, 1), 2e-3)],
    "none": [],
}
# Makes a tensor of this shape that lies otherwise, inside a larger one.
PLACES = {
    "contiguous": lambda rows, columns, dtype: torch.randn(rows, columns).to(dtype),
    "columns": lambda rows, columns, dtype: torch.randn(rows, columns + 37).to(dtype)[:, 5 : columns + 5],
    "transposed": lambda rows, columns, dtype: torch.randn(columns, rows).to(dtype).T,
    "every other row": lambda rows, columns, dtype: torch.randn(2 * rows, columns).to(dtype)[::2],
}


def bits(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.dtype == F32 else torch.int16)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("dtype, to", PAIRS, ids=str)
def test_against_explicit_z_in_float64(backend, dtype, to, decay, terms, explicit):
    layout = Layout([torch.randn(shape).to(dtype) for shape in SHAPES], keep=[1.0, 1.0, 0.3, 1.0, 0.7])
    before, out = [p.clone() for p in layout.params], [torch.full_like(p, torch.nan, dtype=to) for p in layout.params]
    ops.add_noise_(layout, terms, decay, out)
    expected = [decay * p.double() for p in before]
    for key, c in terms:
        expected = [e + c * z for e, z in zip(expected, explicit(key, layout))]
    for p, old, made, e in zip(layout.params, before, out, expected):
        assert torch.equal(bits(p), bits(old))
        assert not p.numel() or (made.double() - e).abs().max() <= ROUNDING[to] * e.abs().max().clamp(min=1)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype, to", PAIRS, ids=str)
@pytest.mark.parametrize("there", PLACES)
@pytest.mark.parametrize("here", PLACES)
def test_the_bits_are_those_in_place_wherever_tensors_lie(here, there, dtype, to, rounding):
    shape = (9, 301)
    theta, out = PLACES[here](*shape, dtype), PLACES[there](*shape, to)
    around = (lambda t: t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0).clone())(out)
    before, spare, kept = theta.clone(), torch.zeros(7), out.clone()
    terms = TERMS["normals"][:2]
    ops.add_noise_(Layout([spare, theta]), terms, 0.5, [torch.zeros(7), out], rounding)
    assert torch.equal(bits(theta), bits(before)) and not spare.any()

    in_place = before.clone(memory_format=torch.contiguous_format)
    ops.add_noise_(Layout([torch.zeros(7), in_place]), terms, 0.5, rounding=rounding)
    if rounding == "stochastic" and to != dtype:
        at_random = {BF16: reference.stochastic_bfloat16, F16: reference.stochastic_float16}[to]
        r = reference.random_halves(NoiseKey.of(4, 1, PURPOSE, WEIGHTS), 4096, in_place.numel())
        in_place = torch.from_numpy(at_random(in_place.numpy().reshape(-1), r)).view(to).reshape(shape)
    assert torch.equal(bits(out), bits(in_place.to(to)))
    out.copy_(kept)
    assert torch.equal(out.as_strided(around.shape, (1,), 0).view(torch.uint8), around.view(torch.uint8))  # nothing beside it was written


def test_theta_may_be_memory_that_cannot_be_written(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(torch.randn(100_000).numpy().tobytes())
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
        pytest.warns(UserWarning, match="writable"),
    ):
        theta = torch.frombuffer(memory, dtype=F32)
        out = [torch.empty(250, 400), torch.empty(400, 250).T]
        for made, view in zip(out, (theta.view(250, 400), theta.view(250, 400))):
            ops.add_noise_(Layout([view]), TERMS["normals"], out=[made])
        assert torch.equal(*out)
        del theta, view


def test_several_dtypes_and_groups_at_once(explicit):
    params = [torch.randn(3000, dtype=dtype) for dtype in (F32, BF16, F16, F32)]
    layout = Layout([{"params": params[:2]}, {"params": params[2:]}])
    out = [torch.empty(3000, dtype=dtype) for dtype in (BF16, BF16, F16, F32)]
    c, decay = torch.tensor([0.25, 4.0], dtype=torch.float64), torch.tensor([0.5, 0.0])
    ops.add_noise_(layout, [(NoiseKey(3), c)], decay, out)
    for p, made, group, z in zip(params, out, layout.group, explicit(NoiseKey(3), layout)):
        e = decay[group] * p.double() + c[group] * z
        assert (made.double() - e).abs().max() <= ROUNDING[made.dtype] * e.abs().max()


def test_autograd_notices_that_out_changed_and_theta_did_not():
    theta, out = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    losses = (theta * theta).sum(), (out * out).sum()
    ops.add_noise_(Layout([theta]), TERMS["normals"], out=[out])
    losses[0].backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[1].backward()


def test_tables_are_made_again_for_other_tensors_only():
    layout, outs = Layout([torch.zeros(9), torch.zeros(5)]), [[torch.empty(9), torch.empty(5)] for _ in range(2)]
    first = layout.tables(outs[0])
    assert layout.tables(outs[0]) is first and layout.tables() is layout.tables()
    assert layout.tables(outs[1]) is not first
    layout.params[0].data = torch.ones(9)
    ops.add_noise_(layout, [], out=outs[0])
    assert outs[0][0].all()


@pytest.mark.parametrize("kind", [BF16, F16], ids=str)
@pytest.mark.parametrize("rounding", ["stochastic", NoiseKey.of(5, 6, PURPOSE, 7)], ids=["stochastic", "a key"])
def test_stochastic_rounding_is_to_a_neighbour_right_on_average_and_by_its_key(backend, kind, rounding):
    theta, terms = torch.rand(20_000) + 1, [(NoiseKey(5, 6), 1e-3), (NoiseKey(9, 9), 1e-3)]
    exact, made, again = torch.empty(20_000), torch.empty(20_000, dtype=kind), torch.empty(20_000, dtype=kind)
    ops.add_noise_(Layout([theta]), terms, out=[exact])
    ops.add_noise_(Layout([theta]), terms, out=[made], rounding=rounding)
    unit = torch.finfo(kind).eps * torch.where(exact < 2, torch.where(exact < 1, 0.5, 1.0), 2.0)
    error = (made.double() - exact.double()) / unit
    assert error.abs().max() < 1 and error.mean().abs() < STOCHASTIC / 20_000**0.5 and (made != exact.to(kind)).any()
    key = rounding if isinstance(rounding, NoiseKey) else NoiseKey.of(5, 6, PURPOSE, WEIGHTS)
    r = reference.random_halves(key, 0, 20_000)
    at_random = {BF16: reference.stochastic_bfloat16, F16: reference.stochastic_float16}[kind]
    assert np.array_equal(bits(made).numpy().view(np.uint16), at_random(exact.numpy(), r))
    ops.add_noise_(Layout([theta]), [terms[1]], out=[again], rounding=rounding)
    assert not torch.equal(again, made)


def test_float32_is_stored_as_it_is_whatever_the_rounding():
    a, b = torch.zeros(100), torch.zeros(100)
    ops.add_noise_(Layout([a]), TERMS["normals"])
    ops.add_noise_(Layout([b]), TERMS["normals"], rounding="stochastic")
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "terms, rounding, message",
    [
        (TERMS["normals"], "up", "rounding='up': pass 'nearest', 'stochastic' or a key"),
        (TERMS["normals"], NoiseKey(1), r"rounding=NoiseKey\(seed=1, step=0, stream=0\): pass 'nearest'"),
        ([], "stochastic", "rounding='stochastic' without a term"),
        (
            [(NoiseKey(1), 1.0), (NoiseKey.of(1, 0, 4), 1.0)],
            "nearest",
            r"terms\[1\] has a key of rademacher noise, terms\[0\] one of gaussian",
        ),
    ],
)
def test_bad_roundings_and_keys_are_refused_before_anything_changes(terms, rounding, message):
    theta = torch.ones(3)
    with pytest.raises(ValueError, match=message):
        ops.add_noise_(Layout([theta]), terms, rounding=rounding)
    assert torch.equal(theta, torch.ones(3))


STORAGE = torch.zeros(100)
BAD = {
    "too few": ([STORAGE[:5]], lambda: [], ValueError, "out has 0 tensors: pass one for each of the 1 parameters"),
    "no tensor": ([STORAGE[:5]], lambda: [3], TypeError, "int"),
    "shape": ([("w", STORAGE[:5])], lambda: [torch.ones(6)], ValueError, r"out\[0\] has shape \(6,\).*theta\[0\] \('w'\) has \(5,\)"),
    "device": ([STORAGE[:5]], lambda: [torch.ones(5, device="meta")], ValueError, r"out\[0\] has shape \(5,\), on meta"),
    "wider": ([STORAGE[:5].bfloat16()], lambda: [torch.ones(5)], TypeError, r"out\[0\] is torch.float32, .* is torch.bfloat16: pass"),
    "other": ([STORAGE[:5].bfloat16()], lambda: [torch.ones(5).half()], TypeError, r"out\[0\] is torch.float16"),
    "integers": ([STORAGE[:5]], lambda: [torch.ones(5).int()], TypeError, r"out\[0\] is torch.int32"),
    "overlaps itself": (
        [STORAGE[:6].view(2, 3)],
        lambda: [torch.ones(9).as_strided((2, 3), (2, 1))],
        ValueError,
        r"out\[0\] overlaps itself",
    ),
    "theta": ([STORAGE[:5]], lambda: [STORAGE[:5]], ValueError, r"out\[0\] and theta\[0\] share memory"),
    "part of theta": ([STORAGE[:5]], lambda: [STORAGE[4:9]], ValueError, r"out\[0\] and theta\[0\] share memory"),
    "another's theta": (
        [STORAGE[:5], ("b", STORAGE[10:15])],
        lambda: [STORAGE[11:16], STORAGE[20:25]],
        ValueError,
        r"out\[0\] and theta\[1\] \('b'\) share memory",
    ),
    "each other": (
        [STORAGE[:5], STORAGE[10:15]],
        lambda: [STORAGE[20:25], STORAGE[24:29]],
        ValueError,
        r"out\[1\] and out\[0\] share memory|out\[0\] and out\[1\] share memory",
    ),
}


@pytest.mark.parametrize("params, make, error, message", BAD.values(), ids=BAD)
def test_bad_out_is_refused_before_anything_is_written(params, make, error, message):
    STORAGE.zero_()
    out = make()
    before = [o.clone() for o in out if isinstance(o, torch.Tensor)]
    with pytest.raises(error, match=message):
        ops.add_noise_(Layout(params), TERMS["normals"], out=out)
    assert not STORAGE.any() and all(o.is_meta or torch.equal(o, b) for o, b in zip(out, before))
