"""Which weights a run began with: names, shapes, dtypes and digests, for its header and in comparison with it."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..errors import BadInput
from ..ops.staging import pieces
from ..shards import is_sharded, local, whole
from .json_settings import name_of
from .text import Header

Named = list[tuple[str, torch.Tensor]]  # (name or "", tensor), in the order of the header


def parameters_of(optimizer: torch.optim.Optimizer) -> Named:
    """The parameters of all groups."""
    return [
        (name, p)
        for group in optimizer.param_groups
        for name, p in zip(group.get("param_names") or [""] * len(group["params"]), group["params"])
    ]


def table(named: Named) -> list[list]:
    """[name, shape, dtype] of each, as a header has them."""
    return [[name, list(p.shape), name_of(p.dtype)] for name, p in named]


@torch.no_grad()
def digest(tensor: torch.Tensor) -> str:
    """16 hex digits of the SHA-256 of a tensor's elements in row-major order, little-endian; a copy of a piece at a time. One that is
    sharded is gathered, for which all of its processes call this."""
    sha = hashlib.sha256()
    for (part,), _ in pieces([whole(tensor).detach()], 0):
        sha.update(part.contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return sha.hexdigest()[:16]


def digests(tensors: Iterable[torch.Tensor]) -> list[str]:
    """One a tensor, as many tensors at a time as there are threads, but no more pieces in memory than eight; those that are sharded one
    after the other, in the same order on all processes."""
    tensors = list(tensors)
    if any(map(is_sharded, tensors)):
        return list(map(digest, tensors))
    with ThreadPoolExecutor(min(torch.get_num_threads(), 8)) as threads:
        return list(threads.map(digest, tensors))


def combined(digests: Iterable[str]) -> str:
    """One digest of all weights."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def frozen(model: torch.nn.Module, trained: Named) -> dict[str, str]:
    """name -> digest of everything in a model's ``state_dict`` that is not trained."""
    state = model.state_dict()
    own, mine = {id(p) for _, p in trained}, {(p.device, local(p).data_ptr()) for _, p in trained}
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in own}
    others = {
        name: t
        for name, t in state.items()
        if isinstance(t, torch.Tensor) and name not in names and (is_sharded(t) or (t.device, t.data_ptr()) not in mine)
    }
    return dict(zip(others, digests(others.values())))


def check_table(header: Header, named: Named, path: Path) -> None:
    """Refuse parameters of another number, name, shape or dtype than the log's.

    Raises:
        BadInput: the first few that differ.
    """
    logged, given = header["parameters"], table(named)
    if len(logged) != len(given):
        raise BadInput(f"{path} has {len(logged)} parameters, given are {len(given)}: pass those that the run had")
    wrong = [
        f"{what} of parameter {i} ({mine[0] or log[0]!r}) is {log[k]!r} in the log and {mine[k]!r} here"
        for i, (log, mine) in enumerate(zip(logged, given))
        for k, what in enumerate(("the name", "the shape", "the dtype"))
        if log[k] != mine[k]
    ]
    if wrong:
        raise BadInput(f"{path}: {few(wrong)}: pass the parameters that the run had")


def check_base(header: Header, named: Named, path: Path) -> None:
    """Refuse parameters whose values are not those that the run began with.

    Raises:
        BadInput: the first few that differ, and how many.
    """
    own = digests(p for _, p in named)
    other = [name or f"number {i}" for i, ((name, _), row) in enumerate(zip(named, header["parameters"])) if own[i] != row[3]]
    if other:
        which = f"parameter {other[0]!r} has" if len(other) == 1 else f"{len(other)} parameters ({few(list(map(repr, other)))}) have"
        raise BadInput(f"{which} other values than the run of {path} began with: pass its base weights")


def check_frozen(header: Header, model: object, trained: Named, path: Path) -> None:
    """Refuse a model whose other weights are not those that the run began with. Checked only where the log has digests of them and
    ``model`` is a module, which has other weights.

    Raises:
        BadInput: the first few that differ, and how many.
    """
    if not header.get("frozen") or not isinstance(model, torch.nn.Module):
        return
    own = frozen(model, trained)
    other = [repr(name) for name, logged in header["frozen"].items() if own.get(name) != logged]
    if other:
        raise BadInput(
            f"{len(other)} of the weights beside those that the run of {path} trained are others ({few(other)}): pass its base model"
        )


def few(items: list[str]) -> str:
    """The first three, and how many more."""
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
