"""Loss and gradient where the weights stand, by backpropagation."""

import torch

from ...signals import let_through


def gradient(closure, params) -> torch.Tensor:
    """The loss, detached, with its gradient in ``.grad`` of ``params``.

    A closure that sees but a part of the batch, as one process of several does, or sees it part by part, may have a method
    ``differentiate``, which is given the parameters, leaves the gradient of the whole batch's loss in their ``.grad``, and returns the
    loss of its part as it does when called.

    Raises:
        TypeError, ValueError: what the closure returned is no scalar, or cannot be differentiated.
    """
    with torch.enable_grad():
        if hasattr(closure, "differentiate"):
            return let_through(closure.differentiate, params)
        return let_through(lambda: backpropagated(closure()))


def backpropagated(loss) -> torch.Tensor:
    """A loss that a closure returned, detached, after its backward pass. Errors as of ``gradient``."""
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"closure returned {type(loss).__name__}: return the loss itself, a 0-dim tensor (such as outputs.loss)")
    if loss.dim() or loss.is_complex():
        raise ValueError(
            f"closure returned a tensor of shape {tuple(loss.shape)}, {loss.dtype}: return a real 0-dim loss, such as loss.mean()"
        )
    if not loss.requires_grad:
        raise ValueError(
            "closure returned a loss that does not depend on the first-order parameters: return it as computed, without item(), "
            "detach() or no_grad()"
        )
    loss.backward()
    return loss.detach()
