"""Suite ``populations``: what an iteration of evolution strategies costs beyond what its members write, beside the published way: the
generator seeded, ``torch.randn`` for each tensor, three times a member: to its perturbed weights, back, and in the update."""

import random
import statistics
import time
from dataclasses import asdict, dataclass

import torch

import zokern
from zokern.noise import reference

from . import record, smollm2
from .models import build
from .oracle import Refused

OURS, PUBLISHED, WRITING = "zokern.EvolutionStrategies", "ES as published", "generation"
LR, SIGMA = 5e-4, 1e-3


@dataclass(frozen=True)
class Iteration:
    """The passes of an iteration of ``members``, ``rounds`` times, and once what they write: each answers ``rows`` prompts of ``tokens``
    with ``new`` tokens."""

    model: str
    dtype: str
    members: int
    rows: int
    tokens: int
    new: int
    rounds: int


def cases(device, quick=False, dtypes=None) -> list[Iteration]:
    if quick:
        return [Iteration("tiny", "fp32", 4, 2, 4, 2, 1)]
    of_model = ("OPT-1.3B", 30, 200, 64, 64, 3) if device.type == "cuda" else (smollm2.NAME, 30, 64, 24, 16, 1)
    model, *sizes = of_model
    return [Iteration(model, dtype, *sizes) for dtype in ("fp32", "bf16") if not dtypes or dtype in dtypes]


class PublishedES:
    """The iteration as the code of "Evolution Strategies at Scale" takes it, written again from its description. In 16 bits its weights
    drift: the noise is added, and subtracted again, in their dtype.

    Reference: Qiu et al. 2025, "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning", Algorithm 2.
    """

    def __init__(self, params):
        self.params = list(params)

    @torch.no_grad()
    def step(self, members, evaluate):
        rewards = []
        for seed in range(members):
            self.add(seed, SIGMA)
            rewards.append(evaluate())
            self.add(seed, -SIGMA)
        mean, deviation = statistics.fmean(rewards), statistics.pstdev(rewards)
        for seed, reward in enumerate(rewards):
            self.add(seed, LR / members * (reward - mean) / (deviation + 1e-8))

    def add(self, seed, c):
        for p in self.params:
            generator = torch.Generator(p.device).manual_seed(seed)
            p.add_(torch.randn(p.shape, dtype=p.dtype, device=p.device, generator=generator), alpha=c)


def measure(case: Iteration, device) -> list[dict]:
    """-> records, one a candidate.

    Raises:
        Refused: zokern's iteration leads elsewhere than its equation says.
    """
    from zokern.evolve import Generator

    model = build(case.model, case.dtype, device)
    model.config.use_cache = True
    check(build("tiny", "fp32", torch.device("cpu")))
    size, rewards = sum(p.numel() for p in model.parameters()), random.Random(0)
    ids = torch.randint(3, 100, (case.rows, case.tokens), generator=torch.Generator().manual_seed(0)).tolist()
    writer = Generator(model, Tokens(), case.new, batch_size=case.rows)
    ours = zokern.EvolutionStrategies(
        model.parameters(), lr=LR, sigma=SIGMA, population=case.members, maximize=True, perturbation="in-place"
    )
    theirs = PublishedES(model.parameters())
    seconds = {WRITING: [], OURS: [], PUBLISHED: []}
    for round in range(case.rounds + 1):  # the first one warms up
        for name, run in (
            (OURS, lambda: ours.step(rewards.random)),
            (PUBLISHED, lambda: theirs.step(case.members, rewards.random)),
            (WRITING, lambda: [writer(ids) for _ in range(case.members)]),
        ):
            if name != WRITING or round == case.rounds:
                seconds[name].append(timed(run, device))
    noise = {name: seconds[name][1:] for name in (OURS, PUBLISHED)} | {WRITING: seconds[WRITING]}
    medians = {name: statistics.median(each) for name, each in noise.items()}
    here = record.where(device)
    return [
        dict.fromkeys(record.FIELDS)
        | {"suite": "populations", "op": "iteration", "candidate": name, **record.backend(device, name == OURS)}
        | {"n": size, "threads": torch.get_num_threads(), "seconds": each, "median_s": medians[name], "min_s": min(each)}
        | {"share_of_generation": medians[name] / medians[WRITING], "speedup": medians[PUBLISHED] / medians[name]}
        | asdict(case)
        | here
        for name, each in noise.items()
    ]


def timed(run, device) -> float:
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def check(model) -> None:
    """One iteration of three members against theta + (lr / N) sum_n s_n z_n in float64."""
    optimizer = zokern.EvolutionStrategies(model.parameters(), lr=LR, sigma=SIGMA, population=3, maximize=True)
    layout, given = optimizer.layout, [1.0, 4.0, 2.0]
    before, rewards = [p.detach().double().clone() for p in layout.params], iter(given)
    optimizer.step(lambda: next(rewards))
    mean, deviation = statistics.fmean(given), statistics.pstdev(given)
    for p, first, theta in zip(layout.params, layout.first, before):
        for n, reward in enumerate(given):
            z = torch.from_numpy(reference.normal(zokern.NoiseKey(0, 0, n), first, p.numel())).double().reshape(p.shape)
            theta = theta + LR / 3 * (reward - mean) / (deviation + 1e-8) * z
        if not torch.allclose(p.detach().double(), theta, rtol=0, atol=1e-6):
            raise Refused("zokern.EvolutionStrategies is off its equation")


class Tokens:
    """What a Generator needs of a tokenizer: here texts do not matter, and none ends early."""

    pad_token_id, eos_token_id = 0, None

    def decode(self, tokens, skip_special_tokens=True):
        return ""
