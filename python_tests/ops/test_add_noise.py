"""add_noise_ against explicit z in float64, on every shape of tensor and coefficient."""

import pytest
import torch
from tolerances import ROUNDING

from zokern import Layout, NoiseKey, ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_against_explicit_z_in_float64(dtype, decay, explicit):
    params = [torch.randn(shape).to(dtype) for shape in ((37, 11), (), (5000,), (3, 4, 5))]
    before = [p.double() for p in params]
    layout, terms = Layout(params), [(NoiseKey(4, 1), 0.3), (NoiseKey(4, 2), -1.7), (NoiseKey(4, 1, 1), 2e-3)]
    ops.add_noise_(layout, terms, decay)
    expected = [decay * b for b in before]
    for key, c in terms:
        expected = [e + c * z for e, z in zip(expected, explicit(key, layout))]
    for p, e in zip(params, expected):
        assert (p.double() - e).abs().max() <= ROUNDING[dtype] * e.abs().max().clamp(min=1)


STRIDED = {
    "transposed": lambda dtype: torch.zeros(300, 700, dtype=dtype).t(),
    "permuted": lambda dtype: torch.zeros(5, 6, 7, dtype=dtype).permute(2, 0, 1),
    "channels last": lambda dtype: torch.zeros(4, 8, 9, 9, dtype=dtype).contiguous(memory_format=torch.channels_last),
    "columns": lambda dtype: torch.zeros(50, 64, dtype=dtype)[:, 3:40],
    "every other": lambda dtype: torch.zeros(999, dtype=dtype)[::2],
    "long rows": lambda dtype: torch.zeros(400_000, 3, dtype=dtype).t(),
    "one long row": lambda dtype: torch.zeros(600_001, dtype=dtype)[::2],
}


@pytest.mark.parametrize("make", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_belongs_to_the_logical_element_whatever_the_strides(make, dtype):
    strided = make(dtype)
    assert not strided.is_contiguous()
    plain = torch.zeros(strided.shape, dtype=dtype)
    terms = [(NoiseKey(1), 1.0), (NoiseKey(2), -0.5)]
    outside = strided.untyped_storage().nbytes()
    ops.add_noise_(Layout([torch.zeros(7, dtype=dtype), strided]), terms, 0.5)
    ops.add_noise_(Layout([torch.zeros(7, dtype=dtype), plain]), terms, 0.5)
    assert torch.equal(strided, plain) and plain.std() > 0.9
    assert outside == strided.untyped_storage().nbytes()


def test_nothing_outside_a_view_is_touched():
    storage = torch.zeros(50, 64)
    ops.add_noise_(Layout([storage[:, 3:40]]), [(NoiseKey(0), 1.0)])
    assert storage[:, :3].count_nonzero() == 0 == storage[:, 40:].count_nonzero()


def test_coefficients_of_every_kind_agree():
    results = []
    quarter = torch.tensor(0.25)
    for c in (0.25, quarter, quarter.double(), torch.tensor([0.25, 0.25]), torch.nn.Parameter(quarter)):
        a, b = torch.zeros(5), torch.zeros(3)
        ops.add_noise_(Layout([{"params": [a]}, {"params": [b]}]), [(NoiseKey(0), c)], decay=c)
        results.append(torch.cat([a, b]))
    assert all(torch.equal(r, results[0]) for r in results)


def test_one_coefficient_and_decay_for_each_group(explicit):
    params = [torch.ones(5), torch.ones(3), torch.ones(2)]
    layout = Layout([{"params": params[:2]}, {"params": params[2:]}])
    c, decay = torch.tensor([0.25, 4.0], dtype=torch.float64), torch.tensor([0.5, 0.0])
    ops.add_noise_(layout, [(NoiseKey(3), c)], decay)
    for p, group, z in zip(params, layout.group, explicit(NoiseKey(3), layout)):
        torch.testing.assert_close(p.double(), decay[group] + c[group] * z, rtol=1e-6, atol=1e-6)


def test_several_dtypes_in_one_layout_share_one_numbering(explicit):
    params = [torch.zeros(300, dtype=dtype) for dtype in DTYPES]
    layout = Layout(params)
    ops.add_noise_(layout, [(NoiseKey(5), 1.0)])
    for p, z in zip(params, explicit(NoiseKey(5), layout)):
        assert torch.equal(p, z.to(p.dtype))


def test_autograd_notices_that_weights_changed():
    theta = torch.ones(3, requires_grad=True)
    loss = (theta * theta).sum()
    ops.add_noise_(Layout([theta]), [(NoiseKey(0), 1.0)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "terms, decay, error, message",
    [
        ([("key", 1.0)], 1.0, TypeError, r"terms\[0\] has the key 'key'"),
        ([(NoiseKey(0), "1")], 1.0, TypeError, r"coefficient of terms\[0\] is '1'"),
        ([(NoiseKey(0), torch.ones(3))], 1.0, ValueError, r"coefficient of terms\[0\] has shape \(3,\).*\[2\]"),
        ([], torch.ones(2, 1), ValueError, r"decay has shape \(2, 1\)"),
    ],
)
def test_bad_terms_are_refused_before_anything_changes(terms, decay, error, message):
    a, b = torch.ones(3), torch.ones(3)
    with pytest.raises(error, match=message):
        ops.add_noise_(Layout([{"params": [a]}, {"params": [b]}]), terms, decay)
    assert torch.equal(a, torch.ones(3)) and torch.equal(b, torch.ones(3))


@pytest.mark.parametrize("first, count", [(-1, 3), (0, -3), (2**63, 1)])
def test_make_noise_refuses_indices_that_do_not_exist(first, count):
    with pytest.raises(ValueError, match="first="):
        ops.make_noise(NoiseKey(0), first, count)
