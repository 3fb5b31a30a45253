"""Suite ``replay``: a logged run applied again, weights read and written once for K steps: as K terms of one pass, which skips the
roundings on the way, and as the three passes in place that each step of MeZO made, by ``replay_``, to the very bits of training; and
from the log of a run, all that ``Trajectory.replay`` does included."""

import inspect
import tempfile
import time
from pathlib import Path

import torch

import zokern

from . import record
from .cases import Replay
from .models import DTYPES, shapes
from .oracle import EPS, SLICE, Refused, expected
from .timing import Wall, interleave

REPLAY, TORCH = "zokern.replay", "torch.normal + add_, step by step"
TOGETHER = inspect.signature(zokern.Trajectory.replay).parameters["passes_per_sweep"].default
LOGGED = f"zokern.Trajectory.replay, {TOGETHER} passes a call"
SPREAD = 1e-6  # of the logged coefficients, about lr times the projected gradient of a real run
TOO_LONG = 10.0  # seconds a round of the torch way, above which it applies a sixteenth of the steps and its time is scaled


def measure(case: Replay, device) -> list[dict]:
    """Check, then time the whole run in passes of each width. -> records, one a width, and the torch way.

    Raises:
        Refused: the weights are not the oracle's.
    """
    torch.set_num_threads(case.threads)
    params = [torch.zeros(shape, dtype=DTYPES[case.dtype], device=device) for shape in shapes(case.model)]
    layout = zokern.Layout(params)
    generator = torch.Generator().manual_seed(0)
    coefficients = (SPREAD * torch.randn(case.steps, generator=generator)).tolist()
    run = [(zokern.NoiseKey(0, step), c) for step, c in enumerate(coefficients)]

    def in_passes(width):
        def call():
            for step in range(0, case.steps, width):
                zokern.ops.add_noise_(layout, run[step : step + width])

        return call

    def replayed(width):
        passes = [three(key, c) for key, c in run]

        def call():
            for step in range(0, case.steps, width):
                zokern.ops.replay_(layout, [entry for entries in passes[step : step + width] for entry in entries])

        return call

    candidates = {f"zokern, {width} a pass": in_passes(width) for width in case.widths}
    for width, call in zip(case.widths, candidates.values()):
        check(layout, [run[step : step + width] for step in range(0, case.steps, width)], call)
    for width in case.replayed:
        candidates[f"{REPLAY}, {width} steps a call"] = replayed(width)
        check(layout, [terms for key, c in run for terms, _ in three(key, c)], candidates[f"{REPLAY}, {width} steps a call"])
    if case.logged:
        candidates[LOGGED] = from_log(params, case.logged)
    few = max(1, case.steps // 16) if torch_seconds(params, coefficients[0]) * case.steps > TOO_LONG else case.steps
    candidates[TORCH] = lambda: [torch_step(params, c) for c in coefficients[:few]]
    samples = interleave(candidates, timer := Wall(device, most=1), case.budget, least=3)
    n, floor = sum(p.numel() for p in params), next(iter(candidates))
    steps = dict.fromkeys(candidates, case.steps) | {TORCH: few, LOGGED: case.logged}

    def describe(name):
        rate = {which: steps[which] / samples[which].median for which in (name, floor, TORCH)}
        return {
            "suite": "replay",
            "op": "replay",
            **record.backend(device, name != TORCH),
            "dtype": case.dtype,
            "n": n,
            "terms": 1 if name == TORCH else int(next(word for word in name.split() if word.isdigit())),  # steps in one read and write
            "threads": case.threads,
            "timer": timer.name,
            "model": case.model,
            "steps": steps[name],
            "steps_per_second": rate[name],
            "ns_per_element": 1e9 / rate[name] / n,
            # Of the steps a second: the times may be of different numbers of steps.
            "share_of_floor": rate[name] / rate[floor],
            "speedup": rate[name] / rate[TORCH],
        }

    return record.lines(device, samples, floor, TORCH, describe)


def from_log(tensors, steps):
    """Train from zero on losses drawn at random, and replay the log to the bits of that. -> the replay, as a call."""
    generator = torch.Generator(tensors[0].device).manual_seed(0)
    params = [torch.nn.Parameter(t.zero_()) for t in tensors]
    with tempfile.TemporaryDirectory() as folder:
        optimizer = zokern.MeZO(params, lr=1e-6, eps=EPS, perturbation="in-place")
        with zokern.record(optimizer, Path(folder) / "run.jsonl", every=steps):
            for _ in range(steps):
                optimizer.step(lambda: torch.randn((), device=tensors[0].device, generator=generator) * EPS)
        run = zokern.Trajectory.read(Path(folder) / "run.jsonl")
    trained = [t.clone() for t in tensors]

    def call():
        for t in tensors:
            t.zero_()
        run.replay(tensors)

    call()
    if not all(map(torch.equal, tensors, trained)):
        raise Refused(f"replaying a log of {steps} steps gives other weights than training did")
    return call


def three(key, c):
    """The passes of a two-point step: to +eps, to -eps, and back with the update."""
    return ([(key, EPS)], 1.0), ([(key, -2 * EPS)], 1.0), ([(key, EPS + c)], 1.0)


def check(layout, passes, call):
    """The last of the last parameter's elements, from zero, against the oracle in the same passes, bit for bit."""
    theta, first = layout.params[-1].view(-1), layout.first[-1]
    theta.zero_()
    call()
    start = max(0, len(theta) - SLICE)
    right = torch.zeros(len(theta) - start, dtype=theta.dtype)
    for terms in passes:
        right = expected(right, first + start, terms)
    if not torch.equal(theta[start:].cpu(), right):
        raise Refused(f"replaying in {len(passes)} passes gives other weights than the oracle's")


def torch_step(params, c):
    for p in params:
        p.add_(torch.normal(0.0, 1.0, p.shape, dtype=p.dtype, device=p.device), alpha=c)


def torch_seconds(params, c) -> float:
    """Of one step, at a glance."""
    wait = torch.cuda.synchronize if params[0].is_cuda else lambda: None
    torch_step(params, c)
    wait()
    begin = time.perf_counter()
    torch_step(params, c)
    wait()
    return time.perf_counter() - begin
