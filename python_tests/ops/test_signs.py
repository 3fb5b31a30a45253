"""Signs (Rademacher noise) in every op and every optimizer: z of +1 and -1 where normals were."""

import pytest
import torch
from tolerances import ROUNDING, STATE

from zokern import Layout, NoiseKey, ops, use_backend
from zokern.kernels.passes import RULES
from zokern.noise import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = ((37, 11), (), (5000,), (0,), (3, 4, 5))
TERMS = [(NoiseKey.of(4, 1, 4), 0.3), (NoiseKey.of(4, 2, 5), -1.7), (NoiseKey.of(4, 1, 4, 1), 2e-3)]
MANY = [(NoiseKey.of(4, k, 4), 0.1 * (-1) ** k) for k in range(21)]


def bits(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def test_make_noise(backend):
    for purpose in (4, 5):
        key = NoiseKey.of(11, 2, purpose, 3)
        z = ops.make_noise(key, 61, 5003)
        assert torch.equal(z, torch.from_numpy(reference.signs(key, 61, 5003)))
        assert set(z.tolist()) == {1.0, -1.0} and z.mean().abs() < 5 / 5003**0.5


@pytest.mark.parametrize("terms", [TERMS, MANY], ids=["three", "many"])
@pytest.mark.parametrize("keep", [None, [0.25, 1.0, 0.5, 0.5, 1.0]], ids=["dense", "sparse"])
@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_noise_against_explicit_z_in_float64(backend, dtype, decay, keep, terms, explicit):
    params = [torch.randn(shape).to(dtype) for shape in SHAPES]
    before, layout = [p.double() for p in params], Layout(params, keep)
    ops.add_noise_(layout, terms, decay)
    expected = [decay * b for b in before]
    for key, c in terms:
        expected = [e + c * z for e, z in zip(expected, explicit(key, layout))]
    for p, e in zip(params, expected):
        tolerance = ROUNDING[dtype] + len(terms) * 2.0**-24
        assert not p.numel() or (p.double() - e).abs().max() <= tolerance * e.abs().max().clamp(min=1)


@pytest.mark.parametrize("keep", [None, [0.25, 1.0, 0.5, 0.5, 1.0]], ids=["dense", "sparse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_replay_equals_the_loop_and_kinds_may_alternate_from_pass_to_pass(backend, dtype, keep):
    normals = [(NoiseKey(4, 1), 0.25)]
    passes = [(TERMS[:1], 1.0), ([], 0.5), (MANY, 0.9), (normals, 1.0), (TERMS[:1], 1.0), (TERMS[:1], 1.0), ([], 0.75), (normals, 0.5)]
    thetas = [[torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for shape in SHAPES] for _ in range(2)]
    ops.replay_(Layout(thetas[0], keep), passes)
    for terms, decay in passes:
        ops.add_noise_(Layout(thetas[1], keep), terms, decay)
    for a, b in zip(*thetas):
        assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("keep", [None, [0.25, 1.0, 0.5, 0.5, 1.0]], ids=["dense", "sparse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_update_by_momentum_against_the_textbook_in_float64(backend, dtype, keep, explicit):
    layout = Layout([torch.randn(shape).to(dtype) for shape in SHAPES], keep)
    before, state = [p.double() for p in layout.params], [[torch.ones_like(p, dtype=torch.float32) for p in layout.params]]
    ops.update_(layout, "momentum", TERMS[1:], (-0.125, 0.5), state, pending=TERMS[:2], decay=0.9)
    along = lambda terms: map(sum, zip(*([c * z for z in explicit(key, layout)] for key, c in terms)))  # noqa: E731
    for p, x, o, g, m in zip(layout.params, before, along(TERMS[:2]), along(TERMS[1:]), state[0]):
        if p.numel():
            moment = 0.5 + g
            expected = 0.9 * x + o - 0.125 * moment
            assert (m.double() - moment).abs().max() <= STATE * moment.abs().max()
            assert (p.double() - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("rule", RULES)
def test_update_has_the_bits_of_the_reference(rule):
    made = []
    for name in ("reference", "default"):
        torch.manual_seed(0)
        layout = Layout([torch.randn(shape) for shape in SHAPES], [0.5, 1.0, 1.0, 1.0, 1.0])
        state = [[torch.rand_like(p).bfloat16() for p in layout.params] for _ in RULES[rule].state]
        rounding = NoiseKey.of(1, 2, 3) if state else None
        numbers = [0.01 * (n + 1) for n in range(len(RULES[rule].numbers))]

        def run(layout=layout, numbers=numbers, state=state, rounding=rounding):
            ops.update_(layout, rule, TERMS[1:], numbers, state, TERMS[:2], 0.9, rounding)

        if name == "reference":
            with use_backend(name):
                run()
        else:
            run()
        made.append([*layout.params, *(s for slot in state for s in slot)])
    for a, b in zip(*made):
        assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("pending", [[], [(NoiseKey(1), 1.0)]])
def test_keys_of_both_kinds_in_one_update_are_refused(pending):
    theta = torch.ones(3)
    terms = [(NoiseKey.of(1, 0, 4), 1.0), *([] if pending else [(NoiseKey(1), 1.0)])]
    with pytest.raises(ValueError, match="key of (gaussian|rademacher) noise.*in another pass"):
        ops.update_(Layout([theta]), "sign", terms, (-0.1,), pending=pending)
    assert torch.equal(theta, torch.ones(3))
