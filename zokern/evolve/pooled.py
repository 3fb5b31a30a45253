"""A run whose members are answered by engines: what goes to each engine once, and who answers an iteration."""

import random
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from ..engines import Completions, Engine, Pool, PoolDriver, Sampling
from ..errors import need
from ..estimators.losses import Request
from ..finetune.model import Model
from .prompts import Row
from .rewards import Rewards, mean
from .settings import Settings


class Member(NamedTuple):
    """What a member is worth: the mean reward, its mean by each function, how many tokens it wrote; seconds that its weights took."""

    reward: float
    means: dict[str, float]
    tokens: int
    moving: float


@dataclass(frozen=True)
class Judge:
    """Answers a member beside its engine: rows and rewards go there once, and of a member an iteration's number and its own.

    Attributes:
        rewards: that judge.
        rows, prompts: those that are trained on, and the tokens of each.
        count: prompts an iteration.
        sampling, seed: of the completions; which rows an iteration has follows from the seed as well.
    """

    rewards: Rewards
    rows: Sequence[Row]
    prompts: Sequence[list[int]]
    count: int
    sampling: Sampling
    seed: int

    def __call__(self, engine: Engine, step: int, number: int) -> Member:
        mine = drawn(len(self.rows), self.count, self.seed, step)
        written = engine.generate([self.prompts[i] for i in mine], self.sampling, (self.seed, step, number))
        scores = self.rewards([self.rows[i] for i in mine], written.texts)
        return Member(fmean(scores.values), scores.means, written.tokens, engine.moving)


@dataclass(frozen=True)
class Writer:
    """Answers a part of the held-out prompts beside an engine. prompts: the tokens of each; count: of a part."""

    prompts: Sequence[list[int]]
    count: int
    sampling: Sampling
    seed: tuple[int, ...]

    def __call__(self, engine: Engine, part: int) -> Completions:
        mine = self.prompts[part * self.count : (part + 1) * self.count]
        return engine.generate(mine, self.sampling, (*self.seed, part))

    def written(self, pool: Pool) -> Completions:
        """All of them, at theta."""
        parts = -(-len(self.prompts) // self.count)
        each = pool.measure(self, [()] * parts, [(part,) for part in range(parts)])
        return Completions([text for part in each for text in part.texts], sum(part.tokens for part in each))


class PooledMembers(PoolDriver):
    """Answers an iteration by engines. Attributes as of ``Members``."""

    def __init__(self, pool: Pool, judge: Judge, step: int) -> None:
        super().__init__(pool, judge, step)
        self.began, self.noise, self.generating = time.perf_counter(), 0.0, 0.0

    @property
    def means(self) -> list[float]:
        return [member.reward for member in self.results]

    @property
    def tokens(self) -> int:
        return sum(member.tokens for member in self.results)

    def functions(self, counted: slice = slice(None)) -> dict[str, float]:
        each = self.results[counted]
        return {name: mean([member.means[name] for member in each]) for name in each[0].means} if each else {}

    def number(self, result: Member) -> float:
        return result.reward

    def answer(self, request: Request) -> list[torch.Tensor]:
        answered = super().answer(request)
        self.stop()
        return answered

    def stop(self) -> None:
        """Seconds so far: engines move weights at the same time, so that those are of one of them."""
        seconds = time.perf_counter() - self.began
        self.noise = sum(member.moving for member in self.results) / len(self.pool.engines)
        self.generating = seconds - self.noise


def drawn(rows: int, count: int, seed: int, step: int) -> list[int]:
    """The numbers of an iteration's rows: by seed and step alone, so that a run that goes on draws the same."""
    return random.Random(f"{seed} {step}").sample(range(rows), count)


def pool_of(settings: Settings, loaded: Model, rewards: Rewards, longest: int) -> Pool | None:
    """The engines that the settings ask for, started; None where the model in this process answers.

    Args:
        longest: tokens of the longest prompt.
    """
    if settings.engine == "local":
        return None
    dtype = None if settings.optimizer_settings.get("perturbation") == "copied-own" else torch.float32
    if settings.server:
        module = need("zokern.engines.vllm.server")
        return Pool([module.VLLMServer(url, loaded.tokenizer) for url in settings.server], dtype)
    options = dict(dtype=settings.dtype, trust_remote_code=settings.trust_remote_code, max_model_len=longest + settings.max_new_tokens)
    vllm = need("zokern.engines.vllm.engine")
    make = partial(vllm.VLLM, settings.model, loaded.tokenizer, settings.tensor_parallel, **options | settings.options())
    if settings.engines is None:
        return Pool([make()], dtype)
    for function in rewards.functions.values():
        _send_whole(function)
    return Pool(_by_ray(settings, make), dtype)


def _by_ray(settings: Settings, make: Any) -> list[Any]:
    """As many engines, each in an actor, started at once."""
    ray = need("zokern.engines.ray")
    made, workers = ray.connected(), settings.tensor_parallel
    gpus = workers if made.cluster_resources().get("GPU") else 0
    assert settings.engines
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if workers == 1 else {}  # the actor is a process of its own already

    def start(number: int) -> Any:
        return ray.RayEngine(make, cpus=workers, gpus=gpus, name=f"engine {number}", environment=alone)

    with ThreadPoolExecutor(settings.engines) as threads:
        starting = [threads.submit(start, number) for number in range(settings.engines)]
    engines = [future.result() for future in starting if not future.exception()]
    for future in starting:
        if error := future.exception():
            for engine in engines:
                engine.close()
            raise error
    return engines


def _send_whole(function: Any) -> None:
    """A reward function of the user's files goes to other machines as it is, and not as the name of a module that they may lack."""
    module = sys.modules.get(getattr(getattr(function, "function", None), "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if module and file and not Path(file).is_relative_to(sysconfig.get_paths()["purelib"]) and not module.__name__.startswith("zokern."):
        need("ray.cloudpickle").register_pickle_by_value(module)
