"""Reads of memory that nothing should read."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LIKE = re.compile(r"_like$|::new_")  # operations that take a tensor's shape and dtype alone


class RefuseReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses every operation on tensors that lie where the given ones lie now, be they these, views of them or other parameters.

    It sees the operations that torch ends up with, below Python: unlike a mode that sees functions, it does not change which ones these are
    (``nn.MultiheadAttention`` has a fast path, which it leaves where such a mode is on), nor how they round.

    Args:
        tensors: (tensor, what an error calls it).
        unless: says whether reads are right for now.
    """

    def __init__(self, tensors: Iterable[tuple[torch.Tensor, str]], unless: Callable[[], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unless = unless
        self.places = sorted((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), title) for p, title in tensors if p.numel())
        self.begins = [begin for begin, _, _ in self.places]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.unless() and not LIKE.search(func._schema.name):
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor) and tensor.numel():
                    self._check(tensor, func)
        return func(*args, **(kwargs or {}))

    def _check(self, tensor: torch.Tensor, func: Any) -> None:
        try:
            address = tensor.data_ptr()
        except RuntimeError:  # of a tensor that has none
            return
        at = bisect_right(self.begins, address) - 1
        if at >= 0 and address < self.places[at][1]:
            raise RuntimeError(
                f"{self.places[at][2]} is read (by {func}) while that does not run, and so without its perturbation: pass "
                "zokern.Streamed(model, parts=[...]) with the module that reads it among the parts, or perturbation=zokern.Copied()"
            )
