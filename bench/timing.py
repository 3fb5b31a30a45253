"""How time is told: candidates take turns within one process, and each is told by its median and quartiles over the rounds."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

TARGET = 2e-3  # seconds a sample should last: far above the timer's resolution and the host's hiccups at its end
HEAD, LONGEST = 2e-4, 0.05  # seconds of head start that the host gets before a sample on a GPU: the least, the most
# Seconds of the host's work in a sample of several calls, at most. A launch takes the host 2 us or more, and a GPU's queue holds about a
# thousand: a host that finds it full waits until the GPU is let go.
QUEUED = 1e-3


@dataclass(frozen=True)
class Samples:
    """Seconds a call, one entry a round. ``late``: in so many of them the GPU may have idled, so that they are upper bounds."""

    seconds: tuple[float, ...]
    late: int = 0

    @cached_property
    def quartiles(self) -> list[float]:
        """First quartile, median, third quartile."""
        return statistics.quantiles(self.seconds, n=4, method="inclusive")

    @property
    def median(self) -> float:
        return self.quartiles[1]

    @property
    def min(self) -> float:
        return min(self.seconds)


def nothing():
    pass


@dataclass(frozen=True)
class Turn:
    """A candidate with work around each of its turns that is not timed."""

    call: Callable
    before: Callable = nothing
    after: Callable = nothing

    def __call__(self):
        return self.around(self.call)

    def around(self, act):
        self.before()
        try:
            return act()
        finally:
            self.after()


class Wall:
    """The time that a user waits: host clock, from an idle device to an idle device."""

    name, late = "wall", False

    def __init__(self, device, most=1000):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else nothing
        self.most = most

    def calibrate(self, call) -> int:
        """Warm up; -> calls a sample."""
        call()
        if self.most == 1:
            return 1
        return max(1, min(self.most, math.ceil(TARGET / self.sample(call, 1))))

    def sample(self, call, repeats) -> float:
        """Seconds a call, mean of ``repeats`` calls."""
        self.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return (time.perf_counter() - start) / repeats


class Device:
    """The time that the GPU works. The host queues the calls while a spinning kernel holds the GPU, so that launching costs nothing.

    Attributes:
        late: whether the GPU was let go before all of the newest sample was queued, in spite of the longest head start: it may have
            idled between two calls, and the sample is an upper bound.
    """

    name = "device"

    def __init__(self):
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.late = False
        self.heads = {}  # call -> seconds of head start that the host needs for a sample of it

    def calibrate(self, call) -> int:
        call()
        host = host_seconds(call, rounds=3)
        self.heads[call] = HEAD + 2 * host
        repeats = max(1, min(50, math.ceil(TARGET / self.sample(call, 1)), int(QUEUED / host)))
        self.heads[call] = HEAD + 2 * host * repeats
        self.sample(call, repeats)
        return repeats

    def sample(self, call, repeats) -> float:
        head = min(self.heads.get(call, HEAD), LONGEST)
        while True:
            torch.cuda._sleep(int(2e9 * head))  # cycles, at no more than about 2 GHz
            self.start.record()
            for _ in range(repeats):
                call()
            self.end.record()
            self.late = self.start.query()
            self.end.synchronize()
            if not self.late or head == LONGEST:
                self.heads[call] = head
                return self.start.elapsed_time(self.end) * 1e-3 / repeats
            head = min(2 * head, LONGEST)


def host_seconds(call, rounds=50) -> float:
    """Median time until the call returns, whatever the GPU is still doing."""
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def warmed(candidates, needed, reason) -> tuple[dict, dict]:
    """Call each once, so that it has compiled what it needs. -> (those that run, {name: the reason why another does not}).

    Args:
        needed: names of those whose exception is raised: without them the others say nothing.
        reason: exception -> text, which is kept in its place, since an exception holds what was allocated when it was raised.
    """
    run, failed = {}, {}
    for name, call in candidates.items():
        try:
            call()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # or the next one gets the blame
        except Exception as error:
            if name in needed:
                raise
            failed[name] = reason(error)
        else:
            run[name] = call
    return run, failed


def interleave(candidates, timer, budget, least=5, most=200) -> dict[str, Samples]:
    """Time the candidates round-robin, each round starting with another one, for ``budget`` seconds and at least ``least`` rounds.

    Args:
        candidates: name -> call, or a Turn.
    """
    names, turns = list(candidates), {name: call if isinstance(call, Turn) else Turn(call) for name, call in candidates.items()}
    repeats = {name: turn.around(lambda: timer.calibrate(turn.call)) for name, turn in turns.items()}  # noqa: B023 (called at once)
    seconds, late = {name: [] for name in names}, dict.fromkeys(names, 0)
    stop = time.perf_counter() + budget
    for i in range(most):
        if i >= least and time.perf_counter() > stop:
            break
        first = i % len(names)
        for name in names[first:] + names[:first]:
            turn = turns[name]
            seconds[name].append(turn.around(lambda: timer.sample(turn.call, repeats[name])))  # noqa: B023
            late[name] += timer.late
    return {name: Samples(tuple(s), late[name]) for name, s in seconds.items()}
