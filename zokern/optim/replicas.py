"""Processes that are to take the same steps: whether they do, found in the first step."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.utils._pytree import tree_map_only

from ..noise import SPEC_VERSION
from ..shards import is_sharded, partners
from ..version import __version__
from .contract import ClosureOptimizer
from .watch import warn

if TYPE_CHECKING:
    from .base import ZerothOrder

PATIENCE = 100  # steps at which a process looks for the notes of others
POLL = 0.01  # seconds between two looks of one that waits
LATE = 10.0  # seconds after which one that has the model whole is not merely late
IMPORTED = time.time()
_made: Counter[str] = Counter()  # optimizers of each kind that have measured in this process


class Replicas:
    """Notices that processes which are to train the same parameters do not.

    Each leaves a note of its optimizer before it measures for the first time, and of what it has measured then, in the store of
    torch.distributed's process group. Of a model that is sharded, all processes that hold it compare their notes, and where they differ,
    all of them raise, before anything could wait for another. Of whole models nobody waits for anybody, since a process may train alone:
    it warns when it finds another note of process 0, or, as process 0, of any other.
    """

    def __init__(self) -> None:
        self._mine: dict[str, Any] | None = None
        self._left = PATIENCE
        self._group: _Group | None = None
        self._whole = ""  # where notes are of processes that have these parameters whole

    def begin(self, optimizer: "ZerothOrder") -> None:
        """Before a measurement.

        Raises:
            RuntimeError: this process and others hold shards of one model, and their optimizers differ; or it holds a whole model, and
                others shards of it, of which it should have one.
        """
        if not self._left or not _several():
            return
        if not self._whole:
            whole = f"whole/{optimizer.layout.fingerprint()}"
            if optimizer.layout.sharded:
                self._group = _Group(optimizer.layout.params, whole)
                self._group.compare("begin", described(optimizer))
            else:
                _made[whole] += 1
                leave(f"{whole}/{distributed.get_rank()}", _made[whole])
            self._whole = whole
        if self._group is None and find(f"{self._whole}/{distributed.get_rank()}/missing"):
            raise RuntimeError(_WHOLE.format(distributed.get_rank()))

    def look(self, optimizer: "ZerothOrder", measurements: Sequence[torch.Tensor]) -> None:
        """After a measurement, the weights where its last loss was evaluated. The first time this waits for the device.

        Raises:
            RuntimeError: processes that hold shards of one model have measured different losses.
        """
        if not self._left or not _several():
            return
        if optimizer.layout.sharded:
            self._left = 0
            if self._group is not None:  # else the driver has seen to it
                self._group.compare("losses", {"losses": [float(number).hex() for number in measurements]})
            return
        if self._mine is None:
            self._mine = self._leave(optimizer, measurements)
        self._left -= 1
        notes = list(takewhile(bool, (find(f"{self._name}/{other}") for other in self._others)))
        if len(notes) == len(self._others):
            self._left = 0
            for rank, theirs in zip(self._others, notes):
                differs = [name for name, value in self._mine.items() if value != theirs[name]]
                if differs:
                    warn(
                        f"process {distributed.get_rank()} and process {rank} differ in their {', '.join(differs)} at step "
                        f"{self._mine['step']}, and walk apart from here: let step take zokern.DistributedClosure(closure), and begin with "
                        "the same weights and seed in each, as examples/several_processes.py does. Where they are to train apart, all is "
                        "well"
                    )
                    return

    def _leave(self, optimizer: "ZerothOrder", measurements: Sequence[torch.Tensor]) -> dict[str, Any]:
        kind, rank = f"{type(optimizer).__name__}/{optimizer.layout.fingerprint()}", distributed.get_rank()
        self._name = f"{kind}/{_made[kind]}"
        self._others = range(1, distributed.get_world_size()) if rank == 0 else range(1)
        _made[kind] += 1
        group = optimizer.param_groups[0]
        theta = (p for part in optimizer.weights.theta for p in part.params)
        weights = [float(p.detach().sum(dtype=torch.float64)).hex() for p in theta]
        mine = dict(step=group["step"], seed=group["seed"], weights=weights, losses=[float(number).hex() for number in measurements])
        leave(f"{self._name}/{rank}", mine)
        return mine


class _Group:
    """The processes that hold one sharded model. The first of them compares what all say, and tells them what it has found, so that each
    asks the store a few times, however many they are.

    Args:
        params: the parameters.
        whole: where processes leave a note that have them whole.
    """

    def __init__(self, params: Sequence[torch.Tensor], whole: str) -> None:
        self.ranks, self.whole, self.name = sorted(partners(params)), whole, f"sharded/{_made['sharded']}"
        _made["sharded"] += 1

    def compare(self, topic: str, mine: dict[str, Any]) -> None:
        """Raise RuntimeError in all processes, where what one of them says differs from what the first does."""
        first, here, name = self.ranks[0], distributed.get_rank(), f"{self.name}/{topic}"
        leave(f"{name}/{here}", mine)
        if here == first:
            leave(f"{name}/found", self._found(name, mine))
        if error := self._wait(f"{name}/found", first):
            raise RuntimeError(error)

    def _found(self, name: str, own: dict[str, Any]) -> str:
        """What is wrong; "" where nothing is."""
        first = self.ranks[0]
        for rank in self.ranks[1:]:
            try:
                differs = differences(own, self._wait(f"{name}/{rank}", rank))
            except RuntimeError as error:
                return str(error)
            if differs:
                cure = "make it with the same settings, the seed included, over the same parameters, in every process"
                if "losses" in own:
                    cure = "let step take zokern.DistributedClosure(closure), which averages them, or let all see the same rows"
                return f"process {rank} and process {first} hold shards of one model, and differ in {differs}: {cure}"
        return ""

    def _wait(self, key: str, rank: int) -> Any:
        """What a process leaves there."""
        begin, whole = time.monotonic(), f"{self.whole}/{rank}"
        seconds = _store().timeout.total_seconds()
        while (found := find(key)) is None:
            waited = time.monotonic() - begin
            if waited > LATE and (find(whole) or 0) > _made[self.whole]:
                leave(f"{whole}/missing", True)
                raise RuntimeError(_WHOLE.format(rank))
            if waited > seconds:
                raise RuntimeError(
                    f"process {rank} holds a shard of this process's model, and has made no step over it in {seconds:.0f} s: make the same "
                    "optimizers, in the same order, in every process of the mesh"
                )
            time.sleep(POLL)
        return found


_WHOLE = (
    "process {} has the parameters whole, of which other processes hold shards (DTensor), and its shard is missing: shard the model in "
    "every process of the mesh alike"
)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()


def leave(key: str, note: Any) -> None:
    """Leave a note, which JSON can hold, in the store of the process group."""
    _store().set(f"zokern/{key}", json.dumps([time.time(), note]))


def find(key: str) -> Any:
    """A note, or None. One that was left before this process began is none: torchrun keeps its store when it starts processes again."""
    if not _store().check([f"zokern/{key}"]):
        return None
    left, note = json.loads(_store().get(f"zokern/{key}"))
    return note if left >= _began() else None


@cache
def _began() -> float:
    """When this process did, by the clock of ``time.time``."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):  # another system than Linux
        return IMPORTED


def described(optimizer: ClosureOptimizer) -> dict[str, Any]:
    """What processes that take the same steps have in common, as JSON can hold it."""
    groups = [{name: value for name, value in group.items() if name not in ("params", "trail")} for group in optimizer.param_groups]
    groups = tree_map_only(torch.Tensor, torch.Tensor.tolist, groups)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    told: dict[str, Any] = {"zokern": __version__, "noise_spec": SPEC_VERSION, "type": type(optimizer).__name__}
    told |= {f"param_groups[{i}]": {name: repr(value) for name, value in group.items()} for i, group in enumerate(groups)}
    told["parameters"] = [[list(p.shape), str(p.dtype), "sharded" if is_sharded(p) else "whole"] for p in params]
    zo: Any = optimizer.perturbed  # None where nothing is
    if zo is not None:
        told["layout"] = zo.layout.fingerprint()
    return told | {name: repr(getattr(optimizer, name)) for name in ("split", "share_forward") if hasattr(optimizer, name)}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Names of what differs between two of these, with the values where they are short; "" where nothing does."""
    found = []
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{name} ({key}={b.get(key)} and {a.get(key)})" for key in {**a, **b} if a.get(key) != b.get(key)]
        elif len(f"{a}{b}") < 80:
            found.append(f"{name} ({b} and {a})")
        else:
            found.append(name)
    return ", ".join(found)
