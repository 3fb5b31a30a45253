"""The table that GPU kernels read."""

import torch

from zokern.kernels.spans import BLOCK, cut, cut_state


def test_spans_cover_each_element_once_and_stay_small():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 65_000_000, (400,), generator=generator)  # 13e9 elements
    sizes[::7] = torch.randint(0, 5000, sizes[::7].shape, generator=generator)
    first = ((sizes + 4095) // 4096 * 4096).cumsum(0)
    rows = torch.stack([first * 2 + 16, sizes, first, torch.arange(400) % 3, first % 7], dim=1)
    spans = cut(rows, itemsize=2)
    assert spans.nbytes < 2**19
    assert (spans[:, 1] > 0).all()
    assert (spans[:, 0] == spans[:, 2] * 2 + 16).all()
    at = 0
    for (_, _, begin, *rest), end in zip(rows.tolist(), (rows[:, 2] + rows[:, 1]).tolist()):
        while begin < end:
            assert spans[at, 2:].tolist() == [begin, *rest]
            begin += spans[at, 1].item()
            assert begin == end or spans[at, 1] % BLOCK == 0
            at += 1
    assert at == len(spans)
    assert len(cut(rows[:0], 2)) == len(cut(torch.tensor([[16, 0, 0, 0, 0]]), 2)) == 0


def test_state_is_cut_where_its_tensor_is():
    sizes = torch.tensor([5, 0, 100_000_000, 4096, 4097])
    padded = (sizes + 4095) // 4096 * 4096
    rows = torch.stack([sizes * 0, sizes, padded.cumsum(0) - padded, sizes * 0, sizes * 0], dim=1)
    spans = cut(rows, itemsize=2)
    addresses = torch.arange(10).reshape(5, 2) * 2**40
    row = torch.tensor([max(i for i in range(5) if rows[i, 2] <= first and rows[i, 1]) for first in spans[:, 2].tolist()])
    assert torch.equal(cut_state(rows, addresses, 4), addresses[row] + (spans[:, 2] - rows[row, 2])[:, None] * 4)
    assert cut_state(rows, addresses[:, :0], 4).shape == (len(spans), 0)
