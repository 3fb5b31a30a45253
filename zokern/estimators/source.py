"""Where theta lies while a model computes elsewhere: in host memory, or in a file."""

from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from ..layout import Layout
from ..mapped import MappedWeights

HOST = "host"
Source: TypeAlias = MappedWeights | str | Path | None


def bring(model: nn.Module, source: Source) -> MappedWeights | None:
    """Make a model's parameters, which stay the same objects unless they are on the meta device, tensors of a file or of host memory.

    Returns:
        The file; None where it is host memory, which is pinned where there is a GPU.
    """
    if source is None:
        return None
    if source == HOST:
        _bring_to_host(model)
        return None
    if not isinstance(source, MappedWeights | str | Path):
        raise TypeError(f'source={source!r}: pass a zokern.mapped.MappedWeights, the path of a safetensors file or folder, or "{HOST}"')
    weights = source if isinstance(source, MappedWeights) else MappedWeights(source)
    try:
        weights.attach(model)
    except BaseException:
        if weights is not source:
            weights.close()
        raise
    return weights


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model computes: where its parameters are, those aside that have no memory.

    Raises:
        ValueError: they are on several devices.
    """
    devices = {p.device for p in model.parameters() if not p.is_meta}
    if len(devices) > 1:
        raise ValueError(f"the model's parameters are on {', '.join(sorted(map(str, devices)))}: pass device=, where it is to compute")
    return devices.pop() if devices else None


def _bring_to_host(model: nn.Module) -> None:
    params = dict(model.named_parameters())
    if meta := [name for name, p in params.items() if p.is_meta]:
        raise ValueError(f'source="{HOST}": {meta[0]!r} is on the meta device and has no values: load the model, or pass source=PATH')
    if len(Layout(params.items()).params) < len(params):
        raise ValueError(f'source="{HOST}": parameters of the model share memory, which they would not in another place: tie them as one')
    for p in params.values():
        there = p.detach().to("cpu")
        p.data = there.pin_memory() if torch.cuda.is_available() else there
