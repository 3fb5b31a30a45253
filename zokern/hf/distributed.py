"""Data parallelism: every process has the whole model and a part of the batch, and all take the same step.

Rank 0's weights go to the others once, at the start. A step exchanges its losses, a few numbers; that of a Hybrid its gradients, too.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import distributed
from torch.utils._pytree import tree_map_only

from ..estimators import Closure
from ..optim import ClosureOptimizer
from ..signals import let_through

Weight: TypeAlias = float | torch.Tensor  # rows or tokens that a loss is the mean of: a number or a 0-dim tensor
Part: TypeAlias = Callable[[], tuple[torch.Tensor, Weight]]  # -> the loss of this process's part of the batch, and its weight


def count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class DistributedClosure(Closure):
    """A closure whose loss is the mean over all processes, each of which sees its part of the batch. ``gradient``: evaluates the part with
    a backward pass, for optimizers that need one."""

    weight: Weight

    def __init__(self, part: Part, gradient: Part | None = None):
        self.part, self.gradient = part, gradient

    def closure(self) -> torch.Tensor:
        loss, self.weight = self.part()
        return loss

    def differentiate(self, params: Sequence[torch.Tensor]) -> torch.Tensor:
        assert self.gradient is not None  # given wherever gradients are asked for
        with torch.enable_grad():
            loss, self.weight = let_through(self.gradient)
        average_gradients(params, self.weight)
        return loss

    def combine(self, numbers: list[torch.Tensor]) -> list[torch.Tensor]:
        return all_reduce(numbers, self.weight)


@torch.no_grad()
def all_reduce(losses: list[torch.Tensor], weight: Weight) -> list[torch.Tensor]:
    """The weighted mean of every process's numbers, one a loss, the same bits on each of them.

    One collective: all are gathered, and each process adds them in the order of ranks. Nothing waits for the host.

    Args:
        losses: 0-dim float64 tensors of this process's part of the batch, as many on each process: losses, or derivatives of them.
        weight: of this process's part. What has weight 0 is left out.
    """
    if count() == 1:
        return losses
    mine = torch.stack([*losses, torch.as_tensor(weight, device=losses[0].device).double()])
    every = [torch.empty_like(mine) for _ in range(count())]
    distributed.all_gather(every, mine)
    *numbers, weights = torch.stack(every, 1)
    return [torch.where(weights > 0, weights * n, 0.0).sum() / weights.sum().clamp(min=1) for n in numbers]


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
    share = own / weights.sum().clamp(min=1)
    for p, anyone in zip(params, torch.stack(held).any(1).tolist()):
        if anyone:
            grad = torch.zeros_like(p) if p.grad is None else torch.where(share > 0, p.grad * share, 0.0)
            p.grad = grad.to(p.dtype).contiguous()
            distributed.all_reduce(p.grad)


@torch.no_grad()
def broadcast_parameters(model: torch.nn.Module) -> None:
    """Every process takes rank 0's parameters and buffers."""
    if count() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            held = tensor.data.contiguous()
            distributed.broadcast(held, src=0)
            if held.data_ptr() != tensor.data_ptr():
                tensor.data.copy_(held)


def check_equal(optimizer: ClosureOptimizer) -> None:
    """Raise ValueError where the optimizers of two processes differ, so that their weights would come apart."""
    if count() == 1:
        return
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    groups = tree_map_only(torch.Tensor, torch.Tensor.tolist, groups)
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    mine: dict[str, Any] = dict(type=type(optimizer).__name__, param_groups=groups, shapes=shapes)
    zo: Any = optimizer.perturbed  # None where nothing is
    if zo is not None:
        mine["layout"] = zo.layout.fingerprint()
    mine |= {name: repr(getattr(optimizer, name)) for name in ("split", "share_forward") if hasattr(optimizer, name)}
    every: list[Any] = [None] * count()
    distributed.all_gather_object(every, mine)
    for other, theirs in enumerate(every):
        if theirs != every[0]:
            differs = [name for name in every[0] | theirs if theirs.get(name) != every[0].get(name)]
            raise ValueError(
                f"the optimizer of process {other} differs from that of process 0 in {', '.join(differs)}: make it with the same settings, "
                "the seed included, and from the same weights, in every process"
            )
