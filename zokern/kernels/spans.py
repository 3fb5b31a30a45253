"""What GPU kernels read: a table of spans, pieces of tensors that one program each works on, and the keys."""

import numpy as np
import torch

BLOCK = 4096  # elements that a program takes at a time; every span but a tensor's last is a multiple of it
# A launch is cut into about so many programs: a few for each place on a GPU, so that its end is short; few enough for a
# table of 0.25 MiB; and in a model of 1e9 parameters or more each runs through 30 blocks or more once its keys are loaded.
PROGRAMS = 8192


def spans(table) -> torch.Tensor:
    """int64 [programs, 4] on the table's device: address, numel, first, group. Made once for each table."""
    return table.cached("spans", lambda: to_device(cut(table.rows, table.dtype.itemsize), table.device))


def cut(rows: torch.Tensor, itemsize: int) -> torch.Tensor:
    """Cuts rows (address, numel, first, group) into about PROGRAMS rows of whole blocks; only a tensor's last is ragged."""
    rows = rows[rows[:, 1] > 0]
    blocks = (rows[:, 1] + BLOCK - 1) // BLOCK
    pieces = (blocks * PROGRAMS // blocks.sum().clamp(min=1)).clamp(min=1)
    pieces = torch.minimum(pieces, blocks)
    step = (blocks + pieces - 1) // pieces * BLOCK
    pieces = (rows[:, 1] + step - 1) // step
    spans = rows.repeat_interleave(pieces, dim=0)
    step, before = step.repeat_interleave(pieces), (pieces.cumsum(0) - pieces).repeat_interleave(pieces)
    start = (torch.arange(len(spans)) - before) * step
    spans[:, 0] += start * itemsize
    spans[:, 1] = torch.minimum(spans[:, 1] - start, step)
    spans[:, 2] += start
    return spans


def pack(keys) -> torch.Tensor:
    """Keys as int32 [len(keys), 4] on the host: seed mod 2^32, seed >> 32, step, stream."""
    words = [(key.seed & 0xFFFFFFFF, key.seed >> 32, key.step, key.stream) for key in keys]
    return torch.from_numpy(np.array(words, dtype=np.uint32).reshape(-1, 4).view(np.int32))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy that the host does not wait for: the pinned source is kept by torch until the copy is done."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
