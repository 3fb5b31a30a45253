"""What estimators ask for, and who answers.

An estimator is a generator: it yields a request for losses at some points, is sent the losses, and returns an ``Estimate``. A driver
answers requests: a closure that evaluates the model, a log of an earlier run, a mean over processes.
"""

from collections.abc import Callable, Container, Generator, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from ..ops.arguments import Number, Term
from ..shards import whole
from ..signals import let_through
from .estimate import Estimate
from .perturbation import PerturbedWeights

LossClosure: TypeAlias = Callable[[], torch.Tensor | float]  # what it returns is one number


class Request(Protocol):
    """What an estimator yields. It is sent 0-dim float64 tensors on the parameters' device, as many as it asked for."""

    def measure(self, loss: LossClosure) -> list[torch.Tensor]:
        """The numbers, from a loss that is computed where the weights are."""
        ...

    def replay(self, numbers: Iterator[Number]) -> list[torch.Tensor]:
        """The next numbers, and the passes over the weights that measuring them made."""
        ...


Estimator: TypeAlias = Generator[Request, list[torch.Tensor], Estimate]


class Point(NamedTuple):
    """theta + sum_k c_k z(key_k): of one part of the weights (the number of a block), or of all."""

    terms: list[Term]
    part: int | None = None


@dataclass(frozen=True)
class Losses:
    """A request for the loss at each of some points. None depends on the others: they may be evaluated in any order, and elsewhere.

    A driver that evaluates them elsewhere calls ``weights.apply_pending()`` first, so that the parameters of ``weights.layout`` are theta.
    """

    weights: PerturbedWeights
    points: list[Point]

    def measure(self, loss: LossClosure, own: Container[int] | None = None) -> list[torch.Tensor]:
        """Perturbs the weights, point by point, and leaves them at the last one.

        Args:
            own: numbers of the points that are measured here; the weights pass by the others, as they would if these were measured, too.
                Default None: all.
        Raises:
            TypeError, ValueError: the loss is no scalar.
        """
        device, numbers = self.weights.layout.params[0].device, []
        with self.weights.passing_by():
            for n, (terms, part) in enumerate(self.points):
                if own is not None and n not in own:
                    self.weights.pass_by(terms, part)
                    continue
                with self.weights.at(terms, part), torch.no_grad():
                    numbers.append(scalar(let_through(loss), device))
        return numbers

    def replay(self, numbers: Iterator[Number]) -> list[torch.Tensor]:
        measured = []
        for terms, part in self.points:
            self.weights.visit(terms, part)
            measured.append(scalar(next(numbers), self.weights.layout.params[0].device))
        return measured


class Driver:
    """Answers the requests of estimators. ``step`` and the like take one instead of a closure.

    Attributes:
        live: it measures, rather than repeats what was measured.
        compares: it asks other processes itself whether their optimizers are the same.
        look: a function that is to be shown each loss as a closure returned it.
    """

    live = True
    compares = False
    look: Callable[[Any], Any] = staticmethod(lambda loss: None)

    def begin(self, optimizer: Any) -> None:
        """Before an optimizer measures, of a driver that ``compares``: raise in all processes where theirs differ."""

    def answer(self, request: Request) -> list[torch.Tensor]:
        raise NotImplementedError


class Closure(Driver):
    """Measures where the weights are, one point after the other, by () -> loss, a 0-dim tensor or a number."""

    def __init__(self, closure: LossClosure) -> None:
        self.closure = closure

    def loss(self) -> torch.Tensor | float:
        loss = self.closure()
        self.look(loss)
        return loss

    def answer(self, request: Request) -> list[torch.Tensor]:
        return let_through(self.combine, request.measure(self.loss))

    def combine(self, numbers: list[torch.Tensor]) -> list[torch.Tensor]:
        """What is known of the whole batch, given what this process has measured of its part."""
        return numbers

    def differentiate(self, params: list[torch.Tensor]) -> torch.Tensor:
        """The loss of this process's part where the weights are, a detached 0-dim tensor, with the gradient of the whole batch's loss in
        ``.grad`` of ``params``."""
        with torch.enable_grad():
            return let_through(lambda: backpropagated(self.closure()))


class Log(Driver):
    """Answers with what was measured before, numbers or 0-dim tensors in the order of the requests, and makes the same passes over the
    weights: the same bits, without a forward pass."""

    live = False

    def __init__(self, measurements: Iterable[Number]) -> None:
        self.left = iter(measurements)

    def answer(self, request: Request) -> list[torch.Tensor]:
        return request.replay(self.left)


def driver_of(closure: LossClosure | Driver, look: Callable[[Any], Any]) -> Driver:
    """A driver, or a closure as one, which shows its losses to ``look``."""
    driver = closure if isinstance(closure, Driver) else Closure(closure)
    driver.look = look
    return driver


def scalar(loss: Any, device: torch.device) -> torch.Tensor:
    """What a closure returned, as a 0-dim float64 tensor of its own on a device.

    Raises:
        TypeError, ValueError: it is no scalar.
    """
    if isinstance(loss, torch.Tensor):
        loss = whole(loss)
        if loss.dim():
            raise ValueError(f"closure returned a tensor of shape {tuple(loss.shape)}: return a 0-dim loss, such as loss.mean()")
        if loss.is_complex():
            raise TypeError(f"closure returned a loss of {loss.dtype}: return a real number, such as loss.real")
        number: torch.Tensor = loss.detach().to(device, torch.float64, non_blocking=device.type == "cuda", copy=True)
        return number
    if getattr(loss, "shape", ()) != ():
        raise ValueError(f"closure returned a {type(loss).__name__} of shape {tuple(loss.shape)}: return one number, such as loss.mean()")
    value = loss.item() if hasattr(loss, "item") else loss  # of NumPy's numbers and 0-dim arrays
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"closure returned {type(loss).__name__}: return the loss itself, a number or a 0-dim tensor (outputs.loss)")
    return torch.full((), float(value), dtype=torch.float64, device=device)


def backpropagated(loss: Any) -> torch.Tensor:
    """A loss that a closure returned, detached, after its backward pass. Errors as of ``scalar``, and of one without a gradient."""
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"closure returned {type(loss).__name__}: return the loss itself, a 0-dim tensor (such as outputs.loss)")
    if loss.dim() or loss.is_complex():
        kind = f"a tensor of shape {tuple(loss.shape)}, {loss.dtype}"
        raise ValueError(f"closure returned {kind}: return a real 0-dim loss, such as loss.mean()")
    if not loss.requires_grad:
        raise ValueError(
            "closure returned a loss that does not depend on the first-order parameters: return it as computed, without item(), "
            "detach() or no_grad()"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()
