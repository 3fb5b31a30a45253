"""Which element indices each parameter owns."""

import copy
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .kernels.location import Location, location
from .kernels.tables import Table
from .noise.spec import ALIGNMENT, SPEC_VERSION

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Parameters that lie in parts on several processes, and how they show it.
SHARDS: dict[str, Callable[[torch.Tensor], bool]] = {
    "a shard of FullyShardedDataParallel": lambda tensor: getattr(tensor, "_fsdp_flattened", False),
    "a DTensor, a shard of fully_shard (FSDP2) or of tensor parallelism": lambda tensor: type(tensor).__name__ == "DTensor",
    "a shard of DeepSpeed's ZeRO-3": lambda tensor: hasattr(tensor, "ds_id"),
}

Params: TypeAlias = Iterable[torch.Tensor | tuple[str, torch.Tensor] | dict[str, Any]]
Named: TypeAlias = tuple[str, torch.Tensor, int]  # name or "", tensor, group of params


class Layout:
    """Gives every element of the parameters its index, by which its noise is made (docs/noise_spec.md).

    Tensors take their indices in the order given, in row-major order of their logical shape, each starting at a multiple
    of 4096. Memory that two parameters share is counted once, under the parameter that covers it.

    Args:
        params: tensors, (name, tensor) pairs, or groups as ``torch.optim`` takes them (dicts with "params").
        keep: None, or for each tensor of params, in the order in which they are listed, the share in (0, 1] of its elements that the
            noise reaches; the others have z = 0. Which they are is drawn for each key. Default None: all.
        blocks: None, or for each tensor of params the number of its block, so that coefficients may differ between blocks.
    Attributes:
        params, names, first, group, keep, block: lists of one entry a parameter: tensor, name or "", first index, index of its group,
            share, number of its block. Where there are blocks, each pair (group of params, block) is a group.
        coefficient_groups: [(group of params, block)]: what shares one value of each coefficient.
        location: of the parameters in memory, as ``tables`` last saw it; None before.
        state: what ``ops.update_`` last saw beside the parameters; None before.
    Raises:
        TypeError, ValueError: a parameter that cannot be perturbed, by number and name, with the cure.
    """

    def __init__(self, params: Params, keep: Iterable[float] | None = None, blocks: Iterable[int] | None = None) -> None:
        named = list(_named(params))
        for i, (name, tensor, _) in enumerate(named):
            _check(tensor, _title(i, name))
        shares = [1.0] * len(named) if keep is None else _ratios(keep, [_title(i, name) for i, (name, _, _) in enumerate(named)])
        kept = _without_aliases(named)
        self.names = [named[i][0] for i in kept]
        self.params = [named[i][1] for i in kept]
        block = [0] * len(named) if blocks is None else list(blocks)
        if len(block) != len(named):
            raise ValueError(f"blocks has {len(block)} numbers for {len(named)} parameters: pass one for each")
        listed = [(group, b) for (_, _, group), b in zip(named, block)]
        last = max((group for group, _ in listed), default=0)
        self.coefficient_groups = [(group, 0) for group in range(last + 1)] if blocks is None else sorted(set(listed))
        self.group = [self.coefficient_groups.index(listed[i]) for i in kept]
        self.block = [block[i] for i in kept]
        self.keep = [shares[i] for i in kept]
        self.shapes = [tensor.shape for tensor in self.params]
        self.first: list[int] = []
        end = 0
        for tensor in self.params:
            self.first.append(end)
            end += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
        if not kept:
            raise ValueError("params is empty: pass at least one parameter, such as model.parameters()")
        self.location: Location | None = None
        self.state: Any = None
        self._coefficient_groups_of: dict[tuple[int, torch.device], torch.Tensor] = {}

    def fingerprint(self) -> str:
        """Names the map from elements to noise (specification, shapes, order, shares), whatever the dtypes and devices."""
        shapes: list[tuple[int, ...]] = [(first, *shape) for first, shape in zip(self.first, self.shapes)]
        sparse = (self.keep,) if min(self.keep) < 1 else ()
        return hashlib.sha256(repr((SPEC_VERSION, shapes, *sparse)).encode()).hexdigest()[:16]

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks, ascending."""
        return sorted(set(self.block))

    def coefficient_groups_of(self, block: int, device: torch.device) -> torch.Tensor:
        """Which groups are of a block, as bool [groups] on a device that does not wait for it."""
        if (block, device) not in self._coefficient_groups_of:
            mine = torch.tensor([b == block for _, b in self.coefficient_groups], pin_memory=device.type == "cuda")
            self._coefficient_groups_of[block, device] = mine.to(device, non_blocking=True)
        return self._coefficient_groups_of[block, device]

    def part(self, block: int) -> "Layout":
        """The layout of one block alone: the same indices, and so the same noise."""
        part, mine = copy.copy(self), [i for i, b in enumerate(self.block) if b == block]
        for name in ("params", "names", "shapes", "first", "group", "keep", "block"):
            setattr(part, name, [getattr(self, name)[i] for i in mine])
        part.location = part.state = None
        return part

    def over(self, tensors: Iterable[torch.Tensor]) -> "Layout":
        """The same indices for other tensors of the same shapes, one a parameter."""
        other = copy.copy(self)
        other.params, other.location, other.state = list(tensors), None, None
        return other

    def tables(self) -> tuple[list[Table], list[int]]:
        """-> (tables of the contiguous parameters, indices in ``params`` of the others). Remade when a parameter moved."""
        seen = location(self.params)
        if not seen or seen != self.location:
            self._tables, self._strided = self._lay_out()
            self.location, self.state = seen, None
        return self._tables, self._strided

    def _lay_out(self) -> tuple[list[Table], list[int]]:
        members: dict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
        strided = []
        for i, tensor in enumerate(self.params):
            title = _title(i, self.names[i])
            _check(tensor, title)
            if tensor.shape != self.shapes[i]:
                raise ValueError(
                    f"{title} has shape {tuple(tensor.shape)} now, it had {tuple(self.shapes[i])}: make a new optimizer for it"
                )
            if tensor.is_contiguous():
                members[tensor.dtype, tensor.device].append(i)
            else:
                strided.append(i)
        for i in set(range(len(self.params))).difference(_without_aliases([*zip(self.names, self.params, self.group)])):
            raise ValueError(f"{_title(i, self.names[i])} lies in the memory of another parameter now: make a new optimizer")
        groups, row = len(self.coefficient_groups), lambda i: self._row(i, self.params[i], self.first[i])  # noqa: E731
        return [Table(*kind, groups, torch.tensor([*map(row, of)]), tuple(of)) for kind, of in members.items()], strided

    def table_of(self, i: int, tensor: torch.Tensor, first: int) -> Table:
        """The table of one contiguous tensor, whose elements are those of parameter i from index ``first`` on."""
        return Table(tensor.dtype, tensor.device, len(self.coefficient_groups), torch.tensor([self._row(i, tensor, first)]))

    def _row(self, i: int, tensor: torch.Tensor, first: int) -> tuple[int, ...]:
        return tensor.data_ptr(), tensor.numel(), first, self.group[i], keep_threshold(self.keep[i])


def keep_threshold(share: float) -> int:
    """An element keeps its noise where its mask word is at most this."""
    return int(share * 2**32) - 1


def _title(i: int, name: str) -> str:
    return f"theta[{i}]" + (f" ({name!r})" if name else "")


def _ratios(keep: Iterable[float], titles: Sequence[str]) -> list[float]:
    ratios = list(keep)
    if len(ratios) != len(titles):
        raise ValueError(f"keep has {len(ratios)} ratios for {len(titles)} parameters: pass one for each, 1.0 where all is kept")
    for i, (ratio, title) in enumerate(zip(ratios, titles)):
        if not isinstance(ratio, Real):
            raise TypeError(f"keep[{i}] of {title} is {ratio!r}: pass a number in (0, 1]")
        if not (0 < ratio <= 1 and keep_threshold(ratio) >= 0):
            raise ValueError(f"keep[{i}] of {title} is {ratio!r}: pass a number in (0, 1], of at least 2**-32")
    return [float(ratio) for ratio in ratios]


def _named(params: Params) -> Iterator[Named]:
    if isinstance(params, torch.Tensor):
        raise TypeError("params is one tensor: pass a list of tensors, such as [theta]")
    for group, entry in enumerate(params):
        if isinstance(entry, dict):
            inside = entry["params"]
            inside = [inside] if isinstance(inside, torch.Tensor) else list(inside)
            names = entry.get("param_names") or [""] * len(inside)
            yield from ((name, *_pair(tensor)[1:], group) for name, tensor in zip(names, inside))
        else:
            yield *_pair(entry), 0


def _pair(entry: Any) -> tuple[str, torch.Tensor]:
    name, tensor = entry if isinstance(entry, tuple) else ("", entry)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"params holds a {type(tensor).__name__}: pass tensors, (name, tensor) pairs or groups of them")
    return name, tensor


def _check(tensor: torch.Tensor, name: str) -> None:
    """Refuse what cannot be perturbed in place by address."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is {tensor.layout}: pass .to_dense()")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: load or initialise it first")
    for what, is_so in SHARDS.items():
        if is_so(tensor):
            raise TypeError(
                f"{name} is {what}: every process's shard would get the same noise, and the model may compute with another copy; pass the "
                "parameters of the plain, whole model (a step needs the memory of inference)"
            )
    if is_traceable_wrapper_subclass(tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, which wraps other tensors: pass the plain tensor inside it")
    if tensor.dtype not in DTYPES:
        cure = "pass .float()" if tensor.dtype.is_floating_point else "leave it out; only float32, bfloat16, float16 can be perturbed"
        raise TypeError(f"{name} is {tensor.dtype}: {cure}")
    check_memory(tensor, name)


def check_memory(tensor: torch.Tensor, name: str) -> None:
    """Refuse elements that share memory, or have none."""
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride())):
        raise ValueError(f"{name} is expanded (stride 0): pass .contiguous()")
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride()) if size > 1):
        if stride <= reach:
            raise ValueError(f"{name} overlaps itself (shape {tuple(tensor.shape)}, strides {tensor.stride()}): pass .contiguous()")
        reach += stride * (size - 1)
    end = (tensor.storage_offset() + reach + 1) * tensor.element_size() if tensor.numel() else 0
    if tensor.untyped_storage().nbytes() < end:
        raise ValueError(
            f"{name} reaches to byte {end} of a storage of {tensor.untyped_storage().nbytes()}: its memory was taken away (resize_), by a "
            "wrapper that shards or offloads it, perhaps; pass the parameters of the plain, whole model"
        )


def _without_aliases(named: Sequence[Named]) -> list[int]:
    """The indices of the parameters that are left when each is dropped whose memory another one covers."""
    storages: dict[tuple[torch.device, int], list[int]] = defaultdict(list)
    for i, (_, tensor, _) in enumerate(named):
        if tensor.numel():
            storages[tensor.device, tensor.untyped_storage().data_ptr()].append(i)
    dropped: set[int] = set()
    for sharers in storages.values():
        if len(sharers) == 1:
            continue
        kept: list[tuple[int, tuple[int, int]]] = []
        for i in sorted(sharers, key=lambda i: (-named[i][1].numel(), i)):
            begin, end = _span(named[i][1])
            for j, (b, e) in kept:
                if begin >= e or end <= b:
                    continue
                other = named[j][1]
                if not (b <= begin and end <= e and other.numel() * other.element_size() == e - b):
                    raise ValueError(
                        f"theta[{i}] ({named[i][0]!r}) and theta[{j}] ({named[j][0]!r}) share part of their memory: pass .clone() of one, "
                        "or the one tensor that covers both"
                    )
                dropped.add(i)
                break
            else:
                kept.append((i, (begin, end)))
    return [i for i in range(len(named)) if i not in dropped]


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes from a tensor's first element to its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
