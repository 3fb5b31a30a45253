"""An engine in an actor of Ray, on this machine or another."""

import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from ..errors import BadInput, first_line, need
from ..ops.arguments import Term
from .engine import Engine, EngineDied, Sampling
from .generate import Completions
from .messages import Plan, Updates, terms_message, terms_of

FUNCTIONS = 8  # that are kept, here and in an actor
_stored_functions: dict[int, tuple[Any, Any]] = {}  # by their identity, with where Ray has them: for all engines
_lock = threading.Lock()


class RayEngine(Engine):
    """An engine that an actor makes and keeps, with a placement group of its own: all that it needs, on one node.

    A point that is measured moves keys and numbers to the actor and what the function returns back: the function goes there once. The
    cluster is the one that ``ray.init()`` connects to, or one on this machine.

    Args:
        make: () -> Engine, called in the actor, such as ``functools.partial(VLLM, model, tensor_parallel=2)``.
        cpus: of the placement group. Default 1.
        gpus: of the placement group: of vLLM as many as workers. Default 0.
        name: for messages. Default "an engine of Ray".
        wait: seconds in which the cluster has to have room for it. Default 600.
        timeout: seconds until a call that is not answered counts as a death. Default None: it is waited for.
        environment: variables of the actor's process, beside its node's. Default None.

    Raises:
        BadInput: Ray is not installed, has no room, or ``make`` refuses.
    """

    def __init__(
        self, make: Callable[[], Engine], cpus: float = 1, gpus: float = 0, name: str = "an engine of Ray", wait: float = 600.0,
        timeout: float | None = None, environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.ray, self.name, self.make, self.wait, self.timeout = connected(), name, make, wait, timeout
        self.options = dict(num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": environment or {}})
        self.group: Any = None
        self.actor: Any = None
        try:
            self._start()
        except BaseException as error:
            self.close()
            if isinstance(error, EngineDied):
                raise BadInput(f"{error}, as it was started: look into Ray's logs of its actor") from error
            raise

    def _start(self) -> None:
        bundle = {name: self.options[f"num_{name.lower()}s"] for name in ("CPU", "GPU")}
        self.group = need("ray.util").placement_group([{name: count for name, count in bundle.items() if count}], strategy="STRICT_PACK")
        strategy = need("ray.util.scheduling_strategies").PlacementGroupSchedulingStrategy(self.group)
        if not self.group.wait(self.wait):
            asked = f"{self.options['num_cpus']} CPUs and {self.options['num_gpus']} GPUs on one node"
            raise BadInput(f"{self.name}: the cluster has no room for {asked} after {self.wait:g} s: add nodes, or ask for fewer engines")
        self.actor = self.ray.remote(_Actor).options(scheduling_strategy=strategy, **self.options).remote()
        self._ask("start", self.make)

    def begin(self, plan: Plan) -> dict[str, int]:
        self.applied, found = self._ask("begin", plan)
        return dict(found)

    def go(self, updates: Updates, terms: Sequence[Term]) -> None:
        self.applied = self._ask("go", updates.message(), terms_message(terms))

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seed: Sequence[int] = ()) -> Completions:
        written: Completions = self._ask("call", "generate", prompts, sampling, seed)
        return written

    def score(self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        scored: list[list[float]] = self._ask("call", "score", prompts, options)
        return scored

    def checksums(self) -> dict[str, int]:
        found: dict[str, int] = self._ask("call", "checksums")
        return found

    def read(self, name: str) -> torch.Tensor:
        held: torch.Tensor = self._ask("call", "read", name)
        return held

    def measure(self, function: Callable[..., Any], updates: Updates, terms: Sequence[Term], *args: Any) -> Any:
        asked = [_stored(self.ray, function)], updates.message(), terms_message(terms), args
        try:
            self.applied, self.moving, found = self._ask("measure", *asked)
        except EngineDied:
            raise
        except Exception:  # of the function, before which theta has moved
            self.applied = self._ask("applied")
            raise
        return found

    def restart(self) -> None:
        self.close()  # its node may be gone, and its placement group with it
        try:
            self._start()
        except BadInput as error:
            raise EngineDied(str(error)) from error

    def close(self) -> None:
        if self.actor is not None:
            self.ray.kill(self.actor)
        if self.group is not None:
            need("ray.util").remove_placement_group(self.group)
        self.actor = self.group = None

    def _ask(self, method: str, *args: Any) -> Any:
        """
        Raises:
            BadInput: as the engine there. EngineDied: it, or its actor, is gone.
        """
        errors = need("ray.exceptions")
        try:
            return self.ray.get(getattr(self.actor, method).remote(*args), timeout=self.timeout)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EngineDied) or not isinstance(cause, Exception):
                raise EngineDied(f"{self.name}: {first_line(cause)}") from None
            raise cause from None
        except errors.RayError as error:
            raise EngineDied(f"{self.name}: {first_line(error)}") from None


class _Actor:
    """Holds an engine in a process of Ray's."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.functions: dict[Any, Callable[..., Any]] = {}  # by their references

    def start(self, make: Callable[[], Engine]) -> None:  # and not as the actor is made, where Ray would tell no more than that it failed
        self.engine = make()

    def applied(self) -> int:
        return int(self.engine.applied)

    def begin(self, plan: Plan) -> tuple[int, dict[str, int]]:
        found = self.engine.begin(plan)
        return self.engine.applied, found

    def go(self, updates: list[Any], terms: list[Any]) -> int:
        self.engine.go(Updates.of(updates), terms_of(terms))
        return self.engine.applied

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self.engine, method)(*args)

    def measure(self, there: list[Any], updates: list[Any], terms: list[Any], args: Sequence[Any]) -> tuple[int, float, Any]:
        (reference,) = there  # in a list, so that Ray does not fetch the function again for each point
        if reference not in self.functions:
            while len(self.functions) >= FUNCTIONS:
                self.functions.pop(next(iter(self.functions)))
            self.functions[reference] = need("ray").get(reference)
        function = self.functions[reference]
        found = self.engine.measure(function, Updates.of(updates), terms_of(terms), *args)
        return self.engine.applied, self.engine.moving, found


def _stored(ray: Any, function: Callable[..., Any]) -> Any:
    """The reference of a function, which is stored once for all actors."""
    with _lock:
        if id(function) not in _stored_functions:
            while len(_stored_functions) >= FUNCTIONS:
                _stored_functions.pop(next(iter(_stored_functions)))
            _stored_functions[id(function)] = function, ray.put(function)
        return _stored_functions[id(function)][1]


def connected() -> Any:
    """Ray, connected to a cluster, or to one that it starts on this machine.

    Raises:
        BadInput: it is not installed.
    """
    if find_spec("ray") is None:
        raise BadInput("ray is not installed: pip install 'ray>=2.40'")
    ray = need("ray")
    if not ray.is_initialized():
        _stored_functions.clear()  # of another cluster
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    return ray
