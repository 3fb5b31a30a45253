"""The table that GPU kernels read."""

import pytest
import torch

from zokern.kernels import spans
from zokern.kernels.spans import BLOCK, cut, cut_state
from zokern.kernels.tables import COLUMN, Row, contiguous


def table(rows):
    return torch.tensor([*rows], dtype=torch.int64).view(-1, len(COLUMN))


def column(rows, name):
    return rows[:, COLUMN[name]]


def test_spans_cover_each_element_once_and_stay_small():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 65_000_000, (400,), generator=generator)  # 13e9 elements
    sizes[::7] = torch.randint(0, 5000, sizes[::7].shape, generator=generator)
    first = ((sizes + 4095) // 4096 * 4096).cumsum(0)
    rows = table(contiguous(int(f) * 2 + 16, int(n), int(f), i % 3, i % 7) for i, (n, f) in enumerate(zip(sizes, first)))
    made = cut(rows, 2, 2)
    assert made.nbytes < 3 * 2**20
    assert (column(made, "numel") > 0).all() and torch.equal(column(made, "columns"), column(made, "numel"))
    assert (column(made, "address") == column(made, "first") * 2 + 16).all() and torch.equal(column(made, "out"), column(made, "address"))
    at = 0
    for begin, numel, *rest in zip(*(column(rows, name).tolist() for name in ("first", "numel", "group", "keep_threshold"))):
        end = begin + numel
        while begin < end:
            assert [column(made, name)[at].item() for name in ("first", "group", "keep_threshold")] == [begin, *rest]
            begin += column(made, "numel")[at].item()
            assert begin == end or column(made, "numel")[at] % BLOCK == 0
            at += 1
    assert at == len(made)
    assert len(cut(rows[:0], 2, 2)) == len(cut(table([contiguous(16, 0, 0)]), 2, 2)) == 0


PITCHED = {
    "contiguous": contiguous(1 << 20, 1000, 3),
    "short lines": Row(1 << 21, 70, 1 << 22, 48, 48 * 40, 48, 7, 200, 1, 9),
    "long lines": Row(1 << 23, 900, 1 << 24, 800, 800 * 3, 800, 5000, 801, 2, 9),
    "one line": Row(1 << 25, 9, 1 << 26, 9, 700, 700, 9000, 9, 0, 9),
    "lines of one": Row(1 << 27, 3, 1 << 28, 1, 333, 1, 20000, 2, 0, 9),
    "none": contiguous(1 << 29, 0, 30000),
}


def elements(rows, itemsize, out_itemsize, states=None):
    """Of each element in order: where it lies, where it goes, its index, group and threshold, and where its states lie."""
    for i, row in enumerate(map(Row._make, rows.tolist())):
        for j in range(row.numel):
            r, c = divmod(j, row.columns)
            yield (
                *(row.address + (r * row.pitch + c) * itemsize, row.out + (r * row.out_pitch + c) * out_itemsize),
                *(row.first + r * row.step + c, row.group, row.keep_threshold),
                *((states[i] + j * 4).tolist() if states is not None else ()),
            )


@pytest.mark.parametrize("programs", [1, 7, 40, 1000])
def test_spans_are_the_same_elements_in_the_same_order_whatever_their_lines(programs, monkeypatch):
    monkeypatch.setattr(spans, "PROGRAMS", programs)
    monkeypatch.setattr(spans, "BLOCK", 64)
    rows = table(PITCHED.values())
    addresses = torch.arange(2 * len(rows)).reshape(-1, 2) * 2**40
    made, states = cut(rows, 4, 2), cut_state(rows, addresses, 4)
    assert [*elements(made, 4, 2, states)] == [*elements(rows, 4, 2, addresses)]
    assert (column(made, "numel") % column(made, "columns") == 0).all() and len(made) <= 4 * programs + 2 * len(rows)
    assert cut_state(rows, addresses[:, :0], 4).shape == (len(made), 0)


def test_a_model_of_short_lines_needs_no_span_a_line():
    rows = table(Row(0, 8192, 0, 8192, 28672 * 1024, 1024, i << 40, 8192, 0, 0) for i in range(320))
    made = cut(rows, 2, 2)
    assert len(made) < 2**16 and (column(made, "columns") == 1024).all() and (column(made, "numel") % BLOCK == 0).all()
