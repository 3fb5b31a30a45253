"""Settings of parameter groups as saved states hold them: of what torch.distributed.checkpoint takes, whatever the run has come to.

It wants a group of a fresh optimizer to have entries of the kinds that were saved, and takes numbers, texts and tensors. So what is a dict,
a tuple or a dtype, or None at first, is one text; and counts are tensors from the beginning on.
"""

import json
from typing import Any

import torch

from .settings import Setting, Settings

MARK = "zokern:"  # begins such a text
KINDS = (dict, tuple, torch.dtype, torch.Tensor)  # of settings that are
COUNTS = ("skipped", "dropped")
_PLAIN = (bool, int, str, type(None))


def packed(group: Settings, known: dict[str, Setting], device: torch.device) -> Settings:
    """A group as it is saved."""
    made = dict(group)
    for name in group.keys() & known.keys():
        if known[name].kind in KINDS:
            made[name] = MARK + json.dumps(_to_json(group[name]))
        elif name in COUNTS:
            count = torch.as_tensor(group[name], dtype=torch.int64, device=device)
            made[name] = count.reshape(1)  # not a number: by tensors with a dimension torch finds out which device it loads to
    return made


def unpacked(group: Settings) -> Settings:
    """A saved group as an optimizer has it; one that an earlier zokern saved is as it is.

    Raises:
        ValueError: a text was changed.
    """
    made = dict(group)
    for name, value in group.items():
        if name in COUNTS and isinstance(value, torch.Tensor):
            made[name] = value.reshape(())
        if isinstance(value, str) and value.startswith(MARK):
            try:
                made[name] = _from_json(json.loads(value.removeprefix(MARK)))
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"{name}={value[:60]!r} is no setting that was saved ({type(error).__name__})") from None
    return made


def _to_json(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, torch.dtype):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Tensor):
        values = [_to_json(x) for x in value.detach().reshape(-1).tolist()]
        return {"tensor": values, "dtype": _to_json(value.dtype), "shape": list(value.shape)}
    if isinstance(value, dict):
        return {"dict": [[name, _to_json(held)] for name, held in value.items()]}
    return [_to_json(held) for held in value]


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_from_json, value))
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float.fromhex(value["float"])
    if "torch" in value:
        return _dtype(value["torch"])
    if "tensor" in value:
        flat = torch.tensor([_from_json(x) for x in value["tensor"]], dtype=_from_json(value["dtype"]))
        return flat.reshape(value["shape"])
    return {name: _from_json(held) for name, held in value["dict"]}


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch.{name} is no dtype")
    return dtype
