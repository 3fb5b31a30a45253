"""Where the elements of tensors lie: as lines, one for all, over each other; and which tensors cannot be perturbed by address."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHORTEST = 256  # elements of a line that is worth a kernel's while; shorter ones are gathered

# Parameters that lie in parts on several processes, and do not say which elements these are; and how they show it.
SHARDS: dict[str, Callable[[torch.Tensor], bool]] = {
    "a shard of FullyShardedDataParallel": lambda tensor: getattr(tensor, "_fsdp_flattened", False),
    "a shard of DeepSpeed's ZeRO-3": lambda tensor: hasattr(tensor, "ds_id"),
}


def lines(tensor: torch.Tensor) -> tuple[int, int] | None:
    """(columns, pitch) of a tensor whose elements, in row-major order of its shape, are lines of so many in a row, each ``pitch`` elements
    after the one before: (numel, numel) where it is contiguous. None where they are no such lines, or SHORTEST is longer than they are."""
    if tensor.is_contiguous():
        return max(tensor.numel(), 1), max(tensor.numel(), 1)
    columns, pitch, reach = 1, 0, 0
    for size, stride in reversed([(size, stride) for size, stride in zip(tensor.shape, tensor.stride()) if size > 1]):
        if not pitch and stride == columns:
            columns *= size
        elif not pitch or stride == reach:
            pitch, reach = pitch or stride, stride * size
        else:
            return None
    return (columns, pitch) if columns >= SHORTEST else None


def check(tensor: torch.Tensor, name: str) -> None:
    """Refuse what cannot be perturbed in place by address."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is {tensor.layout}: pass .to_dense()")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: load or initialise it first")
    for what, is_so in SHARDS.items():
        if is_so(tensor):
            raise TypeError(
                f"{name} is {what}: every process's shard would get the same noise, and the model may compute with another copy; shard "
                "it by torch.distributed.fsdp.fully_shard (FSDP2) or parallelize_module, or pass the parameters of the plain, whole model"
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


def check_out(out: Sequence[torch.Tensor], params: Sequence[torch.Tensor], titles: Sequence[str]) -> None:
    """Refuse tensors that cannot take what is made of the parameters, one each, named by ``titles``."""
    if len(out) != len(params):
        raise ValueError(f"out has {len(out)} tensors: pass one for each of the {len(params)} parameters of the layout (layout.params)")
    for i, (tensor, theta, title) in enumerate(zip(out, params, titles)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"out[{i}] is a {type(tensor).__name__}: pass a tensor of the shape of {title}")
        if tensor.shape != theta.shape or tensor.device != theta.device:
            raise ValueError(
                f"out[{i}] has shape {tuple(tensor.shape)}, on {tensor.device}; {title} has {tuple(theta.shape)}, on {theta.device}: "
                f"make it with torch.empty_like({title.split()[0]}, dtype=...)"
            )
        if tensor.dtype != theta.dtype and (theta.dtype != torch.float32 or tensor.dtype not in DTYPES):
            raise TypeError(f"out[{i}] is {tensor.dtype}, {title} is {theta.dtype}: pass {theta.dtype} or a narrower dtype")
        check(tensor, f"out[{i}]")
    _check_apart([*((f"out[{i}]", tensor) for i, tensor in enumerate(out))], [*zip(titles, params)])


def _check_apart(written: list[tuple[str, torch.Tensor]], read: list[tuple[str, torch.Tensor]]) -> None:
    """Refuse tensors to be written that reach into each other's memory, or into that of one to be read."""
    spans: dict[torch.device, list[tuple[int, int, bool, str]]] = defaultdict(list)
    for is_written, tensors in ((True, written), (False, read)):
        for title, tensor in tensors:
            if tensor.numel():
                spans[tensor.device].append((*extent(tensor), is_written, title))
    for of_device in spans.values():
        reach: dict[bool, tuple[int, str]] = {True: (0, ""), False: (0, "")}  # how far those reach that begin earlier
        for begin, end, is_written, title in sorted(of_device):
            for kind in (True, False) if is_written else (True,):
                if begin < reach[kind][0]:
                    one, other = sorted((title, reach[kind][1]), key=lambda t: not t.startswith("out"))
                    raise ValueError(f"{one} and {other} share memory: pass out tensors of their own, or leave out= out to work in place")
            reach[is_written] = max(reach[is_written], (end, title))


def without_aliases(tensors: Sequence[torch.Tensor], titles: Sequence[str]) -> list[int]:
    """The numbers of the tensors that are left when each is dropped whose memory another one covers."""
    storages: dict[tuple[torch.device, int], list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        if tensor.numel():
            storages[tensor.device, tensor.untyped_storage().data_ptr()].append(i)
    dropped: set[int] = set()
    for sharers in storages.values():
        if len(sharers) == 1:
            continue
        kept: list[tuple[int, tuple[int, int]]] = []
        for i in sorted(sharers, key=lambda i: (-tensors[i].numel(), i)):
            begin, end = extent(tensors[i])
            for j, (b, e) in kept:
                if begin >= e or end <= b:
                    continue
                if not (b <= begin and end <= e and tensors[j].numel() * tensors[j].element_size() == e - b):
                    raise ValueError(
                        f"{titles[i]} and {titles[j]} share part of their memory: pass .clone() of one, or the one tensor that covers both"
                    )
                dropped.add(i)
                break
            else:
                kept.append((i, (begin, end)))
    return [i for i in range(len(tensors)) if i not in dropped]


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes from a tensor's first element to its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
