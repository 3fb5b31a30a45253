"""Where tensors lie in memory, and how: what is kept for an address holds for this dtype, this shape and these strides alone."""

from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, TypeAlias, cast

import torch

Location: TypeAlias = bytes | list[list[Any]]
Reader: TypeAlias = Callable[[list[torch.Tensor]], Location]

FACTS = (torch.Tensor.data_ptr, attrgetter("dtype"), torch.Tensor.size, torch.Tensor.stride)  # the address tells the device, too


def location(tensors: list[torch.Tensor]) -> Location:
    """What is equal for two lists of tensors that lie alike. Every pass asks, so it must be quick. Empty where one cannot be told."""
    return _reader()(tensors)


@cache
def _reader() -> Reader:
    """Compiled code, loaded when it is first needed."""
    try:
        from .._cpu import location_by

        return cast(Reader, location_by(torch.Tensor))
    except (ImportError, AttributeError, ValueError):  # not built; an older torch, of which Python asks
        return _by_attributes


def _by_attributes(tensors: list[torch.Tensor]) -> Location:
    return [[*map(fact, tensors)] for fact in FACTS]
