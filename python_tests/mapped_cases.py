"""Tensors for files, and what becomes of them in memory."""

import torch

import zokern


def some(scale=1):
    """Tensors of all dtypes that weights have, one of them empty, and one a number."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {
        "embed": draw(50 * scale, 33),
        "half": draw(1023 * scale).half(),
        "bfloat": draw(7, 129 * scale).bfloat16(),
        "number": draw(1)[0],
        "empty": draw(0, 3),
    }


def perturbed(tensors, steps):
    """The same in memory."""
    tensors = {name: t.clone() for name, t in tensors.items()}
    layout = zokern.Layout(sorted(tensors.items()))
    for step in steps:
        zokern.ops.add_noise_(layout, [(zokern.NoiseKey(7, step), 0.01)])
    return tensors


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        assert found[name].dtype == t.dtype and torch.equal(found[name], t), name
