"""What a pass of noise costs here, beside a copy of the same tensor: each reads every element once, and writes it once."""

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

from .. import ops
from ..kernels import use_backend
from ..layout import Layout
from ..noise import NoiseKey
from .exact import REFERENCE
from .finding import OK, Finding
from .machine import available, interpreted, threads

DTYPES = (torch.float32, torch.bfloat16)
ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}  # more than caches hold
CALLS = {"cpu": 1, "cuda": 8}  # in one time: a GPU's go on while the next one is launched
SECONDS = 2.0  # of one backend and dtype


def speed(seconds: float = 10.0, elements: int | None = None) -> Iterator[Finding]:
    """``ops.add_noise_`` of each compiled backend that is available, and ``copy_``, in turn.

    Args:
        seconds: about how long all of it takes, the first calls aside, in which Triton compiles. Default 10.
        elements: of the tensor. Default None: more than caches hold, a thirty-second of what a GPU has free at most.
    """
    here = {name: module for name, module in available().items() if name != REFERENCE and not interpreted(module)}
    each = min(SECONDS, seconds / max(len(here) * len(DTYPES), 1))
    for name, module in here.items():
        for dtype in DTYPES:
            yield _measured(name, module.devices()[0], dtype, each, elements)


def _measured(name: str, device: str, dtype: torch.dtype, seconds: float, elements: int | None) -> Finding:
    count = elements or ELEMENTS[device]
    if device == "cuda":
        count = min(count, torch.cuda.mem_get_info()[0] // 32)
    theta = torch.zeros(count, dtype=dtype, device=device)
    copy, layout, terms = torch.empty_like(theta), Layout([theta]), [(NoiseKey(1), 1e-3)]
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: copy.copy_(theta),
        "noise": lambda: ops.add_noise_(layout, terms),
    }
    taken: dict[str, list[float]] = {what: [] for what in calls}
    with use_backend(name):
        for call in calls.values():  # the first: memory is touched, Triton compiles
            _seconds(call, device)
        end = time.perf_counter() + seconds
        while not taken["noise"] or time.perf_counter() < end:
            for what, call in calls.items():
                taken[what].append(_seconds(call, device))
    noise, of_copy = median(taken["noise"]), median(taken["copy"])
    moved = 2 * theta.nbytes / 1e9
    numbers: dict[str, float] = {
        "elements": count,
        "ns_per_element": noise / count * 1e9,
        "gb_per_second": moved / noise,
        "copy_gb_per_second": moved / of_copy,
        "share_of_copy": of_copy / noise,
    }
    where = threads() if device == "cpu" else torch.cuda.get_device_name()
    says = (
        f"{numbers['share_of_copy']:.0%} of a copy's speed: {numbers['gb_per_second']:.3g} of {numbers['copy_gb_per_second']:.3g} GB/s, "
        f"{numbers['ns_per_element']:.2g} ns an element, {where}"
    )
    return Finding(f"{name} {str(dtype).removeprefix('torch.')}", OK, says, numbers=numbers)


def _seconds(call: Callable[[], object], device: str) -> float:
    """How long a call takes."""
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun.record()
    for _ in range(CALLS[device]):
        call()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3 / CALLS[device]
