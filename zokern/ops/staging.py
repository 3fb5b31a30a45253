"""What a backend is handed: numbers on the device, and parameters that are not contiguous piece by piece."""

import torch

from ..layout import KEEP_ALL, Table, pack

FEW = 2  # numbers that are written on the device one by one; more are gathered on the host and copied
PIECE = 1 << 17  # elements of a strided parameter gathered at a time: 512 KiB, never a copy of the parameter


def stage(values, groups, device):
    """Numbers -> float32 [len(values), groups] on the device, without waiting for it."""
    if device.type != "cpu" and len(values) <= FEW:
        staged = torch.empty(len(values), groups, device=device)
        for row, value in zip(staged, values):
            if isinstance(value, torch.Tensor) and (value.device.type != "cpu" or value.dim()):
                row.copy_(value, non_blocking=True)
            else:
                row.fill_(float(value))
        return staged
    tensors = {k: value for k, value in enumerate(values) if isinstance(value, torch.Tensor)}
    plain = [0.0 if k in tensors else float(value) for k, value in enumerate(values)]
    host = torch.empty(len(values), groups, pin_memory=device.type == "cuda")
    host.copy_(torch.tensor(plain, dtype=torch.float64)[:, None])  # at once: one by one they cost several microseconds each
    for k, value in tensors.items():
        if value.device.type == "cpu":
            host[k] = value
    staged = host.to(device, non_blocking=True)
    for k, value in tensors.items():
        if value.device.type != "cpu":
            staged[k] = value.to(device, non_blocking=device.type == "cuda")
    return staged


def table_of(tensor, first, groups=1, word=None):
    """The table of one contiguous tensor."""
    row = (tensor.data_ptr(), tensor.numel(), first, pack(0, KEEP_ALL) if word is None else word)
    return Table(tensor.dtype, tensor.device, groups, torch.tensor([row]))


def each_table(layout):
    """The tables of all parameters, those that are not contiguous piece by piece. Autograd is told at the end."""
    tables, strided = layout.tables()
    yield from tables
    for i in strided:
        for (part,), start in gathered([layout.params[i]], layout.first[i]):
            yield table_of(part, start, len(layout.coefficient_groups), layout.word(i))
    tell_autograd(layout.params)


def gathered(tensors, first):
    """Covers tensors of one shape piece by piece, in row-major order of the logical shape.

    Yields (contiguous copies of a piece of each, the piece's first index); what the copies then hold is put back.
    """
    for parts, start in pieces(tensors, first):
        copies = [part.contiguous() for part in parts]
        yield copies, start
        for part, copy in zip(parts, copies):
            if copy is not part:
                part.copy_(copy)


def pieces(tensors, first):
    """Views of at most PIECE elements of each tensor, with their first index."""
    shape = tensors[0].shape
    if tensors[0].numel() <= PIECE:
        yield tensors, first
        return
    row = shape[1:].numel()
    if row > PIECE:
        for i in range(shape[0]):
            yield from pieces([tensor[i] for tensor in tensors], first + i * row)
    else:
        for i in range(0, shape[0], PIECE // row):
            yield [tensor[i : i + PIECE // row] for tensor in tensors], first + i * row


def tell_autograd(params):
    """Or a graph that saved the old weights would silently go on with the new ones."""
    bump = torch.autograd.graph.increment_version
    try:
        bump(params)
    except TypeError:  # older torch takes one tensor at a time
        for p in params:
            bump(p)
