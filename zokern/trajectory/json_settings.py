"""Settings of an optimizer as a log has them: JSON, one value for all parameter groups or a list of one a group."""

from numbers import Integral, Real
from typing import Any

import torch

from ..optim import Setting
from .text import shown

# Of states, and of 0-dim tensors among the settings.
DTYPES = {name: getattr(torch, name) for name in "float64 float32 bfloat16 float16 int64 int32 int16 int8 uint8".split()}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def to_json(name: str, value: Any) -> Any:
    """A setting of one group as JSON has it.

    Raises:
        TypeError: it is no number, text, dtype or 0-dim tensor, nor a list of these.
    """
    if value is None or type(value) in (float, int, bool) or isinstance(value, str):
        return value
    if isinstance(value, torch.Tensor) and not value.dim():
        return {"tensor": value.item(), "dtype": name_of(value.dtype)}
    if isinstance(value, torch.dtype):
        return name_of(value)
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list | tuple):
        return [to_json(name, item) for item in value]
    raise TypeError(f"{name}={value!r} cannot be logged: pass a number, a string or a 0-dim tensor")


def from_json(name: str, setting: Setting, value: Any) -> Any:
    """A setting of one group as the optimizer had it.

    Raises:
        ValueError: it is of another kind, or out of its range.
    """
    try:
        if setting.kind is torch.dtype:
            made: Any = DTYPES[value]
        elif setting.kind is tuple:
            made = tuple(map(_number, value))
        else:
            made = _number(value) if setting.kind in (float, int) else value
        good = setting.holds(made)
    except (TypeError, ValueError, OverflowError, RuntimeError, KeyError):
        good = False
    if not good:
        raise ValueError(f"{name}={shown(value)}: it is {setting.cure}")
    return made


def _number(value: Any) -> float | torch.Tensor:
    if isinstance(value, dict):
        made = torch.tensor(value["tensor"], dtype=DTYPES[value["dtype"]])
        if len(value) > 2 or made.item() != _number(value["tensor"]):
            raise ValueError
        return made
    if type(value) not in (int, float):
        raise TypeError
    float(value)  # an integer may be too large for a computation
    return value


def merged(values: list[Any]) -> Any:
    """Of one value a group: that value where all groups have the same, else the list."""
    return values[0] if all(value == values[0] for value in values[1:]) else values


def per_group(setting: Setting, value: Any, groups: int) -> list[Any]:
    """The list that ``merged`` was given."""
    each = isinstance(value, list) and (setting.kind is not tuple or bool(value) and isinstance(value[0], list))
    return value if each else [value] * groups
