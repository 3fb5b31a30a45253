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
"""() -> loss, one number: a 0-dim tensor or a float."""


class Request(Protocol):
    """What an estimator yields. It is sent 0-dim float64 tensors on the parameters' device, as many as it asked for."""

    def measure(self, loss: LossClosure) -> list[torch.Tensor]:
        """The numbers, from a ``loss`` that is computed where the weights are."""
        ...

    def replay(self, numbers: Iterator[Number]) -> list[torch.Tensor]:
        """The next ``numbers``, and the passes over the weights that measuring them made."""
        ...


Estimator: TypeAlias = Generator[Request, list[torch.Tensor], Estimate]
"""A generator that yields requests, such as ``Losses``, is sent 0-dim float64 tensors, as many as it asked for, and returns an
``Estimate``."""


class Point(NamedTuple):
    """theta + sum_k c_k z(key_k): of one part of the weights, or of all.

    Attributes:
        terms: list of (NoiseKey, coefficient).
        part: the number of a block. Default None: all weights.
    """

    terms: list[Term]
    part: int | None = None


@dataclass(frozen=True)
class Losses:
    """A request for the loss at each of some points. None depends on the others: they may be evaluated in any order, and elsewhere.

    A driver that evaluates them elsewhere calls ``weights.apply_pending()`` first, so that the parameters of ``weights.layout`` are theta.

    Attributes:
        weights: what is perturbed.
        points: where the loss is asked for.
    """

    weights: PerturbedWeights
    points: list[Point]

    def measure(self, loss: LossClosure, own: Container[int] | None = None) -> list[torch.Tensor]:
        """Perturb the weights, point by point, and leave them at the last one.

        Args:
            loss: () -> loss, one number.
            own: numbers of the points that are measured here; the weights pass by the others, as they would if these were measured, too.
                Default None: all.

        Returns:
            The losses of those points, 0-dim float64 tensors on the parameters' device.

        Raises:
            ValueError: the loss is a tensor or an array with dimensions.
            TypeError: it is no real number.
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
        """Return the next ``numbers``, one a point, as 0-dim float64 tensors, after the passes that measuring them made."""
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
        """Before an ``optimizer`` measures, of a driver that ``compares``: raise in all processes where theirs differ."""

    def answer(self, request: Request) -> list[torch.Tensor]:
        """Return what a ``request`` asks for: 0-dim float64 tensors on the parameters' device, in its order."""
        raise NotImplementedError


class Closure(Driver):
    """Measures where the weights are, one point after the other, by () -> loss.

    Args:
        closure: called under no_grad for each point; returns a 0-dim tensor or a number.
    """

    def __init__(self, closure: LossClosure) -> None:
        self.closure = closure

    def loss(self) -> torch.Tensor | float:
        """Call the closure once, and show what it returned to ``look``."""
        loss = self.closure()
        self.look(loss)
        return loss

    def answer(self, request: Request) -> list[torch.Tensor]:
        """Measure what a ``request`` asks for."""
        return let_through(self.combine, request.measure(self.loss))

    def combine(self, numbers: list[torch.Tensor]) -> list[torch.Tensor]:
        """What is known of the whole batch, given the ``numbers`` that this process has measured of its part."""
        return numbers

    def differentiate(self, params: list[torch.Tensor]) -> torch.Tensor:
        """The loss where the weights are, with its gradient.

        Args:
            params: whose ``.grad`` becomes that of the whole batch's loss.

        Returns:
            The loss of this process's part, a detached 0-dim tensor.
        """
        with torch.enable_grad():
            return let_through(lambda: backpropagated(self.closure()))


class Log(Driver):
    """Answers with what was measured before, and makes the same passes over the weights: the same bits, without a forward pass.

    Args:
        measurements: numbers or 0-dim tensors in the order of the requests.
    """

    live = False

    def __init__(self, measurements: Iterable[Number]) -> None:
        self.left = iter(measurements)

    def answer(self, request: Request) -> list[torch.Tensor]:
        """Answer a ``request`` with the next measurements."""
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
