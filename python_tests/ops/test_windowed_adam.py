"""windowed_adam_ against Adam's moments written out in float64 with explicit z, on every kind of tensor, term and number."""

from itertools import product

import pytest
import torch
from tolerances import ROUNDING

from zokern import Layout, NoiseKey, ops, use_backend
from zokern.noise import reference
from zokern.noise.spec import ROUNDING as PURPOSE
from zokern.noise.spec import SIGNS, WEIGHTS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = ((37, 11), (), (1100,), (0,), (3, 4, 5))
# Three steps of one, three and two directions.
WINDOW = [[((4, 1), -1.5)], [((4, 2, 0), 0.5), ((4, 2, 1), -0.25), ((4, 2, 2), 1.0)], [((4, 3, 0), 0.75), ((4, 3, 1), 0.125)]]
IN_M, IN_V = [0.25, 0.5, 1.0], [0.5, 0.75, 1.0]
NUMBERS = (-1e-2, 1.5, 1e-3)


def keyed(terms, signs):
    return [(NoiseKey(*key).to(SIGNS) if signs else NoiseKey(*key), c) for key, c in terms]


def of_kind(signs):
    """The window, and what is pending: at the second direction of the last step, and along a key of no step."""
    return [keyed(terms, signs) for terms in WINDOW], keyed([((4, 3, 1), 0.25), ((9, 9), 0.125)], signs)


def expected(x, window, pending, decay, z_of, numbers=NUMBERS, weights=(IN_M, IN_V)):
    """Of one parameter, in float64: z_of(key) is its noise."""
    x = decay * x + sum((c * z_of(key) for key, c in pending), 0)
    g = [sum(c * z_of(key) for key, c in terms) for terms in window]
    m, v = sum(w * one for w, one in zip(weights[0], g)), sum(w * one**2 for w, one in zip(weights[1], g))
    return x + numbers[0] * m / (v.sqrt() * numbers[1] + numbers[2])


@pytest.mark.parametrize("keep", [None, [0.25, 1.0, 0.5, 0.5, 1.0]], ids=["dense", "sparse"])
@pytest.mark.parametrize("signs, decay", [(False, 1.0), (False, 0.9), (True, 0.9)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_textbook_in_float64(backend, dtype, signs, decay, keep, explicit):
    layout = Layout([torch.randn(shape).to(dtype) for shape in SHAPES], keep)
    before, (window, pending) = [p.double() for p in layout.params], of_kind(signs)
    ops.windowed_adam_(layout, window, (IN_M, IN_V), NUMBERS, pending, decay)
    for i, (p, x) in enumerate(zip(layout.params, before)):
        right = expected(x, window, pending, decay, lambda key: explicit(key, layout)[i])  # noqa: B023
        if p.numel():
            assert (p.double() - right).abs().max() <= ROUNDING[dtype] * right.abs().max().clamp(min=1)


def test_numbers_coefficients_and_weights_of_each_group(backend, explicit):
    params = [torch.ones(5), torch.ones(300), torch.ones(2)]
    layout = Layout([{"params": params[:2]}, {"params": params[2:]}])
    each = lambda *values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
    window, pending = [[(NoiseKey(3), each(0.25, -4.0))], [(NoiseKey(4), 2.0)]], [(NoiseKey(4), each(0.5, 0.125))]
    weights, numbers, decay = ([each(0.5, 0.25), 1.0], torch.rand(2, 2).double().unbind()), [each(-0.5, -0.25), 1.0, 0.5], each(0.5, 2.0)
    ops.windowed_adam_(layout, window, weights, numbers, pending, decay)
    for i, group in enumerate(layout.group):
        of = lambda value: value[group] if isinstance(value, torch.Tensor) else value  # noqa: B023, E731
        own = lambda terms: [(key, of(c)) for key, c in terms]  # noqa: B023, E731
        z_of = lambda key: explicit(key, layout)[i]  # noqa: B023, E731
        mine = [list(map(of, w)) for w in weights]
        right = expected(torch.ones_like(params[i]).double(), map(own, window), own(pending), of(decay), z_of, list(map(of, numbers)), mine)
        torch.testing.assert_close(params[i].double(), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("signs", [False, True], ids=["normals", "signs"])
def test_has_the_bits_of_the_reference(signs):
    made, (window, pending) = [], of_kind(signs)
    for name, dtype in product(("reference", "cpu"), DTYPES):
        generator = torch.Generator().manual_seed(0)
        wide = torch.randn(30, 70, generator=generator).to(dtype)
        params = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES] + [wide.t(), wide.clone()[:, 3:40]]
        with use_backend(name):
            ops.windowed_adam_(Layout(params, [0.5, 1.0] * 3 + [1.0]), window, (IN_M, IN_V), NUMBERS, pending, 0.9, "stochastic")
        made.append(params)
    for ours, theirs in zip(made[3:], made[:3]):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_theta_is_the_float32_theta_rounded_by_the_last_steps_key(backend, dtype):
    start, (window, _) = torch.rand(5003).add(1).to(dtype), of_kind(False)
    exact, rounded = start.float(), start.clone()
    ops.windowed_adam_(Layout([exact]), window, (IN_M, IN_V), NUMBERS)
    ops.windowed_adam_(Layout([rounded]), window, (IN_M, IN_V), NUMBERS, rounding="stochastic")
    at_random = {torch.bfloat16: reference.stochastic_bfloat16, torch.float16: reference.stochastic_float16}[dtype]
    bits = at_random(exact.numpy(), reference.random_halves(NoiseKey.of(4, 3, PURPOSE, WEIGHTS), 0, 5003))
    assert torch.equal(rounded, torch.from_numpy(bits).view(dtype)) and not torch.equal(rounded, exact.to(dtype))


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ({"window": []}, ValueError, r"window has \[\] terms: pass one step or more"),
        ({"window": [[(NoiseKey(1), 1.0)], []]}, ValueError, r"window has \[1, 0\] terms"),
        ({"window": [[("key", 1.0)]]}, TypeError, r"window\[0\]\[0\] has the key 'key'"),
        ({"window": [[(NoiseKey(1), torch.ones(3))]]}, ValueError, r"coefficient of window\[0\]\[0\] has shape \(3,\)"),
        ({"weights": ([1.0], [1.0, 1.0])}, ValueError, r"weights\[1\] has 2 numbers: pass one for each of the 1 steps"),
        ({"weights": (["1"], [1.0])}, TypeError, r"weights\[0\]\[0\] is '1'"),
        ({"numbers": (1.0,)}, ValueError, "numbers has 1 values: pass the 3 of 'windowed-adam': -lr / bc1"),
        ({"numbers": (1.0, None, 1.0)}, TypeError, r"numbers\[1\] \(1 / sqrt\(bc2\)\) is None"),
        ({"pending": [(NoiseKey.of(1, 0, SIGNS), 1.0)]}, ValueError, "key of (gaussian|rademacher) noise.*in another pass"),
        ({"decay": torch.ones(2, 1)}, ValueError, r"decay has shape \(2, 1\)"),
        ({"rounding": "up"}, ValueError, "^rounding='up': pass 'nearest', 'stochastic' or a key"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(bad, error, message):
    layout = Layout([torch.ones(3), torch.ones(3)])
    with pytest.raises(error, match=message):
        ops.windowed_adam_(layout, **{"window": [[(NoiseKey(1), 1.0)]], "weights": ([1.0], [1.0]), "numbers": NUMBERS, **bad})
    assert all(torch.equal(p, torch.ones(3)) for p in layout.params)


def test_autograd_notices_that_weights_changed():
    theta = torch.ones(3, requires_grad=True)
    loss = (theta * theta).sum()
    ops.windowed_adam_(Layout([theta]), [[(NoiseKey(1), 1.0)]], ([1.0], [1.0]), NUMBERS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
