"""What a run is before its first step: optimizer, settings, parameters and their values."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real

import torch

from ..errors import BadInput
from ..noise import SPEC_VERSION
from ..ops.staging import pieces
from ..optim import ZerothOrder, logged_as, optimizers
from ..version import __version__
from .text import FORMAT

# What decides which passes a step makes: a subclass that has its own is another optimizer.
DECIDING = ("repeat", "apply", "_estimate", "_update", "_ask", "_measure", "_key", "_setting", "_decay")
OF_EACH = ("block", "keep")  # one for each parameter of a group
JSON = {float, int, bool, type(None)}
STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # dtypes of a state
NUMBERS = {  # dtypes of 0-dim tensors among the settings
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    )
}


def header_of(optimizer: ZerothOrder, notes, model=None) -> dict:
    """The header of a run that begins now. Reads every parameter once, piece by piece, and what else a model has."""
    return {
        "zokern": "trajectory",
        "format": FORMAT,
        "noise_spec": SPEC_VERSION,
        "version": __version__,
        "optimizer": class_of(optimizer).__name__,
        "groups": groups_of(optimizer),
        "parameters": [[*row, own] for row, own in zip(table(listed(optimizer)), digests(p for _, p in listed(optimizer)))],
        "fingerprint": optimizer.layout.fingerprint(),
        "frozen": {} if model is None else frozen(model, [p for _, p in listed(optimizer)]),
        "notes": notes,
    }


def class_of(optimizer) -> type:
    """The registered class that an optimizer is, or is a subclass of that does not change its steps.

    Raises:
        TypeError: no such class, or one whose steps cannot be replayed.
    """
    cls = type(optimizer)
    known = next((c for c in cls.__mro__ if logged_as(c.__name__) is c), None)
    if known is None:
        what = "is not registered (zokern.optim.register)"
        if not getattr(cls, "replayable", True):
            what = "declares that its steps are not decided by its measurements alone (replayable = False)"
        kinds = [c.__name__ for c in optimizers().values() if c.replayable]
        raise TypeError(f"optimizer is a {cls.__name__}, which {what}: pass one of {', '.join(kinds)}")
    own = [name for name in DECIDING if getattr(cls, name) is not getattr(known, name)]
    if own:
        raise TypeError(
            f"optimizer is a {cls.__name__}, a {known.__name__} with a {own[0]} of its own, which no replay knows: pass a {known.__name__}"
        )
    return known


def listed(optimizer) -> list[tuple[str, torch.Tensor]]:
    """[(name or "", parameter)] of all groups."""
    return [
        (name, p)
        for group in optimizer.param_groups
        for name, p in zip(group.get("param_names") or [""] * len(group["params"]), group["params"])
    ]


def table(named) -> list[list]:
    """[name, shape, dtype] of (name, tensor) pairs, as a header has them."""
    return [[name, list(p.shape), str(p.dtype).removeprefix("torch.")] for name, p in named]


@torch.no_grad()
def digest(tensor: torch.Tensor) -> str:
    """16 hex digits of the SHA-256 of a tensor's elements in row-major order, little-endian; a copy of a piece at a time."""
    sha = hashlib.sha256()
    for (part,), _ in pieces([tensor.detach()], 0):
        sha.update(part.contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return sha.hexdigest()[:16]


def digests(tensors) -> list[str]:
    """One a tensor, as many tensors at a time as there are threads, but no more pieces in memory than eight."""
    with ThreadPoolExecutor(min(torch.get_num_threads(), 8)) as threads:
        return list(threads.map(digest, tensors))


def combined(digests) -> str:
    """One digest of all weights."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def frozen(model, trained) -> dict[str, str]:
    """name -> digest of what a module has beside the parameters that are trained, as its ``state_dict`` names it."""
    mine = {(p.device, p.data_ptr()) for p in trained}
    others = {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor) and (t.device, t.data_ptr()) not in mine}
    return dict(zip(others, digests(others.values())))


def groups_of(optimizer) -> list[dict]:
    """The settings of each group, as a header has them: "params" is how many parameters there are."""
    settings = [{name: plain(name, group[name]) for name in names(optimizer)} for group in optimizer.param_groups]
    each = [{name: list(group[name]) for name in OF_EACH if name in group} for group in optimizer.param_groups]
    return [{"params": len(group["params"]), **s, **e} for group, s, e in zip(optimizer.param_groups, settings, each)]


def names(optimizer) -> list[str]:
    """Of the settings: what the constructor takes and the groups hold. torch and its schedulers add others to them."""
    return [name for name in class_of(optimizer).declared() if name in optimizer.param_groups[0]]


def plain(name, value):
    """A setting as JSON has it."""
    if type(value) in JSON or isinstance(value, str):
        return value
    if isinstance(value, torch.Tensor) and not value.dim():
        return {"tensor": value.item(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(name, item) for item in value]
    raise TypeError(f"{name}={value!r} cannot be logged: pass a number, a string or a 0-dim tensor")


def restored(cls, name, value):
    """A setting as the optimizer had it, from JSON.

    Raises:
        TypeError, ValueError, OverflowError, RuntimeError, KeyError: it is of another kind.
    """
    if type(value) is float:
        return value
    kind = cls.declared()[name].kind
    if kind is torch.dtype:
        return STATES[value]
    if kind is tuple:
        return tuple(map(_number, value))
    return _number(value) if kind in (float, int) else value


def _number(value):
    if isinstance(value, dict):
        number, dtype = value["tensor"], NUMBERS[value["dtype"]]
        made = torch.tensor(number, dtype=dtype)
        if len(value) > 2 or made.item() != _number(number):
            raise ValueError
        return made
    if type(value) not in (int, float):
        raise TypeError
    float(value)  # an integer may be too large for a computation
    return value


def settings_of(header: dict) -> dict:
    """name -> value at step 0, as step lines have it."""
    first, *_ = groups = header["groups"]
    return {name: collapsed([group[name] for group in groups]) for name in first if name not in ("params", *OF_EACH)}


def collapsed(values: list):
    """One value where all groups agree, else a list of one a group."""
    return values[0] if all(value == values[0] for value in values[1:]) else values


def expanded(value, like, groups: int) -> list:
    """What ``collapsed`` was given. ``like``: the same setting of one group."""
    many = isinstance(value, list) and (not isinstance(like, list) or bool(value) and isinstance(value[0], list))
    return value if many else [value] * groups


def same_run(header: dict, optimizer, now: dict, path) -> None:
    """Refuse an optimizer that is not the one of the log.

    Args:
        now: the settings as the log's last line leaves them, by name.
    Raises:
        BadInput: what differs.
    """

    def differ(what, theirs, ours):
        raise BadInput(f"{path} is the log of another run: {what} is {theirs!r} there and {ours!r} here: pass the optimizer of that run")

    mine = class_of(optimizer).__name__
    if mine != header["optimizer"]:
        differ("the optimizer", header["optimizer"], mine)
    check_table([row[:3] for row in header["parameters"]], table(listed(optimizer)), path)
    groups = groups_of(optimizer)
    if (theirs := [g["params"] for g in header["groups"]]) != (ours := [g["params"] for g in groups]):
        differ("the number of parameters a group", theirs, ours)
    for name, setting in class_of(optimizer).declared().items():
        if setting.shared and name in names(optimizer) and now[name] != (ours := collapsed([g[name] for g in groups])):
            differ(name, now[name], ours)
    for name in OF_EACH:
        if [g.get(name) for g in header["groups"]] != [g.get(name) for g in groups]:
            raise BadInput(f"{path} is the log of another run: {name!r} of the parameters differs: pass the optimizer of that run")
    if header["fingerprint"] != (ours := optimizer.layout.fingerprint()):
        differ("the layout's fingerprint", header["fingerprint"], ours)


def check_table(theirs, ours, path) -> None:
    """Refuse parameters of another number, name, shape or dtype than the log's.

    Raises:
        BadInput: the first few that differ.
    """
    if len(theirs) != len(ours):
        raise BadInput(f"{path} has {len(theirs)} parameters, given are {len(ours)}: pass those that the run had")
    wrong = [
        f"{what} of parameter {i} ({mine[0] or log[0]!r}) is {log[k]!r} in the log and {mine[k]!r} here"
        for i, (log, mine) in enumerate(zip(theirs, ours))
        for k, what in enumerate(("the name", "the shape", "the dtype"))
        if log[k] != mine[k]
    ]
    if wrong:
        raise BadInput(f"{path}: {few(wrong)}: pass the parameters that the run had")


def check_base(header, named, path) -> None:
    """Refuse parameters whose values are not those that the run began with. ``named``: in the header's order.

    Raises:
        BadInput: the first few that differ, and how many.
    """
    own = digests(p for _, p in named)
    other = [name or f"number {i}" for i, ((name, _), row) in enumerate(zip(named, header["parameters"])) if own[i] != row[3]]
    if other:
        which = f"parameter {other[0]!r} has" if len(other) == 1 else f"{len(other)} parameters ({few(list(map(repr, other)))}) have"
        raise BadInput(f"{which} other values than the run of {path} began with: pass its base weights")


def check_frozen(header, params, named, path) -> None:
    """Refuse a model whose other weights are not those that the run began with; where none is given, or was then, nothing is known.

    Args:
        params: what the caller gave; only a module has other weights.
        named: what is trained.
    Raises:
        BadInput: the first few that differ, and how many.
    """
    if not header.get("frozen") or not isinstance(params, torch.nn.Module):
        return
    own = frozen(params, [p for _, p in named])
    other = [repr(name) for name, held in header["frozen"].items() if own.get(name) != held]
    if other:
        raise BadInput(
            f"{len(other)} of the weights beside those that the run of {path} trained are others ({few(other)}): pass its base model"
        )


def few(items: list[str]) -> str:
    """The first three, and how many more."""
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
