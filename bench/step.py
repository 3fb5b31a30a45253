"""Suite ``step``: what a full-parameter MeZO step of a language model costs beyond its two forward passes, and what training does."""

import copy
import itertools
import statistics
import sys

import torch

import zokern

from . import modes, record
from .cases import Step
from .models import build, loss_of
from .modes import COPIED, OURS, STREAMED
from .oracle import EPS, check_returned, check_step
from .timing import Turn, Wall, interleave, warmed

DEFERRED, PUBLISHED, FORWARDS = "zokern.MeZO, defer", "MeZO as published", "two forwards"
GRAPH, GRAPH_FORWARDS = "zokern.graph", "two forwards, captured"
SGD, ADAM = "SGD, backpropagation", "Adam, backpropagation"
LR = 1e-6
CAPTURED_UP_TO = 2_000_000_000  # parameters: a graph is for models whose kernels take less time than their launches
ALONE_FROM = 5_000_000_000  # parameters: three copies of such a model are more than a GPU should be asked to hold


class PublishedMeZO:
    """The step as the paper's own code takes it: seed, then for each tensor torch.normal and a sum that makes the tensor anew.

    Four passes over the weights, +eps, -2 eps, +eps and the update, each with the same z from the same seed. Written again
    from its description, without the multiplication by a weight decay of zero, which would make it slower.

    Reference: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Algorithm 1.
    """

    kept = ()  # tensors that stay between steps

    def __init__(self, model, lr, eps):
        self.params = [p for _, p in model.named_parameters() if p.requires_grad]
        self.lr, self.eps, self.seeds = lr, eps, itertools.count()

    @torch.no_grad()
    def step(self, closure):
        seed = next(self.seeds)
        plus, projected_grad = self.two_point(closure, seed)
        self.update(seed, projected_grad)
        return plus

    def two_point(self, closure, seed):
        self.perturb(seed, 1)
        plus = closure()
        self.perturb(seed, -2)
        minus = closure()
        projected_grad = ((plus - minus) / (2 * self.eps)).item()
        self.perturb(seed, 1)
        return plus, projected_grad

    def update(self, seed, projected_grad):
        for p, z in self.noise(seed):
            p.data = p.data - self.lr * (projected_grad * z)

    def perturb(self, seed, scaling_factor):
        for p, z in self.noise(seed):
            p.data = p.data + scaling_factor * z * self.eps

    def noise(self, seed):
        torch.manual_seed(seed)
        for p in self.params:
            yield p, torch.normal(mean=0, std=1, size=p.data.size(), device=p.data.device, dtype=p.data.dtype)


def measure(case: Step, device) -> list[dict]:
    """Check, then time. -> records, one a candidate.

    Raises:
        Refused: the check failed. torch.cuda.OutOfMemoryError: the models do not fit.
    """
    torch.set_num_threads(case.threads)
    ours = build(case.model, case.dtype, device)
    size = sum(p.numel() for p in ours.parameters())
    batch = case.batch, case.tokens
    alone = size >= ALONE_FROM
    for mode in (OURS, STREAMED) if alone else (OURS, STREAMED, COPIED):
        check_step(ours.named_parameters(), loss_of(ours, *batch), LR, modes.MODES[mode](ours))
    # Models of their own: the published step gives its weights new memory each time, and so would have zokern look for them; with
    # defer=True an update is pending between steps. Where there is room for one model only, both are done between turns, and no weights
    # are copied.
    theirs, waiting = (ours, ours) if alone else (copy.deepcopy(ours), copy.deepcopy(ours))
    optimizer, streamed = (modes.mezo(mode, ours, LR, EPS) for mode in (OURS, STREAMED))
    deferred = modes.mezo(OURS, waiting, LR, EPS, defer=True)
    published, forwards = PublishedMeZO(theirs, LR, EPS), loss_of(ours, *batch)
    closures = {OURS: forwards, STREAMED: forwards, DEFERRED: loss_of(waiting, *batch), PUBLISHED: loss_of(theirs, *batch)}

    @torch.no_grad()
    def two_forwards():
        forwards(), forwards()

    candidates = {
        FORWARDS: two_forwards,
        OURS: lambda: optimizer.step(closures[OURS]),
        DEFERRED: lambda: deferred.step(closures[DEFERRED]),
        PUBLISHED: lambda: published.step(closures[PUBLISHED]),
        STREAMED: lambda: streamed.step(closures[STREAMED]),
    }
    if alone:
        candidates[OURS] = Turn(candidates[OURS], before=lambda: looked_for(optimizer))
        candidates[STREAMED] = Turn(candidates[STREAMED], before=lambda: looked_for(streamed))
        candidates[DEFERRED] = Turn(candidates[DEFERRED], before=lambda: looked_for(deferred), after=deferred.flush)
    else:
        beside = copy.deepcopy(ours)
        copied, closures[COPIED] = modes.mezo(COPIED, beside, LR, EPS), loss_of(beside, *batch)
        candidates[COPIED] = lambda: copied.step(closures[COPIED])
    # The forwards first, before zokern has made the tables and the memory that it keeps.
    peaks = peaks_of(candidates) if device.type == "cuda" else {}
    without = {}
    if device.type == "cuda" and size <= CAPTURED_UP_TO:
        try:
            candidates |= captured(ours, forwards, two_forwards)
        except Exception as error:
            without[GRAPH] = record.reason(error)
    if case.trained:
        by_name = {SGD: torch.optim.SGD, ADAM: torch.optim.Adam}
        candidates |= {name: trained(theirs, optimizer, closures[PUBLISHED], fused=True) for name, optimizer in by_name.items()}
    run, failed = warmed(candidates, (OURS, PUBLISHED, FORWARDS), record.reason)
    samples = interleave(run, timer := Wall(device, most=1), case.budget)
    noise = [(zokern.NoiseKey(0), EPS)]
    passes = {OURS: lambda: zokern.ops.add_noise_(optimizer.layout, noise), PUBLISHED: lambda: published.perturb(0, 1)}
    # After all that is timed: the profiler, once it was there, may make launches dearer.
    launched = {name: launches(one_pass) if device.type == "cuda" else None for name, one_pass in passes.items()}
    # In pairs: what slows a round down slows down both of its sides.
    of_pair = {name: GRAPH_FORWARDS if name == GRAPH else FORWARDS for name in (*closures, GRAPH) if name in run}
    own = {
        name: statistics.median(step - both for step, both in zip(samples[name].seconds, samples[forward].seconds))
        for name, forward in of_pair.items()
    }

    def describe(name):
        return {
            "suite": "step",
            "op": "step",
            **record.backend(device, name.startswith("zokern")),
            "dtype": case.dtype,
            "n": size,
            "terms": 1,
            "threads": case.threads,
            "timer": timer.name,
            "model": case.model,
            "batch": case.batch,
            "tokens": case.tokens,
            "step_in_forwards": 2 * samples[name].median / samples[of_pair.get(name, FORWARDS)].median,
            "optimizer_s": own.get(name),
            # On a busy machine a difference of two times can come out below zero; its ratio would say nothing.
            "optimizer_speedup": own[PUBLISHED] / own[name] if own.get(name, 0) > 0 else None,
            "peak_bytes": peaks.get(name),
            "peak_over_forwards_bytes": peaks[name] - peaks[FORWARDS] if peaks.get(name) else None,
            "launches_per_pass": launched.get(name),
        }

    lost = [record.failed("step", case, reason, device, name) for name, reason in (without | failed).items()]
    return record.lines(device, samples, FORWARDS, PUBLISHED, describe) + lost


def looked_for(optimizer):
    """zokern finds the weights where the published step has left them."""
    optimizer.layout.tables()


def trained(model, optimizer, closure, **how):
    """A step by backpropagation, its states in the dtype of the weights."""
    optimizer = optimizer(model.parameters(), lr=LR, **how)

    def call():
        try:
            closure().backward()
            optimizer.step()
        finally:
            optimizer.zero_grad()

    return call


def captured(model, closure, two_forwards) -> dict:
    """The step and the two forwards as CUDA graphs."""
    optimizer = modes.mezo(OURS, model, LR, EPS)
    step = zokern.graph(optimizer, closure)
    forwards = torch.cuda.CUDAGraph()
    with torch.cuda.graph(forwards):
        two_forwards()
    check_returned(optimizer.layout, step, moved=lambda: LR * float(optimizer.last.projected_grad.abs()))
    return {GRAPH: step, GRAPH_FORWARDS: forwards.replay}


def peaks_of(candidates) -> dict[str, int]:
    """Peak memory by candidate, less what those before it have kept for their next call."""
    peaks, before = {}, torch.cuda.memory_allocated()
    for name, call in candidates.items():
        kept = torch.cuda.memory_allocated() - before
        peaks[name] = peak(call) - kept
    return peaks


def peak(call) -> int:
    """Most bytes allocated at once during a call, with all that lives on the device anyway."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def launches(call) -> int | None:
    """Kernels and copies that a call queues on the GPU; None where the profiler cannot say, with the reason printed."""
    call()
    torch.cuda.synchronize()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
    except Exception as error:
        print(f"bench: launches are not counted: {record.reason(error)}", file=sys.stderr)
        return None
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
