"""How time is told: candidates take turns within one process, and each is told by its median and quartiles over the rounds."""

import math
import statistics
import time
from dataclasses import dataclass
from functools import cached_property

import torch

TARGET = 2e-3  # seconds a sample should last: far above the timer's resolution and the host's hiccups at its end


@dataclass(frozen=True)
class Samples:
    """Seconds a call, one entry a round."""

    seconds: tuple[float, ...]

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


class Wall:
    """The time that a user waits: host clock, from an idle device to an idle device."""

    name = "wall"

    def __init__(self, device, most=1000):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
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
    """The time that the GPU works. The host queues the calls while a spinning kernel holds the GPU, so that launching costs nothing."""

    name = "device"

    def __init__(self):
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.head = 2e-4  # seconds of head start for the host

    def calibrate(self, call) -> int:
        call()
        # A launch queue holds about a thousand entries, and a call is up to eight of them.
        repeats = max(1, min(50, math.ceil(TARGET / self.sample(call, 3))))
        self.sample(call, repeats)
        return repeats

    def sample(self, call, repeats) -> float:
        while True:
            torch.cuda._sleep(int(2e9 * self.head))  # cycles, at no more than about 2 GHz
            self.start.record()
            for _ in range(repeats):
                call()
            self.end.record()
            late = self.start.query()  # the GPU did not wait for the host: it may have idled between two calls
            self.end.synchronize()
            if not late or self.head > 0.05:
                return self.start.elapsed_time(self.end) * 1e-3 / repeats
            self.head *= 2


def interleave(candidates, timer, budget, least=5, most=200) -> dict[str, Samples]:
    """Time the candidates round-robin, each round starting with another one, for ``budget`` seconds and at least ``least`` rounds.

    Args:
        candidates: name -> call.
    """
    names, repeats = list(candidates), {name: timer.calibrate(call) for name, call in candidates.items()}
    seconds = {name: [] for name in names}
    stop = time.perf_counter() + budget
    for turn in range(most):
        if turn >= least and time.perf_counter() > stop:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timer.sample(candidates[name], repeats[name]))
    return {name: Samples(tuple(s)) for name, s in seconds.items()}
