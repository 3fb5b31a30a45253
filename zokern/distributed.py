"""Several processes that take the same step: each measures its part of the batch, or its share of the directions, or both.

Every process has the whole model, or its shards of one. A step exchanges its losses, a few numbers, in one collective for each request
of its estimator, which for most is one a step; that of a Hybrid its gradients, too.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
from torch import distributed

from .estimators import Closure
from .estimators.losses import Losses, Request
from .layout import Layout
from .optim import ClosureOptimizer
from .optim.replicas import described, differences
from .shards import is_sharded, partners
from .signals import let_through

Weight: TypeAlias = float | torch.Tensor  # rows or tokens that a loss is the mean of: a number or a 0-dim tensor
Part: TypeAlias = Callable[[], Any]  # -> the loss of this process's part of the batch, or (loss, weight)

_equal: "WeakSet[Layout]" = WeakSet()  # of optimizers that all processes were seen to agree on


def count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class DistributedClosure(Closure):
    """What ``step`` takes in place of a closure in each of several processes: its losses become those of all, the same bits in each.

        optimizer.step(zokern.DistributedClosure(closure))
        optimizer.step(zokern.DistributedClosure(closure, directions=4))

    The first averages over processes, each of which has its part of the batch. The second lets each of 4 groups of processes measure a
    quarter of the points.

    A point is a place around theta where a step asks for the loss: two for each direction of MeZO, one for each member of a population. A
    group of processes measures its share of them, on its parts of the batch; where there are as many groups as processes, each process has
    the whole batch. Then one collective gathers all losses, and everybody moves along all directions in one pass. Weights that are
    perturbed in place make the passes of the others' points as well, many of them in one read and write, so that they come to the bits of
    one process. Groups are of successive ranks; those that hold one sharded model are in one group, as they are by the order of a mesh
    whose last dimensions are cut (HSDP: directions=number of replicas).

    Args:
        closure: () -> loss, a 0-dim tensor or a number, of this process's rows; or (loss, weight), with how many rows or tokens it is the
            mean of, as a number or a 0-dim tensor. Without a weight it is 1.
        gradient: the same with a backward pass, for optimizers that need one. Default None.
        directions: groups of processes with different points, a divisor of their number. Default 1: all measure all points.

    Raises:
        ValueError: directions that the processes cannot be divided by; in ``step``, directions that would cut a sharded model, or with an
            optimizer that asks for derivatives; in the first step, on every process, optimizers that differ, by what differs.
    """

    compares = True
    weight: Weight = 1.0

    def __init__(self, closure: Part, gradient: Part | None = None, directions: int = 1) -> None:
        self.part, self.gradient, self.directions = closure, gradient, directions
        if isinstance(directions, bool) or not isinstance(directions, int) or directions < 1 or count() % directions:
            raise ValueError(f"directions={directions!r} of {count()} processes: pass a number that divides them")
        self._each = count() // directions  # processes of a group

    def closure(self) -> Any:
        """The loss of this process's part, whose weight is kept."""
        return self._weighed(self.part())

    def begin(self, optimizer: Any) -> None:
        """Once for each ``optimizer``: whether all processes have the same, and can measure as they are to.

        Raises:
            ValueError: they do not, on every process; ``directions`` would cut a sharded model.
        """
        layout: Layout = optimizer.layout
        if count() == 1 or layout in _equal:
            return
        _compare({"directions": self.directions, **described(optimizer)})
        first = distributed.get_rank() // self._each * self._each
        if cut := sorted(partners(layout.params) - set(range(first, first + self._each))):
            raise ValueError(
                f"directions={self.directions}: processes {first} to {first + self._each - 1} measure together, and the model is cut among "
                f"them and {', '.join(map(str, cut))}: pass directions that keep processes of one sharded model in one group"
            )
        _equal.add(layout)

    def answer(self, request: Request) -> list[torch.Tensor]:
        """Measure this process's points of the ``request``, and gather those of the others.

        Raises:
            ValueError: ``directions`` above 1, and a request for derivatives.
        """
        if count() == 1 or self.directions == 1:
            return super().answer(request)
        if not isinstance(request, Losses):
            raise ValueError(
                f"directions={self.directions} with an optimizer that asks for derivatives, of which every process measures its own part: "
                "leave it out"
            )
        numbers = request.measure(self.loss, _share(len(request.points), self.directions)[distributed.get_rank() // self._each])
        device = request.weights.layout.params[0].device
        return let_through(gather, numbers, self.weight, len(request.points), self.directions, device)

    def differentiate(self, params: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss of this process's part, and the mean gradient of all processes in ``.grad`` of ``params``.

        Raises:
            ValueError: ``directions`` above 1.
        """
        assert self.gradient is not None  # given wherever gradients are asked for
        if self.directions > 1:
            raise ValueError(f"directions={self.directions} with an optimizer that takes gradients, along which all move: leave it out")
        with torch.enable_grad():
            loss = self._weighed(let_through(self.gradient))
        average_gradients(params, self.weight)
        return loss

    def combine(self, numbers: list[torch.Tensor]) -> list[torch.Tensor]:
        """The weighted mean over the processes of each of the ``numbers``."""
        return all_reduce(numbers, self.weight)

    def _weighed(self, measured: Any) -> Any:
        loss, self.weight = measured if isinstance(measured, tuple) else (measured, 1.0)
        return loss


def _share(points: int, groups: int) -> list[range]:
    """Which points are whose: the same number for each group, or one more."""
    return [range(points * g // groups, points * (g + 1) // groups) for g in range(groups)]


@torch.no_grad()
def all_reduce(losses: list[torch.Tensor], weight: Weight) -> list[torch.Tensor]:
    """The weighted mean of every process's numbers, one a loss, the same bits on each of them: ``gather`` of one group.

    Args:
        losses: 0-dim float64 tensors of this process's part of the batch, as many on each process: losses, or derivatives of them.
        weight: of this process's part. What has weight 0 is left out.
    """
    return losses if count() == 1 else gather(losses, weight, len(losses), 1, losses[0].device)


@torch.no_grad()
def gather(losses: list[torch.Tensor], weight: Weight, points: int, groups: int, device: torch.device) -> list[torch.Tensor]:
    """The losses of all points, each the weighted mean over the processes of the group that has measured it; the same bits on each process.

    One collective: all are gathered, and each process adds them in the order of ranks. Nothing waits for the host.

    Args:
        losses: 0-dim float64 tensors on the device, of this process's part of the batch at its group's share of the points.
        weight: of this process's part of the batch. What has weight 0 is left out.
        points: how many there are, over all groups of processes.
    """
    shares = _share(points, groups)
    own = torch.as_tensor(weight, device=device).double().reshape(1)
    mine = torch.cat([own, torch.stack(losses) if losses else own[:0], own.new_zeros(max(map(len, shares)) - len(losses))])
    every = [torch.empty_like(mine) for _ in range(count())]
    distributed.all_gather(every, mine)
    found: list[torch.Tensor] = []
    for share, of_group in zip(shares, torch.stack(every, 1).chunk(groups, 1)):
        weights, *numbers = of_group[: 1 + len(share)]
        if len(weights) == 1:
            found += [n.reshape(()) for n in numbers]
        else:
            found += [torch.where(weights > 0, weights * n, 0.0).sum() / _positive(weights.sum()) for n in numbers]
    return found


@torch.no_grad()
def average_gradients(params: Sequence[torch.Tensor], weight: Weight) -> None:
    """``.grad`` becomes the weighted mean of every process's, the same bits on each of them; one that has none counts as 0.

    A collective of a few numbers, and one for each of the parameters, the same ones on each process, that has a gradient anywhere.
    """
    if count() == 1:
        return
    device = params[0].device
    own = torch.as_tensor(weight, device=device).double()
    mine = torch.cat([own.reshape(1), torch.tensor([p.grad is not None for p in params], device=device)])
    every = [torch.empty_like(mine) for _ in range(count())]
    distributed.all_gather(every, mine)
    weights, *held = torch.stack(every, 1)
    share = own / _positive(weights.sum())
    for p, anyone in zip(params, torch.stack(held).any(1).tolist()):
        if anyone:
            grad = torch.zeros_like(p) if p.grad is None else torch.where(share > 0, p.grad * share, 0.0)
            p.grad = grad.to(p.dtype).contiguous()
            distributed.all_reduce(p.grad)


def _positive(number: torch.Tensor) -> torch.Tensor:
    """What may be divided by: 1 where it is 0."""
    return torch.where(number > 0, number, 1.0)


@torch.no_grad()
def broadcast_parameters(model: torch.nn.Module) -> None:
    """Every process takes rank 0's parameters and buffers; of what is sharded (DTensor), each keeps its own."""
    if count() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            if is_sharded(tensor):
                continue
            held = tensor.data.contiguous()
            distributed.broadcast(held, src=0)
            if held.data_ptr() != tensor.data_ptr():
                tensor.data.copy_(held)


def check_equal(optimizer: ClosureOptimizer) -> None:
    """Raise ValueError, on every process, where the optimizers of two differ, so that their weights would come apart."""
    if count() == 1:
        return
    _compare(described(optimizer))
    zo: Any = optimizer.perturbed  # None where nothing is
    if zo is not None:
        _equal.add(zo.layout)


def _compare(mine: dict[str, Any]) -> None:
    """In full only where digests differ: processes may be many."""
    digest = hashlib.sha256(repr(mine).encode()).hexdigest()
    every: list[Any] = [None] * count()
    distributed.all_gather_object(every, digest)
    if every == [digest] * count():
        return
    distributed.all_gather_object(every, mine)
    for other, theirs in enumerate(every):
        if differs := differences(every[0], theirs):
            raise ValueError(
                f"the optimizer of process {other} differs from that of process 0 in {differs}: make it with the same settings, "
                "the seed included, and from the same weights, in every process"
            )
