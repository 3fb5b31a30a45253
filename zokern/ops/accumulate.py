"""theta <- decay * theta + sum_k c_k z(key_k): the one primitive."""

import torch

from ..kernels import backend_for
from ..layout import Layout, Table
from ..noise import NoiseKey

FEW = 2  # coefficients that are written on the device one by one; more are gathered on the host and copied
PIECE = 1 << 17  # elements of a strided parameter gathered at a time: 512 KiB, never a copy of the parameter


@torch.no_grad()
def add_noise_(layout: Layout, terms, decay=1.0) -> None:
    """theta <- decay * theta + sum_k c_k z(key_k), in place on every parameter of the layout: one read, one write.

    Computed in float32 in the order of the terms, rounded once to the parameter's dtype. Never waits for the device.

    Args:
        layout: the parameters and their element indices.
        terms: sequence of (NoiseKey, coefficient), any number of them. A coefficient, in units of theta, is a number, a 0-dim
            tensor, or a tensor [layout.groups] with one value per parameter group.
        decay: what theta is multiplied by; the same kinds as a coefficient. Default 1.0.
    Raises:
        TypeError, ValueError: a key that is no NoiseKey, or a coefficient of another shape.
    """
    keys = [key for key, _ in terms]
    for k, key in enumerate(keys):
        if not isinstance(key, NoiseKey):
            raise TypeError(f"terms[{k}] has the key {key!r}: pass a zokern.NoiseKey")
    coefficients = [_checked(f"coefficient of terms[{k}]", c, layout.groups) for k, (_, c) in enumerate(terms)]
    decay = None if isinstance(decay, float | int) and decay == 1 else [_checked("decay", decay, layout.groups)]
    tables, strided = layout.tables()
    placed = {}

    def run(table):
        if table.device not in placed:
            placed[table.device] = (
                _place(coefficients, table.groups, table.device),
                None if decay is None else _place(decay, table.groups, table.device)[0],
            )
        backend_for(table.device).add_noise_(table, keys, *placed[table.device])

    for table in tables:
        run(table)
    for tensor, first, group in strided:
        for part, start in _pieces(tensor, first):
            gathered = part.contiguous()
            run(_table(gathered, start, group, layout.groups))
            if gathered is not part:
                part.copy_(gathered)
    tell_autograd(layout.params)


def tell_autograd(params):
    """Or a graph that saved the old weights would silently go on with the new ones."""
    bump = torch.autograd.graph.increment_version
    try:
        bump(params)
    except TypeError:  # older torch takes one tensor at a time
        for p in params:
            bump(p)


def make_noise(key: NoiseKey, first: int, count: int, device="cpu") -> torch.Tensor:
    """z(key) of elements first .. first + count - 1 as a float32 tensor [count], for tests and plots.

    Raises:
        ValueError: first or count is negative, or an element's index would pass 2**63.
    """
    if first < 0 or count < 0 or first + count > 1 << 63:
        raise ValueError(f"first={first}, count={count}: pass nonnegative integers with first + count <= 2**63")
    if not isinstance(key, NoiseKey):
        raise TypeError(f"key={key!r}: pass a zokern.NoiseKey")
    z = torch.full((count,), -0.0, device=device)  # fma(1, z, -0.0) is z itself, the sign of a zero included
    one = torch.ones(1, 1, device=z.device)
    backend_for(z.device).add_noise_(_table(z, first, 0, 1), [key], one, None)
    return z


def _table(tensor, first, group, groups):
    return Table(tensor.dtype, tensor.device, groups, torch.tensor([(tensor.data_ptr(), tensor.numel(), first, group)]))


def _checked(name, value, groups):
    if isinstance(value, torch.Tensor):
        if value.dim() and value.shape != (groups,):
            raise ValueError(f"{name} has shape {tuple(value.shape)}: pass a number, a 0-dim tensor, or one value per group, [{groups}]")
    elif not isinstance(value, float | int):
        raise TypeError(f"{name} is {value!r}: pass a number, a 0-dim tensor, or one value per group, [{groups}]")
    return value


def _place(values, groups, device):
    """Coefficients -> float32 [len(values), groups] on the device, without waiting for it."""
    if device.type != "cpu" and len(values) <= FEW:
        placed = torch.empty(len(values), groups, device=device)
        for row, value in zip(placed, values):
            if isinstance(value, torch.Tensor) and (value.device.type != "cpu" or value.dim()):
                row.copy_(value, non_blocking=True)
            else:
                row.fill_(float(value))
        return placed
    host = torch.empty(len(values), groups, pin_memory=device.type == "cuda")
    elsewhere = []
    for k, value in enumerate(values):
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            elsewhere.append((k, value))
        else:
            host[k] = value
    placed = host.to(device, non_blocking=True)
    for k, value in elsewhere:
        placed[k] = value.to(device, non_blocking=device.type == "cuda")
    return placed


def _pieces(tensor, first):
    """Views of at most PIECE elements that cover a tensor in row-major order of its logical shape, with their first index."""
    if tensor.numel() <= PIECE:
        yield tensor, first
        return
    row = tensor[0].numel()
    if row > PIECE:
        for i in range(len(tensor)):
            yield from _pieces(tensor[i], first + i * row)
    else:
        for i in range(0, len(tensor), PIECE // row):
            yield tensor[i : i + PIECE // row], first + i * row
