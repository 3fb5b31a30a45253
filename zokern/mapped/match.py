"""Which tensors of a checkpoint are which parameters and buffers of a model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ..errors import BadInput

CURE = "pass the weights of this very model"


class Match(NamedTuple):
    """A parameter or a buffer, its name in the model, that of its values in the checkpoint, and others that it has there as well."""

    tensor: torch.Tensor
    own: str
    held: str
    others: tuple[str, ...]


def matched(model: torch.nn.Module, shapes: Mapping[str, Sequence[int]], where: str, cure: str = CURE) -> tuple[list[Match], list[str]]:
    """Find each parameter of a model once, and each buffer that it saves, by name: by any of its names where several modules share it, and
    with or without the prefix of transformers' base models.

    Args:
        shapes: of the tensors in the checkpoint, by name.
        where: what errors call it. cure: what they say helps.

    Returns:
        (what is whose, the names in the checkpoint that nothing of the model has)

    Raises:
        BadInput: it lacks a tensor of the model, or holds it in another shape.
    """
    prefix, saved = f"{getattr(model, 'base_model_prefix', '')}.", model.state_dict().keys()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    tensors: dict[int, torch.Tensor] = {}
    names: dict[int, list[str]] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *((n, b) for n, b in buffers.items() if n in saved)):
        tensors[id(tensor)] = tensor
        names.setdefault(id(tensor), []).append(name)
    found, owners = [], dict[str, str]()
    for key, own in names.items():
        held = [name for name in own if name in shapes] or sorted({s for name in own for s in _spellings(name, prefix)} & shapes.keys())
        if not held:
            raise BadInput(f"{where} lacks {' or '.join(map(repr, own))} of the model: {cure}")
        for name in held:
            if (other := owners.setdefault(name, own[0])) != own[0]:
                raise BadInput(f"{where} holds {name!r} alone for {other!r} and {own[0]!r} of the model: {cure}")
            if (given := tuple(shapes[name])) != tensors[key].shape:
                what = f"{name!r} of shape {given}, and {own[0]!r} of the model has {tuple(tensors[key].shape)}"
                raise BadInput(f"{where} holds {what}: {cure}")
        found.append(Match(tensors[key], own[0], held[0], tuple(held[1:])))
    made_anew = {s for name in buffers for s in _spellings(name, prefix)}
    return found, sorted(shapes.keys() - owners.keys() - made_anew)


def _spellings(name: str, prefix: str) -> tuple[str, str, str]:
    return name, name.removeprefix(prefix), prefix + name
