"""A layout that is told which elements its tensors are: parts of a model make the noise that the whole model has there."""

import pytest
import torch

from zokern import Layout, NoiseKey, ops
from zokern.layout import Span

KEYS = [NoiseKey(4, 1), NoiseKey.of(4, 1, 4)]
TERMS = [[(key, 0.5), (NoiseKey(key.seed, 9, key.stream), -1.25)] for key in KEYS]


def model(dtype):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype) for shape in ((30, 600), (7,), (6, 5, 96), (16, 520), (500,))]


def parts(whole, firsts):
    """Parts of its tensors, copied, with what they are parts of: rows, columns, the second of three dimensions, everything."""
    a, b, c, d, e = whole
    of = [
        (a[:, 100:400], Span(firsts[0] + 100, 300, 600)),
        (b, Span(firsts[1])),
        (c[:, 2:4], (firsts[2] + 2 * 96, 2 * 96, 5 * 96)),
        (d[3:9], Span(firsts[3] + 3 * 520)),
        (a[:, 400:], Span(firsts[0] + 400, 200, 600)),
        (e[33:34], (firsts[4] + 33,)),
    ]
    return [part for part, _ in of], [part.clone() for part, _ in of], [span for _, span in of]


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("terms", TERMS, ids=["normals", "signs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parts_are_perturbed_as_the_whole(backend, dtype, terms, keep):
    whole = model(dtype)
    layout = Layout(whole, [keep] * 5)
    there, mine, spans = parts(whole, layout.first)
    of_parts = Layout(mine, [keep] * 6, spans=spans)
    out = [torch.empty_like(p) for p in mine]
    ops.add_noise_(of_parts, terms, 0.75, out)
    for ops_ in (lambda layout: ops.add_noise_(layout, terms, 0.75), lambda layout: ops.replay_(layout, [(terms, 1.0), (terms[:1], 0.5)])):
        for each in (layout, of_parts):
            ops_(each)
        for a, b in zip(there, mine):
            assert torch.equal(a, b)
    whole = model(dtype)
    ops.add_noise_(Layout(whole, [keep] * 5), terms, 0.75)
    for a, b in zip(parts(whole, layout.first)[0], out):
        assert torch.equal(a, b)


@pytest.mark.parametrize("terms", TERMS, ids=["normals", "signs"])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_parts_are_updated_as_the_whole(backend, state, terms):
    whole = model(torch.bfloat16)
    layout = Layout(whole)
    there, mine, spans = parts(whole, layout.first)
    of_parts, states = Layout(mine, spans=spans), []
    for each in (layout, of_parts):
        states.append([[torch.full_like(p, 0.25, dtype=state) for p in each.params] for _ in "mv"])
        numbers = (-0.01, 0.5, 0.5, 0.75, 0.25, 1.5, 1e-3)
        rounding = NoiseKey.of(1, 2, 3) if state == torch.bfloat16 else None
        ops.update_(each, "adam", terms, numbers, states[-1], state_rounding=rounding)
    for a, b in zip(there, mine):
        assert torch.equal(a, b)
    for of_whole, of_part in zip(*states):
        for a, b in zip(parts(of_whole, layout.first)[0], of_part):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_of_a_larger_weight_are_one_row_of_a_table_and_need_no_copy(backend, dtype):
    """Lines in memory and lines of elements, each alone and both at once; columns that are no lines of both are refused."""
    whole = torch.zeros(64, 1024, dtype=dtype)
    ops.add_noise_(Layout([whole]), TERMS[0])
    big = torch.zeros(64, 1024, dtype=dtype)
    views = [big[:, :300], big[:, 300:600], torch.zeros(64, 424, dtype=dtype)]
    for view, first in zip(views, (0, 300, 600)):
        layout = Layout([view], spans=[Span(first, view.shape[1], 1024)])
        ((table,), strided) = layout.tables()
        assert len(table.rows) == 1 and not strided and table.pitched
        ops.add_noise_(layout, TERMS[0])
    assert torch.equal(torch.cat([big[:, :600], views[2]], dim=1), whole) and not big[:, 600:].any()
    plain = torch.zeros(64, 300, dtype=dtype)
    ops.add_noise_(Layout([plain]), TERMS[0])
    big.zero_()
    ops.add_noise_(Layout([big[:, 10:310]]), TERMS[0])
    assert torch.equal(big[:, 10:310], plain)
    with pytest.raises(ValueError, match=r"theta\[0\] or its out has other lines than those of Span\(first=0, columns=150, step=400\)"):
        ops.add_noise_(Layout([big[:, :300]], spans=[Span(0, 150, 400)]), TERMS[0])
    with pytest.raises(ValueError, match="pass contiguous tensors"):
        ops.add_noise_(Layout([plain.T], spans=[Span(0, 64, 400)]), TERMS[0])


def test_a_layout_knows_its_spans():
    a, b = torch.zeros(4, 6), torch.zeros(5)
    layout = Layout([("a", a), ("b", b), ("again", a)], spans=[(100, 6, 10), (7,), (100, 6, 10)])
    assert layout.spans == [(100, 6, 10), (7, 5, 5)] and layout.first == [100, 7] and layout.names == ["a", "b"]
    assert layout.part(0).spans == layout.over([a.clone(), b.clone()]).spans == layout.spans
    assert len({Layout([a], spans=[span]).fingerprint() for span in [(0,), (1,), (0, 6, 10), (0, 6, 11), (0, 3, 10)]}) == 5
    assert Layout([a], spans=[(0,)]).fingerprint() == Layout([a]).fingerprint()


@pytest.mark.parametrize(
    "spans, error, message",
    [
        ([(0,)], ValueError, "spans has 1 entries for 2 parameters"),
        ([(-1,), (100,)], ValueError, r"spans\[0\] of theta\[0\] \('a'\) is \(-1,\): pass first >= 0"),
        ([(0, 5), (100,)], ValueError, "columns that divide the tensor's 24 elements"),
        ([(0, 6, 5), (100,)], ValueError, "a step of 5 is smaller than a row of 6"),
        ([(2**63 - 3,), (0,)], ValueError, r"indices below 2\*\*63"),
        ([(0.5,), (100,)], TypeError, r"is \(0.5,\): pass zokern.layout.Span"),
        ([5, (100,)], TypeError, "is 5: pass zokern.layout.Span"),
        ([(0,), (23,)], ValueError, r"the spans of theta\[0\] \('a'\) and theta\[1\] both hold element 23"),
        ([(0, 6, 10), (5,)], ValueError, "both hold element 5"),
        ([(0, 6, 10), (38 - 12, 5)], ValueError, "both hold element 30"),
    ],
)
def test_bad_spans_are_refused(spans, error, message):
    with pytest.raises(error, match=message):
        Layout([("a", torch.zeros(4, 6)), torch.zeros(5)], spans=spans)


def test_spans_that_interleave_are_no_overlap():
    Layout([torch.zeros(4, 6), torch.zeros(4, 4), torch.zeros(0)], spans=[(0, 6, 10), (6, 4, 10), (3,)])
