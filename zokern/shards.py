"""Tensors that lie in parts on several processes, as torch's ``DTensor``: what this process holds of one, and which elements these are.

Sharded models of ``fully_shard`` (FSDP2), of ``parallelize_module`` (tensor parallelism) and of both have such parameters.
"""

import math
import sys
import weakref
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch

KNOWN = ("Replicate", "Shard", "_StridedShard")  # placements; _StridedShard is of a shard that is sharded again


class Lines(NamedTuple):
    """Elements of a tensor, by their number in row-major order of its shape: runs of ``columns``, each ``step`` after the one before, the
    first of which begins at ``offset``."""

    offset: int
    columns: int
    step: int


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a ``DTensor``, one that every process holds whole included."""
    module = sys.modules.get("torch.distributed.tensor")  # which is slow to import, and there where anybody has made one
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor: the tensor itself where that is no ``DTensor``. The same memory, outside autograd."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        part: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All elements of a tensor, gathered from the processes that hold them, all of which call this."""
    if not is_sharded(tensor):
        return tensor
    full: torch.Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return full


def like(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A tensor of the shape of another, whole or sharded, as that one lies: what this process holds of it, or all of it."""
    if not is_sharded(model):
        return whole(tensor)
    it: Any = model
    if is_sharded(tensor) and (tensor.device_mesh, tensor.placements) == (it.device_mesh, it.placements):  # type: ignore[attr-defined]
        return tensor
    mine = whole(tensor)
    for d, places in enumerate(_places(model)):
        mine = mine.index_select(d, places.to(mine.device))
    return as_part(mine.reshape(local(model).shape), model)


def as_part(part: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor of the shape of ``model``, as a tensor that lies as that one does."""
    if not is_sharded(model):
        return part
    it: Any = model
    made: torch.Tensor = type(it).from_local(part, it.device_mesh, it.placements, run_check=False, shape=it.shape, stride=it.stride())
    return made


def total(number: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a number that each process has found in its elements of ``tensor``, each element counted once. All of them call this."""
    if not is_sharded(tensor):
        return number
    from torch.distributed.tensor import DTensor, Partial, Replicate

    it: Any = tensor
    parts = [Replicate() if type(placement).__name__ == "Replicate" else Partial() for placement in it.placements]
    return DTensor.from_local(number.to(it.device), it.device_mesh, parts, run_check=False).full_tensor().to(number.device)


def lines_of(tensor: torch.Tensor, title: str) -> Lines:
    """Which elements of a ``DTensor`` this process holds, in row-major order of the shape of what it holds.

    Raises:
        TypeError, ValueError: a placement that says nothing of elements, or lines that are not equally spaced, with the cure.
    """
    it: Any = tensor
    placed = f"{title} is a DTensor of shape {tuple(it.shape)} placed as {tuple(it.placements)}"
    if any(type(placement).__name__ not in KNOWN for placement in it.placements):
        raise TypeError(f"{placed}, which does not say which elements each process holds: redistribute it to Shard(dim) or Replicate()")
    places, held = _places(tensor), local(tensor)
    sizes = tuple(map(len, places))
    if held.numel() != math.prod(sizes) or (held.numel() and tuple(held.shape) != sizes):
        raise ValueError(
            f"{placed}, of which this process should hold {sizes}, and holds {tuple(held.shape)}: make it with distribute_tensor, "
            "fully_shard or parallelize_module"
        )
    if not held.numel():
        return Lines(0, 1, 1)
    cut = max((d for d in range(it.dim()) if sizes[d] != it.shape[d]), default=-1)
    if cut < 0:
        return Lines(0, held.numel(), held.numel())
    inner, along = math.prod(it.shape[cut + 1 :]), places[cut]
    begins = along[torch.cat([torch.tensor([True]), along.diff() != 1])] * inner  # of the runs of dimension ``cut``
    for d in reversed(range(cut)):
        begins = (places[d].unsqueeze(1) * math.prod(it.shape[d + 1 :]) + begins).flatten()
    columns, steps = held.numel() // len(begins), begins.diff()
    even = len(along) * inner * math.prod(sizes[:cut]) == columns * len(begins) and (steps == steps[:1]).all()
    if not even or not _runs_are_equal(along):
        raise ValueError(
            f"{placed}, and the runs of elements that a process holds are not all as long and as far apart: shard one dimension, or "
            "dimension 0 and one other, by numbers of processes that divide them"
        )
    return Lines(int(begins[0]), columns, int(steps[0]) if len(steps) else columns)


def _runs_are_equal(along: torch.Tensor) -> bool:
    """Whether ascending numbers are runs of one length."""
    ends = torch.cat([(along.diff() != 1).nonzero().flatten() + 1, torch.tensor([len(along)])])
    return bool((ends.diff() == ends[0]).all())


def _places(tensor: Any) -> list[torch.Tensor]:
    """For each dimension of a ``DTensor`` the places along it of what this process holds, ascending."""
    places = [torch.arange(size) for size in tensor.shape]
    for size, here, placement in zip(tensor.device_mesh.mesh.shape, tensor.device_mesh.get_coordinate(), tensor.placements):
        if type(placement).__name__ != "Replicate":
            whole, dim = places[placement.dim], placement.dim
            strided = whole.chunk(getattr(placement, "split_factor", 1))
            places[dim] = torch.cat([(*part.chunk(size), *[part[:0]] * size)[here] for part in strided])
    return places


def partners(tensors: Iterable[torch.Tensor]) -> set[int]:
    """The ranks, this one among them, among which tensors are cut: a forward pass takes all of them at once."""
    ranks: set[int] = set()
    for mesh, placements in {(t.device_mesh, t.placements) for t in tensors if is_sharded(t)}:  # type: ignore[attr-defined]
        here = mesh.get_coordinate()
        across = [
            range(size) if type(placement).__name__ != "Replicate" else [i] for size, placement, i in zip(mesh.mesh.shape, placements, here)
        ]
        ranks |= {int(mesh.mesh[place]) for place in product(*across)}
    return ranks


def processes(tensors: Iterable[torch.Tensor]) -> set[int]:
    """The ranks of all processes that hold a part of some tensors, or a copy of one."""
    meshes = {t.device_mesh for t in tensors if is_sharded(t)}  # type: ignore[attr-defined]
    return {int(rank) for mesh in meshes for rank in mesh.mesh.flatten()}


class Gathered:
    """The modules of ``fully_shard`` that compute with gathered copies of parameters, of which some stay after a forward pass.

    Args:
        params: the sharded parameters.
        titles: of each, for errors.

    Raises:
        ValueError: one of them is such a copy.
    """

    def __init__(self, params: Sequence[torch.Tensor], titles: Sequence[str]) -> None:
        self.modules: list[weakref.ref[Any]] = []
        mine, title_of = {id(p) for p in params}, {id(p): title for p, title in zip(params, titles)}
        for module in _fully_sharded():
            before = {id(p) for p in module.parameters(recurse=True)}
            module.reshard()
            now = {id(p) for p in module.parameters(recurse=True)}
            for copy in (before - now) & mine:
                raise ValueError(
                    f"{title_of[copy]} is a copy that fully_shard gathered for a forward pass and that is gone with the next one: make the "
                    "optimizer of model.parameters() before the first forward pass, or after module.reshard() of every FSDPModule"
                )
            if now & mine:
                self.modules.append(weakref.ref(module))
        _check_tied([ref() for ref in self.modules], title_of)

    def drop(self) -> None:
        """Drop the copies, after the parameters have changed."""
        for module in self.modules:
            if (alive := module()) is not None:
                alive.reshard()


def _check_tied(modules: Iterable[Any], title_of: dict[int, str]) -> None:
    """Refuse a parameter that ``fully_shard`` gathers for two modules, from memory of its own for each where shards are padded."""
    seen: set[int] = set()
    for state in {id(state): state for state in (module._get_fsdp_state() for module in modules)}.values():  # which several may share
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # of older torch
        for managed in [managed for group in groups if group for managed in group.fsdp_params]:
            p: Any = getattr(managed._module_info.module, managed._module_info.param_name)
            uneven = any(
                type(placement).__name__ != "Replicate" and p.shape[placement.dim] % size
                for placement, size in zip(p.placements, p.device_mesh.mesh.shape)
            )
            if id(p) in seen and uneven:
                raise ValueError(
                    f"{title_of.get(id(p), 'a parameter')} was tied to another after fully_shard, which keeps two copies of it, since "
                    f"{tuple(p.shape)} cannot be cut evenly: tie weights before fully_shard, or not (tie_word_embeddings=False)"
                )
            seen.add(id(p))


def _fully_sharded() -> list[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not hasattr(fsdp, "FSDPModule"):
        return []
    from torch.distributed._composable_state import _module_state_mapping

    return [module for module in list(_module_state_mapping) if isinstance(module, fsdp.FSDPModule)]
