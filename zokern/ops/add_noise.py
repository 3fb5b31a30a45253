"""theta <- decay * theta + sum_k c_k z(key_k), or another tensor: the first primitive."""

from collections.abc import Iterable, Sequence

import torch

from ..kernels import backend_for
from ..kernels.tables import Table, contiguous
from ..layout import Layout
from ..noise import NoiseKey
from ..shards import as_part
from .arguments import Number, Term, check_decay, check_terms, rounding_key
from .staging import each_table, stage


@torch.no_grad()
def add_noise_(
    layout: Layout,
    terms: Iterable[Term],
    decay: Number = 1.0,
    out: Sequence[torch.Tensor] | None = None,
    rounding: str | NoiseKey = "nearest",
) -> None:
    """theta <- decay * theta + sum_k c_k z(key_k), in place on every parameter of the layout: one read, one write.

    Computed in float32 in the order of the terms, rounded once to the dtype of what is written. The same bits in place and out of place.
    Never waits for the device.

    Args:
        layout: the parameters, their element indices, and which share of their elements the noise reaches.
        terms: sequence of (NoiseKey, coefficient), any number of them. A coefficient, in units of theta, is a number, a 0-dim tensor, or a
            tensor [len(layout.coefficient_groups)] with one value per coefficient group.
        decay: what theta is multiplied by; the same kinds as a coefficient. Default 1.0.
        out: tensors that are written instead of theta, which is then only read: one for each of ``layout.params``, of its shape and device,
            of its dtype or, for float32, of a 16-bit one. Default None: theta itself.
        rounding: how what is written in 16 bits is rounded. "nearest": to nearest even. "stochastic": up or down, with the probability that
            keeps the mean, by random bits of the first term's seed and step and of the element, so that a run is replayed bit for bit. A
            key of purpose ``noise.spec.ROUNDING``: the same, by its own bits. float32 is stored as it is. Default "nearest".

    Raises:
        TypeError: a key that is no NoiseKey, a coefficient that is no number; tensors of ``out`` of a dtype that is not as above.
        ValueError: keys of both kinds of noise, a coefficient of another shape, tensors of ``out`` that are not as above or share memory
            with theta or each other, a rounding of another name. Nothing is written then.
    """
    groups = len(layout.coefficient_groups)
    checked, scale = check_terms("terms", terms, groups), check_decay(decay, groups)
    keys, values = [key for key, _ in checked], [c for _, c in checked]
    rounded_by = rounding_key(rounding, keys)
    staged: dict[torch.device, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for table in each_table(layout, None if out is None else list(out)):
        if table.device not in staged:
            staged[table.device] = stage(values, groups, table.device), None if scale is None else stage([scale], groups, table.device)[0]
        backend_for(table.device).add_noise_(table, keys, *staged[table.device], rounded_by)


def make_noise(key: NoiseKey, first: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """z(key) of elements first .. first + count - 1, for tests and plots.

    Args:
        key: a ``zokern.NoiseKey``.
        first: index of the first element, >= 0.
        count: how many, >= 0.
        device: where it is made. Default "cpu".

    Returns:
        A float32 tensor [count].

    Raises:
        ValueError: first or count is negative, or an element's index would pass 2**63.
        TypeError: a key that is no NoiseKey.
    """
    if first < 0 or count < 0 or first + count > 1 << 63:
        raise ValueError(f"first={first}, count={count}: pass nonnegative integers with first + count <= 2**63")
    if not isinstance(key, NoiseKey):
        raise TypeError(f"key={key!r}: pass a zokern.NoiseKey")
    z = torch.full((count,), -0.0, device=device)  # fma(1, z, -0.0) is z itself, the sign of a zero included
    table = Table.of(z.dtype, z.device, 1, [contiguous(z.data_ptr(), count, first)])
    backend_for(z.device).add_noise_(table, [key], torch.ones(1, 1, device=z.device), None, None)
    return z


@torch.no_grad()
def noise_like(layout: Layout, i: int, key: NoiseKey) -> torch.Tensor:
    """z(key) of one parameter as a tensor: what ``add_noise_`` would add with coefficient 1. For tangents, tests and plots.

    Everything else makes z in a register.

    Args:
        layout: of the parameters.
        i: number of the parameter in ``layout.params``.
        key: a ``zokern.NoiseKey``.

    Returns:
        A tensor of the shape, strides, dtype and device of ``layout.params[i]``: rounded to that dtype, 0 where the noise does not reach.

    Raises:
        TypeError: a key that is no NoiseKey.
    """
    check_terms("terms", [(key, 1.0)], len(layout.coefficient_groups))
    theta = layout.tensors[i]
    z = torch.full(theta.shape, -0.0, dtype=theta.dtype, device=theta.device)
    one = torch.ones(1, len(layout.coefficient_groups), device=theta.device)
    backend_for(theta.device).add_noise_(layout.table_of(i, z), [key], one, None, None)
    if not theta.is_contiguous():
        z = torch.empty_strided(theta.shape, theta.stride(), dtype=z.dtype, device=z.device).copy_(z)
    return as_part(z, layout.params[i])
