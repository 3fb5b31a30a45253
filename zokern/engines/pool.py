"""Engines that answer an optimizer: each takes the next point that nobody has measured, whichever it is."""

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from uuid import uuid4

import torch

from ..errors import BadInput, first_line
from ..estimators import Driver
from ..estimators.losses import Request, scalar
from ..estimators.perturbation import Pass
from ..layout import Layout, Span
from ..ops.arguments import Term
from ..signals import let_through
from .engine import Engine, EngineDied
from .messages import Plan, Trained, Updates, plain
from .shard import checksum
from .weights import PooledWeights

T = TypeVar("T")
STARTS = 3  # of an engine, without a point that it measured between them


class Pool:
    """Engines of the same model, and all updates of its weights so far: ``perturbation=Pool(...)`` of an optimizer.

    ``optimizer.step(pool.driver(function))`` measures ``function(engine, number)`` at each point of a step, at whichever engine is free.
    The optimizer's parameters are a Hugging Face model's, on the host, and stay as they are: only keys and numbers go to engines. An engine
    is brought to the newest theta before it measures, by the passes that it lacks. One that dies is started again, gets all of them, and
    its points are measured again; so that weights do not depend on how many engines there are, on which of them measured what, nor on a
    death.

    Args:
        engines: one or more, each at the checkpoint.
        dtype: of theta: torch.float32, whatever the model computes in; or None, the model's own, 2 bytes a weight in 16 bits. Default
            torch.float32.

    Attributes:
        engines: those that are left.
        passes: of theta, in order, since the checkpoint.

    Raises:
        BadInput: there is no engine, or another dtype.
    """

    def __init__(self, engines: Sequence[Engine], dtype: torch.dtype | None = torch.float32) -> None:
        if not engines:
            raise BadInput("engines is empty: pass one or more")
        if dtype not in (torch.float32, None):
            raise BadInput(f"dtype={dtype!r}: pass torch.float32, or None for the model's own")
        self.engines, self.dtype = list(engines), dtype
        self.passes: list[Pass] = []
        self.plan: Plan | None = None
        self._base: dict[str, int] = {}  # checksums of the checkpoint
        self._run = uuid4().hex
        self._starts: dict[Engine, int] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Of the kind of perturbation: what engines do is what ``Copied`` does."""
        return "copied" if self.dtype else "copied-own"

    def weights(self, layout: Layout, state: Any) -> PooledWeights:
        """The weights that an optimizer moves, after which engines know what is trained.

        Args:
            layout: of the optimizer's parameters.
            state: the optimizer's, which this kind of perturbation does not need.

        Raises:
            BadInput: a layout that engines cannot take, engines with other weights than the parameters, or that have had updates of another
                optimizer.
            ValueError: weights of an engine in this process that cannot be perturbed.
        """
        plan = _plan(layout, self.dtype is None, self._run)
        if self.plan is None:
            base = {t.name: checksum(p, Span(t.first, max(t.numel, 1), max(t.numel, 1))) for t, p in zip(plan.tensors, layout.params)}
            self._base, self.plan = base, plan
            try:
                self._everywhere(self._begin)
            except BaseException:
                self.plan = None
                raise
        elif self.plan != plan or self.passes:
            raise BadInput("the engines have had updates of another optimizer, or of this one before it was loaded: start others")
        return PooledWeights(layout, self)

    def driver(self, function: Callable[..., Any], *args: Any) -> "PoolDriver":
        """What ``step`` takes: ``function(engine, *args, number)`` is the loss or reward of point ``number`` of the step.

        Args:
            function: called at each point, where the engine is.
            *args: of the function, for all points.
        """
        return PoolDriver(self, function, *args)

    def update(self, move: Pass) -> None:
        """theta <- decay theta + sum_k c_k z(key_k), by this ``move``, at each engine before it measures again."""
        self.passes.append(plain(move))

    def go(self, terms: Sequence[Term] = ()) -> None:
        """All engines to theta plus ``terms``, (NoiseKey, coefficient) each, by default none."""
        self._everywhere(lambda engine: engine.go(self._missing(engine), terms))

    def measure(self, function: Callable[..., T], points: Sequence[Sequence[Term]], args: Sequence[Sequence[Any]]) -> list[T]:
        """``function(engine, *args[n])`` at theta plus ``points[n]``, for each n, by whichever engine is free.

        Args:
            function: called where the engine is.
            points: terms, (NoiseKey, coefficient) each, of each point.
            args: of the function, for each point.

        Returns:
            What the function returned, in the order of the points.

        Raises:
            BadInput: no engine is left.
        """
        left, found = deque(range(len(points))), dict[int, T]()
        while left:
            self._round(left, lambda n, engine: found.__setitem__(n, self._measure(engine, function, points[n], args[n])))
        return [found[n] for n in range(len(points))]

    def checksums(self) -> dict[str, int]:
        """Return name -> a 64-bit number of theta's elements.

        Raises:
            RuntimeError: engines differ.
        """
        self.go()
        first, *others = self._everywhere(lambda engine: engine.checksums())
        for other in others:
            if other != first:
                name = next(name for name in first if other.get(name) != first[name])
                raise RuntimeError(f"engines hold other weights than each other, in {name!r} for one: the run is not to be trusted")
        return first

    def read(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that is trained, as an engine computes with it.

        Yields:
            (name, tensor on the host), one trained tensor after the other.
        """
        assert self.plan
        self.go()
        for tensor in self.plan.tensors:
            yield tensor.name, self._read(tensor.name)

    @torch.no_grad()
    def pull(self, optimizer: Any) -> None:
        """The parameters of the ``optimizer``, which stay as they are else, <- theta, as the engines compute with it."""
        weights: PooledWeights = optimizer.weights
        optimizer.flush()
        for p, (_, tensor) in zip(weights.layout.params, self.read(), strict=True):
            p.copy_(tensor.view(p.shape))
        weights.pulled()

    def close(self) -> None:
        """Close all engines that are left."""
        for engine in self.engines:
            _close(engine)

    def _read(self, name: str) -> torch.Tensor:
        while True:
            engine = self.engines[0]
            try:
                if engine.applied < len(self.passes):  # started again meanwhile
                    engine.go(self._missing(engine), [])
                return engine.read(name)
            except EngineDied as error:
                self._revive(engine, error)

    def _missing(self, engine: Engine) -> Updates:
        return Updates(engine.applied, self.passes[engine.applied :])

    def _measure(self, engine: Engine, function: Callable[..., T], terms: Sequence[Term], args: Sequence[Any]) -> T:
        found = engine.measure(function, self._missing(engine), terms, *args)
        self._starts[engine] = 0
        return found

    def _begin(self, engine: Engine) -> None:
        assert self.plan
        found = engine.begin(self.plan)
        for name, expected in {} if engine.applied else self._base.items():
            if found.get(name) != expected:
                raise BadInput(
                    f"{engine.name} has other weights than the model here, in {name!r} for one: start it with the checkpoint and the dtype"
                    " of that model"
                )

    def _everywhere(self, act: Callable[[Engine], T]) -> list[T]:
        """act(engine) of each, at once; of one that dies, again."""
        engines, found = list(self.engines), dict[int, T]()

        def once(engine: Engine) -> None:
            while True:
                try:
                    found[engines.index(engine)] = act(engine)
                    return
                except EngineDied as error:
                    if not self._revive(engine, error):
                        return

        with ThreadPoolExecutor(len(engines)) as threads:
            for future in [threads.submit(once, engine) for engine in engines]:
                let_through(future.result)
        return [found[n] for n in sorted(found)]

    def _round(self, left: "deque[int]", act: Callable[[int, Engine], None]) -> None:
        """Engines take numbers until none is left. What one has taken that dies comes back."""
        stop = threading.Event()

        def serve(engine: Engine) -> None:
            while not stop.is_set():
                try:
                    n = left.popleft()
                except IndexError:
                    return
                try:
                    act(n, engine)
                except EngineDied as error:
                    left.appendleft(n)
                    if not self._revive(engine, error):
                        return
                except BaseException:
                    stop.set()
                    raise

        threads = ThreadPoolExecutor(len(self.engines))
        try:
            serving = [threads.submit(serve, engine) for engine in self.engines]
            for future in serving:
                let_through(future.result)
        finally:
            stop.set()
            let_through(threads.shutdown)

    def _revive(self, engine: Engine, error: EngineDied) -> bool:
        """Start an engine again that died. -> False where it cannot be, and others go on without it.

        Raises:
            BadInput: none is left.
        """
        why = first_line(error)
        if self._starts.get(engine, 0) < STARTS:
            self._starts[engine] = self._starts.get(engine, 0) + 1
            try:
                engine.applied = 0
                engine.restart()
                self._begin(engine)
                warnings.warn(f"{engine.name} died ({why}) and was started again", RuntimeWarning, stacklevel=2)
                return True
            except (EngineDied, BadInput) as again:
                why = first_line(again)
        with self._lock:
            self.engines = [other for other in self.engines if other is not engine]
            if not self.engines:
                raise BadInput(f"no engine is left: {engine.name}: {why}") from error
        _close(engine)
        warnings.warn(f"{engine.name} died, and the run goes on without it: {why}", RuntimeWarning, stacklevel=2)
        return False


def _close(engine: Engine) -> None:
    """As far as it can be: one that is gone already has nothing left to free."""
    try:
        engine.close()
    except Exception as error:
        warnings.warn(f"{engine.name} could not be closed: {first_line(error)}", RuntimeWarning, stacklevel=2)


class PoolDriver(Driver):
    """Asks the engines of a pool for the points of a step. Made by ``Pool.driver``.

    Args:
        pool: the engines.
        function: called at each point, where the engine is.
        *args: of the function, before the number of the point.

    Attributes:
        results: what the function returned at each point, so far.
    """

    def __init__(self, pool: Pool, function: Callable[..., Any], *args: Any) -> None:
        self.pool, self.function, self.args = pool, function, args
        self.results: list[Any] = []

    def answer(self, request: Request) -> list[torch.Tensor]:
        """Have the points of a ``request`` measured, each by whichever engine is free.

        Raises:
            ValueError: the optimizer asks for derivatives, or was not made with this pool.
        """
        points = getattr(request, "points", None)
        weights = getattr(request, "weights", None)
        if points is None:
            raise ValueError(
                "the optimizer asks for derivatives, and engines answer with losses: take one of them that perturbs weights, such as "
                "EvolutionStrategies, FZOO or MeZO"
            )
        if not isinstance(weights, PooledWeights) or weights.pool is not self.pool:
            raise ValueError("the request is not for losses around the pool's weights: make the optimizer with perturbation=pool")
        weights.apply_pending()
        numbers = range(len(self.results), len(self.results) + len(points))
        found = self.pool.measure(
            self.function, [weights.point(terms) for terms, _ in points], [(*self.args, number) for number in numbers]
        )
        self.results += found
        losses = [self.number(result) for result in found]
        for loss in losses:
            self.look(loss)
        return [scalar(loss, weights.layout.params[0].device) for loss in losses]

    def number(self, result: Any) -> Any:
        """What the optimizer is told of a ``result``: by default the result itself."""
        return result


def _plan(layout: Layout, own_dtype: bool, run: str) -> Plan:
    if len(layout.coefficient_groups) > 1:
        raise BadInput("engines take one parameter group, without blocks: pass the optimizer all parameters in one")
    if not all(layout.names):
        raise BadInput("parameters without names cannot be found in an engine: pass model.named_parameters()")
    if layout.sharded:
        raise BadInput("the parameters are sharded (DTensor), and engines are begun with whole tensors: pass the whole model")
    if any(p.device.type != "cpu" for p in layout.params):
        raise BadInput("the parameters here are a copy that engines never read: pass the model on the CPU")
    for name, span, p in zip(layout.names, layout.spans, layout.params):
        if span.columns < p.numel():
            raise BadInput(f"{name!r} is a part of a tensor: pass the whole model")
    return Plan(
        tuple(Trained(n, tuple(p.shape), s.first, k) for n, p, s, k in zip(layout.names, layout.params, layout.spans, layout.keep)),
        own_dtype,
        run,
    )
