"""Derivatives along z by forward-mode AD, with a z that exists only where it is used."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .. import ops
from ..layout import Layout
from ..noise import NoiseKey
from ..ops.arguments import Number
from ..signals import let_through
from .estimate import Estimate, average
from .losses import Estimator, LossClosure, scalar
from .perturbation import PerturbedWeights

# What describes a tensor. Attributes do, or are views of it (.T), which are known for what they are.
DESCRIBE = {"__get__", "__set__", "__len__", "size", "dim", "numel", "stride", "storage_offset", "element_size"}
DESCRIBE |= {"is_contiguous", "is_floating_point"}
OPERATIONS = (OpOverload, OpOverloadPacket)


def forward_gradient(weights: PerturbedWeights, params: list[torch.Tensor], keys: list[NoiseKey]) -> Estimator:
    """The mean of one estimate a key, g = <grad L(theta), z(key)>, each from a loss and its derivative. A generator, see ``losses``.

    Args:
        weights: evaluated at theta.
        params: as of ``tangents``.
        keys: the directions, one a query.

    Reference:
        Baydin et al. 2022, "Gradients without Backpropagation", Algorithm 1.
    """
    numbers = yield Derivatives(weights, params, keys)
    losses, grads = numbers[::2], numbers[1::2]
    return average([Estimate.along(key, grad, (loss,), ~torch.isfinite(loss)) for key, loss, grad in zip(keys, losses, grads)])


@dataclass(frozen=True)
class Derivatives:
    """A request for the loss at theta and its derivative along z(key), two numbers for each of some keys."""

    weights: PerturbedWeights
    params: list[torch.Tensor]
    keys: list[NoiseKey]

    def measure(self, loss: LossClosure) -> list[torch.Tensor]:
        """Raises TypeError or ValueError where the loss is no scalar, or carries no derivative; what ``tangents`` raises."""
        layout, numbers = self.weights.layout, []
        with self.weights.at([]):
            for key in self.keys:
                with tangents(layout, self.params, key):
                    pair = _unpacked(let_through(loss))
                numbers += [scalar(number, layout.params[0].device) for number in pair]
        return numbers

    def replay(self, numbers: Iterator[Number]) -> list[torch.Tensor]:
        self.weights.visit([])
        return [torch.as_tensor(next(numbers)).double() for _ in range(2 * len(self.keys))]


def _unpacked(loss: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """-> (loss, its derivative)."""
    if not isinstance(loss, torch.Tensor):
        raise TypeError(
            f"closure returned {type(loss).__name__}, which carries no derivative: return the loss as a 0-dim tensor (such as "
            "outputs.loss), without .item() or float()"
        )
    value, grad = forward_ad.unpack_dual(loss)  # type: ignore[no-untyped-call]
    if grad is None:
        raise ValueError(
            "closure returned a loss without a derivative: return it as computed from the parameters given, without .detach(), .data or "
            "torch.tensor(loss)"
        )
    return value, grad


@contextmanager
def tangents(layout: Layout, params: list[torch.Tensor], key: NoiseKey) -> Iterator[None]:
    """Inside, what is computed from the parameters carries its derivative along z(key): read it with forward_ad.unpack_dual.

    Every torch function that is called with a parameter gets a dual tensor in its place, whose tangent is that parameter's z(key) in its
    own dtype, made then. It is freed with the dual, so at the end of the call where nothing keeps a view of it: of z, only what one
    call takes exists at a time. The parameters and their modules are not touched. Attention takes its differentiable (math) form, and
    torch.compile is passed over.

    Args:
        layout: the parameters, their element indices, and which share of their elements z reaches.
        params: all tensors that may be met for a parameter: those of the layout, and those that share memory with one of them.
        key: the direction.

    Raises:
        NotImplementedError: something that forward mode cannot differentiate; the message names it, and the cure.

    Reference:
        Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", appendix C.1: "FG without State".
    """
    try:
        with torch.no_grad(), _as_written(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _Duals(layout, params, key):
            yield
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if any(mark in reason for mark in ("forward AD", "forward mode AD", "jvp")):
            raise NotImplementedError(
                f"forward mode stopped: {reason.rstrip('.')}. Let the model use plain operations (attn_implementation='eager', no gradient "
                "checkpointing, torch.backends.mkldnn or cudnn.flags(enabled=False) for recurrent layers), or take zokern.MeZO"
            ) from error
        raise


def _as_written() -> AbstractContextManager[Any]:
    """Compiled code runs as Python: what it calls could not be seen. Nothing is compiled where torch's compiler was never loaded."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _Duals(TorchFunctionMode):
    """Hands torch functions the duals of parameters. torch calls __torch_function__ for each of them, tensor methods included."""

    def __init__(self, layout: Layout, params: list[torch.Tensor], key: NoiseKey) -> None:
        super().__init__()
        self.layout, self.key, self.live = layout, key, True
        self.index_of = _index_of(layout, params)

    # torch takes a mode from its stack for each call and puts it back, both in Python: where an interrupt comes between, it is not there in
    # the end, or comes back when the interrupt's frames go. Then it does nothing.

    def __enter__(self) -> Any:
        self.below = torch._C._len_torch_function_stack()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        self.live = False
        while torch._C._len_torch_function_stack() > self.below:
            torch._C._pop_torch_function_stack()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name not in DESCRIBE and self.live:
            args, kwargs = self._duals(args, name), self._duals(kwargs, name)
        result = func(*args, **kwargs)
        if self.live and isinstance(func, OPERATIONS):
            _check_carried(func, (args, kwargs), result)
        return result

    def _duals(self, value: Any, name: str) -> Any:
        """The value, with the dual of every parameter in it in the parameter's place, and of views that have no tangent yet."""
        if isinstance(value, torch.Tensor):
            i = self.index_of.get(id(value), self.index_of.get(id(value._base)))
            return value if i is None or _has_tangent(value) else self._dual(value, i, name)
        if type(value) in (list, tuple):
            return type(value)([self._duals(v, name) for v in value])
        if type(value) is dict:
            return {k: self._duals(v, name) for k, v in value.items()}
        return value

    def _dual(self, tensor: torch.Tensor, i: int, name: str) -> torch.Tensor:
        if name == "data_ptr" or not torch._C._is_fwd_grad_enabled():
            where = "by its address" if name == "data_ptr" else "under torch.inference_mode() or in a custom autograd.Function"
            raise NotImplementedError(
                f"theta[{i}] ({self.layout.names[i]!r}) is read {where} (by {name}), where forward mode does not reach: use "
                "torch.no_grad() and plain torch operations there, or take zokern.MeZO"
            )
        owner, z = self.layout.params[i], ops.noise_like(self.layout, i, self.key)
        if tensor is not owner:
            z = z.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - owner.storage_offset())
        return forward_ad.make_dual(tensor, z)  # type: ignore[no-untyped-call, no-any-return]


def _check_carried(func: Any, given: Any, result: Any) -> None:
    """Of an operation that a library has defined (torch.library.custom_op), torch drops the derivative without a word."""
    name = str(getattr(func, "_qualified_op_name", None) or func.name()).partition(".")[0]
    numbers = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    in_place = result is None
    if name.startswith(("aten::", "prims::")) or not in_place and (not numbers or any(map(_has_tangent, numbers))):
        return
    if any(map(_has_tangent, (t for t in tree_leaves(given) if isinstance(t, torch.Tensor)))):
        raise NotImplementedError(f"the operation {name} has no forward AD derivative")


def _has_tangent(tensor: torch.Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _index_of(layout: Layout, params: list[torch.Tensor]) -> dict[int, int]:
    """id of a tensor -> the number in the layout of the parameter that is it, or whose memory covers it."""
    index_of = {id(p): i for i, p in enumerate(layout.params)}
    for n, tensor in enumerate(params):
        if id(tensor) not in index_of:
            i = index_of[id(tensor)] = next(i for i, p in enumerate(layout.params) if _covers(p, tensor))
            if tensor.dtype != layout.params[i].dtype:
                raise ValueError(
                    f"params[{n}] is {tensor.dtype} in the memory of theta[{i}] ({layout.names[i]!r}), which is {layout.params[i].dtype}: "
                    "bits have no derivative; pass .clone() of one"
                )
    return index_of


def _covers(p: torch.Tensor, tensor: torch.Tensor) -> bool:
    end = p.data_ptr() + p.numel() * p.element_size()
    return p.device == tensor.device and p.data_ptr() <= tensor.data_ptr() < end
