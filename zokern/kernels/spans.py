"""What GPU kernels read: a table of spans, pieces of tensors that one program each works on, and the keys."""

import numpy as np
import torch

from .passes import Keys, words
from .tables import State, Table

BLOCK = 4096  # elements that a program takes at a time; every span but a tensor's last is a multiple of it
# A launch is cut into about so many programs: a few for each that a GPU runs at a time, so that its end is short; few enough for a
# table of 0.25 MiB; and in a model of 1e9 parameters or more each runs through 30 blocks or more once its keys are loaded.
PROGRAMS = 8192


def spans(table: Table) -> torch.Tensor:
    """int64 [programs, 5] on the table's device: address, numel, first, group, keep_threshold. Made once for each table."""
    return table.cached("spans", lambda: to_device(cut(table.rows, table.dtype.itemsize), table.device))


def state_spans(table: Table, state: State) -> torch.Tensor:
    """int64 [programs, slots] on the table's device: where the state of each span begins. Made once for each state."""
    return state.cached("spans", lambda: to_device(cut_state(table.rows, state.addresses, state.dtype.itemsize), table.device))


def cut(rows: torch.Tensor, itemsize: int) -> torch.Tensor:
    """Cuts the rows of a table into about PROGRAMS rows of whole blocks; only a tensor's last is ragged."""
    row, start, step = pieces(rows)
    spans = rows[row]
    spans[:, 0] += start * itemsize
    spans[:, 1] = torch.minimum(spans[:, 1] - start, step)
    spans[:, 2] += start
    return spans


def cut_state(rows: torch.Tensor, addresses: torch.Tensor, itemsize: int) -> torch.Tensor:
    """Where ``cut`` cuts ``rows``: the addresses [rows, slots] of what belongs to each piece's first element."""
    row, start, _ = pieces(rows)
    return addresses[row] + start[:, None] * itemsize


def pieces(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> for each piece: its row, the element of the row that it starts at, the most elements it may have."""
    numel = rows[:, 1]
    blocks = (numel + BLOCK - 1) // BLOCK
    wanted = (blocks * PROGRAMS // blocks.sum().clamp(min=1)).clamp(min=1)
    step = ((blocks + wanted - 1) // wanted * BLOCK).clamp(min=BLOCK)
    count = (numel + step - 1) // step
    row = torch.arange(len(rows)).repeat_interleave(count)
    start = (torch.arange(len(row)) - (count.cumsum(0) - count)[row]) * step[row]
    return row, start, step[row]


def pack(keys: Keys) -> torch.Tensor:
    """Keys as int32 [len(keys), 4] on the host: seed mod 2^32, seed >> 32, step, stream."""
    halves = [(seed & 0xFFFFFFFF, seed >> 32, step, stream) for seed, step, stream in words(keys)]
    return torch.from_numpy(np.array(halves, dtype=np.uint32).reshape(-1, 4).view(np.int32))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy that the host does not wait for: the pinned source is kept by torch until the copy is done."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
