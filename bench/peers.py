"""Suite ``peers``: the published steps of others beside zokern's, of one model on one batch in one run: time, memory, drift and state."""

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

import zokern
from zokern.estimators.partition import kept_by_magnitude
from zokern.layout import keep_threshold
from zokern.noise.reference import masked_noise
from zokern.noise.spec import ANCHOR, PERTURBATION, SIGNS

from . import explicit, modes, published, record, smollm2
from .explicit import ANCHORS, BETAS, BLOCKS, DELTA, LR_FULL, MEMBERS, MOMENTUM, STEPS, Small, flat
from .memory import Count
from .models import DTYPES, build, loss_of
from .optimizers import state_of, thirds
from .oracle import EPS, check_step
from .timing import Turn, Wall, interleave

FORWARD, THEIRS = "one forward", "as published"
LR = 1e-7  # of what is timed
HALF = 0.5  # the sparsity


@dataclass(frozen=True)
class Beside:
    """One published step and zokern's on a model: rounds for ``budget`` seconds, at least ``least``; ``steps`` of them with lr = 0."""

    peer: str
    model: str
    dtype: str
    batch: int
    tokens: int
    threads: int
    budget: float
    least: int
    steps: int


@dataclass(frozen=True)
class Peer:
    """A published step, zokern's, and what both must lead to.

    Attributes:
        theirs: (model, lr) -> the published step.
        ours: (model, lr, mode) -> zokern's optimizer; a mode is a key of ``modes.MODES``.
        form: the rule in float64, of ``explicit``.
        draws: number of zokern's step -> (purpose, probe, block) of its directions; block None: all.
        settled: steps after which all state is there and no step needs more memory than one before.
        timed: of steps that alternate, the kind that is timed, "anchor" or "minibatch".
        waves: of the loss that both are checked on.
    """

    theirs: Callable
    ours: Callable
    form: Callable
    draws: Callable = lambda t: [(PERTURBATION, 0, None)]
    settled: int = 1
    timed: str = ""
    waves: float = 20.0

    def made(self, model, lr, mode):
        """zokern's optimizer in a mode, or the published step, None."""
        return self.ours(model, lr, mode) if mode else self.theirs(model, lr)


def theirs(step, more=lambda model, lr: {}, **settings):
    return lambda model, lr: step(model, lr, EPS, **settings, **more(model, lr))


def ours(optimizer, more=lambda model, lr: {}, radius="eps", **settings):
    def made(model, lr, mode):
        given = {"lr": lr, radius: EPS, "perturbation": modes.MODES[mode](model), **settings, **more(model, lr)}
        return optimizer(model.parameters(), **given)

    return made


def rate_at_anchors(model, lr):
    return {"lr_full": lr * LR_FULL / explicit.LR}


def kept(model, lr):
    """The share of each tensor that is left when the smallest half of all weights go, for both the same."""
    (shares,) = kept_by_magnitude([{"params": list(model.parameters())}], HALF)
    return {"keep": shares}


def blocks(model, lr):
    return {"blocks": thirds(model.parameters())}


def svrg(timed):
    return Peer(
        theirs(published.MeZOSVRG, rate_at_anchors, q=ANCHORS),
        ours(zokern.MeZOSVRG, rate_at_anchors, q=ANCHORS),
        explicit.svrg,
        lambda t: [(PERTURBATION if t % ANCHORS else ANCHOR, 0, None)],
        settled=2 * ANCHORS,
        timed=timed,
    )


def members(purpose):
    return lambda t: [(purpose, probe, None) for probe in range(MEMBERS)]


sgd = ours(zokern.MeZO)
PEERS = {
    "MeZO": Peer(theirs(published.MeZO), sgd, explicit.sgd),
    "MeZO-SVRG, anchor": svrg("anchor"),
    "MeZO-SVRG, minibatch": svrg("minibatch"),
    "ZO-LLM, SGD": Peer(theirs(published.ZOLLM), sgd, explicit.sgd),
    "ZO-LLM, sign": Peer(theirs(published.ZOLLMSign), ours(zokern.ZOSign, form="scalar"), explicit.sign),
    "ZO-LLM, conservative": Peer(  # on so uneven a loss its steps go down, up and nowhere
        theirs(published.ZOLLMConservative), ours(zokern.ZOConservative), explicit.conservative, waves=85.0
    ),
    "ZO-LLM, momentum": Peer(
        theirs(published.ZOLLM, momentum=MOMENTUM), ours(zokern.ZOMomentum, momentum=MOMENTUM), explicit.momentum, settled=2
    ),
    "ZO-LLM, Adam": Peer(
        theirs(published.ZOLLM, optimizer=torch.optim.Adam, betas=BETAS),
        ours(zokern.ZOAdam, betas=BETAS, delta=DELTA),
        explicit.adam,
        settled=2,
    ),
    "ZO-LLM, half masked": Peer(theirs(published.ZOLLM, kept), ours(zokern.MeZO, sparsity=HALF), explicit.sgd),
    "ZO-LLM, 3 blocks": Peer(
        theirs(published.ZOLLMBlocks, blocks),
        ours(zokern.MeZO, blocks),
        explicit.block_wise,
        lambda t: [(PERTURBATION, 0, block) for block in range(BLOCKS)],
    ),
    "FZOO": Peer(theirs(published.FZOO, members=MEMBERS), ours(zokern.FZOO, q=MEMBERS), explicit.fzoo, members(SIGNS)),
    "LOZO": Peer(theirs(published.LOZO), sgd, explicit.sgd, settled=2),  # which zokern has not: beside it is MeZO
    "ES at scale": Peer(
        theirs(published.EvolutionStrategies, members=MEMBERS),
        ours(zokern.EvolutionStrategies, radius="sigma", population=MEMBERS, maximize=True),
        explicit.evolution_strategies,
        members(PERTURBATION),
    ),
}
LARGE = ("MeZO", "ZO-LLM, Adam", "LOZO")  # those that a CPU times with a larger model as well


def cases(device, quick=False, dtypes=None, threads=None) -> list[Beside]:
    threads = threads or torch.get_num_threads()
    if quick:
        sized = [(names, "tiny", dtype, 1, 8, threads, 0.0, 3, 10) for names, dtype in ((PEERS, "fp32"), (LARGE, "bf16"))]
    elif device.type == "cuda":
        sized = [(PEERS, model, "bf16", 16, 400, threads, 2.0, 5, 200) for model in ("OPT-125M", "OPT-1.3B")]
    else:
        sized = [(PEERS, "OPT-12M", dtype, 2, 32, threads, 2.0, 5, 200) for dtype in ("fp32", "bf16")]
        sized += [(LARGE, smollm2.NAME, dtype, 2, 32, threads, 0.0, 3, 200) for dtype in ("fp32", "bf16")]
    return [Beside(name, *size) for names, *size in sized for name in names if not dtypes or size[1] in dtypes]


class Counted:
    """A closure that counts its calls."""

    def __init__(self, closure):
        self.closure, self.calls = closure, 0

    def __call__(self):
        self.calls += 1
        return self.closure()


class Candidate:
    """A step of an optimizer on a model of its own.

    Attributes:
        over_weights: bytes, the most that were there beside the weights, state included, when it took its first steps.
        forwards: passes of the model in the step that is timed.
        turn: that step, and what is taken around it.
    """

    def __init__(self, peer, mode, model, closure, device):
        self.peer, self.closure, calls = peer, Counted(closure), [0]

        def make_it():
            self.optimizer = peer.made(model, LR, mode)

        def begin():
            for _ in range(peer.settled):
                self.step()
                calls.append(self.closure.calls)

        self.over_weights = most(begin, model, device, make_it)
        last = -ANCHORS if peer.timed == "anchor" else -1
        self.forwards = calls[last] - calls[last - 1]
        around = {"": {}, "anchor": {"after": self.step}, "minibatch": {"before": self.step}}
        self.turn = Turn(self.step, **around[peer.timed])

    def step(self):
        step(self.optimizer, self.closure, self.peer)

    @property
    def state_bytes(self) -> int:
        kept = self.optimizer.kept if hasattr(self.optimizer, "kept") else state_of(self.optimizer)
        return sum(t.numel() * t.element_size() for t in kept)


def step(optimizer, closure, peer):
    """MeZO-SVRG's take a closure of the full batch as well, here the same."""
    optimizer.step(*(closure,) * (2 if peer.timed else 1))


def most(call, model, device, make=lambda: None) -> int:
    """Bytes beside the weights during a call, with what ``make`` has left before it: of a GPU by its allocator, elsewhere the tensors that
    operations make, added up."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        make()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Count(model.parameters()) as count:
        before = count.now
        make()
        count.most = count.now
        call()
    return count.most - before


def measure(case: Beside, device) -> list[dict]:
    """Check, then measure. -> records, one a candidate.

    Raises:
        Refused: the published step, or zokern's, leads elsewhere than explicit z in float64.
    """
    torch.set_num_threads(case.threads)
    peer, model = PEERS[case.peer], build(case.model, case.dtype, device)
    batch = case.batch, case.tokens
    ways = [modes.OURS] if case.dtype == "fp32" else [modes.OURS, modes.STREAMED]
    check_published(peer, device)
    for mode in ways:
        check_ours(peer, mode, device)
        if peer.ours is sgd:  # the same passes as the others', on this model
            check_step(model.named_parameters(), loss_of(model, *batch), LR, modes.MODES[mode](model))
    candidates = {THEIRS: None} | {named(peer, mode): mode for mode in ways}
    forward = torch.no_grad()(loss_of(model, *batch))
    least = most(forward, model, device)
    found = {}
    for name, mode in candidates.items():
        own = copy.deepcopy(model)
        found[name] = Candidate(peer, mode, own, loss_of(own, *batch), device)
    turns = {FORWARD: forward} | {name: candidate.turn for name, candidate in found.items()}
    samples = interleave(turns, timer := Wall(device, most=1), case.budget, case.least)
    # In pairs: what slows a round down slows down both of its sides.
    own_part = {
        name: statistics.median(
            whole - candidate.forwards * once for whole, once in zip(samples[name].seconds, samples[FORWARD].seconds, strict=True)
        )
        for name, candidate in found.items()
    }
    size = sum(p.numel() for p in model.parameters())

    def describe(name):
        common = {
            "suite": "peers",
            "op": case.peer,
            **record.backend(device, name.startswith("zokern")),
            "dtype": case.dtype,
            "n": size,
            "threads": case.threads,
            "timer": timer.name,
            "model": case.model,
            "batch": case.batch,
            "tokens": case.tokens,
            "weights_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "eps": EPS,
            "share_of_floor": None,
        }
        if name == FORWARD:
            return common | {"forwards": 1, "speedup": None}
        candidate, once = found[name], samples[FORWARD].median
        return (
            common
            | {
                "forwards": candidate.forwards,
                "forward_s": once,
                "step_in_forwards": samples[name].median / once,
                "over_forwards": samples[name].median / (candidate.forwards * once),
                "optimizer_s": own_part[name],
                # On a busy machine a difference of two times can come out below zero; its ratio would say nothing.
                "optimizer_speedup": own_part[THEIRS] / own_part[name] if min(own_part[THEIRS], own_part[name]) > 0 else None,
                "peak_over_forward_bytes": candidate.over_weights - least,
                "state_bytes": candidate.state_bytes,
            }
            | drift(case.peer, candidates[name], case.dtype, case.steps, device)
        )

    return record.lines(device, samples, FORWARD, THEIRS, describe)


def named(peer, mode) -> str:
    optimizer = type(peer.ours(Small(torch.float32), LR, modes.OURS)).__name__
    return f"zokern.{optimizer}" + mode.removeprefix(modes.OURS)


@cache
def drift(name, mode, dtype, steps, device) -> dict:
    """How far, rms in units of eps, a few random weights are from where they were after steps with lr = 0."""
    peer, model = PEERS[name], Small(DTYPES[dtype]).to(device)
    before, optimizer = flat(model.weights), peer.made(model, 0.0, mode)
    for _ in range(steps):
        step(optimizer, model, peer)
    off = (flat(model.weights) - before).square().mean()
    return {"steps": steps, "drift_over_eps": math.sqrt(off) / EPS}


def check_published(peer, device) -> None:
    """In float64, with the z that its passes make."""
    model = Small(waves=peer.waves).to(device)
    optimizer = peer.theirs(model, explicit.LR)
    drawn = explicit.recorded(optimizer)

    def directions():
        return [flat(drawn[seed].get(p, torch.zeros_like(p)) for p in model.weights) for seed in sorted(drawn)]

    explicit.check(lambda: step(optimizer, model, peer), model, peer.form, directions)


def check_ours(peer, mode, device) -> None:
    """In float32, with z by the NumPy oracle."""
    model = Small(torch.float32, peer.waves).to(device)
    optimizer = peer.ours(model, explicit.LR, mode)
    layout = optimizer.layout

    def z(key, block):
        for p, first, keep, own in zip(layout.params, layout.first, layout.keep, layout.block):
            noise = torch.from_numpy(masked_noise(key, keep_threshold(keep), first, p.numel()))
            yield noise if block in (None, own) else torch.zeros_like(noise)

    def directions():
        return [flat(z(zokern.NoiseKey.of(0, t, *key), block)) for t in range(STEPS) for *key, block in peer.draws(t)]

    explicit.check(lambda: step(optimizer, model, peer), model, peer.form, directions)
