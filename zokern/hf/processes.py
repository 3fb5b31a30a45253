"""Data parallelism without gradients: equal weights at the start, and one collective of two numbers a forward pass."""

import torch
from torch import distributed
from torch.autograd import forward_ad


def count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if count() > 1 else 0


@torch.no_grad()
def mean(loss: torch.Tensor, weight) -> torch.Tensor:
    """The weighted mean of every process's loss, the same bits on each of them.

    All losses are gathered and each process adds them in the order of ranks. What is gathered after every forward pass is the loss
    and its weight: the point where the next loss is evaluated may depend on it. Nothing waits for the host.

    Args:
        loss: 0-dim tensor; where forward-mode AD is on, its derivative is averaged with it.
        weight: rows or tokens that the loss is the mean of: a number or a 0-dim tensor. The loss of weight 0 is left out.
    Returns:
        0-dim float64 tensor.
    """
    if count() == 1:
        return loss
    value, tangent = forward_ad.unpack_dual(loss)
    mine = [value, *([] if tangent is None else [tangent]), torch.as_tensor(weight, device=loss.device)]
    mine = torch.stack([number.detach().double() for number in mine])
    every = [torch.empty_like(mine) for _ in range(count())]
    distributed.all_gather(every, mine)
    *numbers, weights = torch.stack(every, 1)
    means = [torch.where(weights > 0, weights * n, 0.0).sum() / weights.sum().clamp(min=1) for n in numbers]
    return means[0] if tangent is None else forward_ad.make_dual(*means)


@torch.no_grad()
def equalise(model) -> None:
    """Every process takes rank 0's parameters and buffers."""
    if count() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            held = tensor.data.contiguous()
            distributed.broadcast(held, src=0)
            if held.data_ptr() != tensor.data_ptr():
                tensor.data.copy_(held)


def check_equal(optimizer) -> None:
    """
    Raises:
        ValueError: the optimizers of two processes would walk differently.
    """
    if count() == 1:
        return
    groups = [{name: _plain(value) for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    mine = dict(type=type(optimizer).__name__, layout=optimizer.layout.fingerprint(), param_groups=groups)
    every = [None] * count()
    distributed.all_gather_object(every, mine)
    for other, theirs in enumerate(every):
        if theirs != every[0]:
            differs = [name for name in mine if theirs[name] != every[0][name]]
            raise ValueError(
                f"the optimizer of process {other} differs from that of process 0 in {', '.join(differs)}: make it with the same settings, "
                "the seed included, and from the same weights, in every process"
            )


def _plain(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
