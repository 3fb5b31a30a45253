"""Before a run: whatever can be refused is refused here, and all that the iterations need is loaded. Nothing is written."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..engines import Generator, Pool, Sampling
from ..engines.generate import ends_of
from ..errors import BadInput, need, refusing, require
from ..estimators import Copied, perturbation_of
from ..finetune import output
from ..finetune.model import Model, causal, settle_hub
from ..finetune.optimizers import layers_of, starting_rates
from ..finetune.options import shown
from ..finetune.runs import refuse_within, versions
from ..optim import ZerothOrder, named
from .members import Members, by_function, judged
from .pooled import Judge, PooledMembers, Writer, drawn, pool_of
from .prompts import Row, encode
from .prompts import load as load_rows
from .rewards import Function, Rewards, mean
from .settings import Settings

PACKAGES = ("transformers", "safetensors", "matplotlib")  # asked for before any work, not after it
HELD_OUT = (1 << 32) - 1  # in place of an iteration's number: the seed by which held-out rows are answered


@dataclass
class Run:
    """A run that is ready to begin.

    Attributes:
        settings: with all that follows from them filled in, the learning rate included.
        path: its folder, absolute.
        loaded: the model, before the first iteration.
        generator, rewards: what writes in this process, and what judges.
        pool: the engines that write instead; None: there are none.
        data: what the rows are called. train, held_out: rows; prompts: of each row the tokens, by the row.
        resumed: what run.json said of a run that goes on; None of a new one.
        began: time.perf_counter() at the beginning.
        before: mean rewards on the held-out rows, of the model as loaded.
        steps_made: iterations of this process.
    """

    settings: Settings
    path: Path
    loaded: Model
    generator: Generator
    rewards: Rewards
    data: str
    train: list[Row]
    held_out: list[Row]
    prompts: dict[int, list[int]]
    resumed: dict[str, Any] | None
    began: float
    pool: Pool | None = None
    before: dict[str, float] = field(default_factory=dict)
    steps_made: int = 0

    def tokens(self, rows: Sequence[Row]) -> list[list[int]]:
        return [self.prompts[id(row)] for row in rows]

    @cached_property
    def sampling(self) -> Sampling:
        settings, config = self.settings, self.loaded.model.generation_config
        ends = tuple(sorted(ends_of(self.loaded.tokenizer, config)))
        return Sampling(settings.max_new_tokens, settings.temperature, settings.stop, ends)

    @cached_property
    def judge_there(self) -> Judge:
        """What answers members beside engines."""
        settings = self.settings
        return Judge(self.rewards, self.train, self.tokens(self.train), settings.rows, self.sampling, settings.seed)

    @cached_property
    def writer_there(self) -> Writer:
        """What answers held-out prompts beside engines."""
        return Writer(self.tokens(self.held_out), self.settings.rows, self.sampling, (self.settings.seed, HELD_OUT))

    def members(self, step: int) -> Members | PooledMembers:
        """Who answers an iteration."""
        settings = self.settings
        if self.pool:
            return PooledMembers(self.pool, self.judge_there, step)
        rows = [self.train[i] for i in drawn(len(self.train), settings.rows, settings.seed, step)]
        return Members(self.generator, self.rewards, rows, self.tokens(rows), (settings.seed, step))

    def judge(self) -> dict[str, float]:
        """Of the weights as they are: {"reward": mean over the held-out rows that have one, "tokens": mean of a completion, and those of
        ``by_function``}."""
        if self.pool:
            written = self.writer_there.written(self.pool)
            scores = self.rewards(self.held_out, written.texts)
        else:
            with self.loaded.computing():
                seed = self.settings.seed, HELD_OUT
                written, scores = judged(self.generator, self.rewards, self.held_out, self.tokens(self.held_out), seed)
        count = len(self.held_out)
        return {"reward": mean(scores.values), "tokens": written.tokens / count, **by_function(scores.means)}

    def record(self) -> dict[str, Any]:
        """What run.json says of a run that begins."""
        return {
            "command": output.EVOLVE,
            "settings": self.settings.record(),
            "rewards": list(self.rewards.functions),
            "digest": self.digest(),
            "folder": str(Path.cwd()),
            **versions(),
            "before": self.before,
        }

    def initial(self) -> dict[str, torch.Tensor]:
        """The parameters that the model as loaded does not have, by name: those of an adapter."""
        return {name: p for name, p in self.loaded.model.named_parameters() if name in self.loaded.new}

    def digest(self) -> str:
        """16 hex digits of what is trained on and judged by, in its order."""
        rows = [[(row.prompt, row.columns) for row in rows] for rows in (self.train, self.held_out)]
        return hashlib.sha256(json.dumps(rows, default=repr).encode()).hexdigest()[:16]

    def close(self) -> None:
        """End the engines."""
        if self.pool:
            self.pool.close()

    @property
    def method(self) -> str:
        """What is trained, in words."""
        return " + ".join(self.settings.adapter)


def prepare(
    settings: Settings,
    path: Path,
    say: Callable[[str], None],
    functions: Sequence[Function] = (),
    resumed: dict[str, Any] | None = None,
) -> Run:
    """Load rows, rewards and model, and judge the model as it is.

    Args:
        settings: checked.
        path: the folder of the run, which is this process's.
        functions: rewards in place of the settings'.
        resumed: what run.json says of a run that goes on. Default None: it is a new one.
    """
    began = time.perf_counter()
    if not resumed:
        refuse_within(settings, path)
    rewards = rewards_of(settings, functions, resumed)
    settle_hub(False, settings.model, settings.data, settings.eval_data)
    require(*PACKAGES)
    settings = with_rates(settings)
    assert settings.data
    name, train, held_out = load_rows(settings.data, settings.prompt, settings.eval_data, settings.seed)
    rewards.check([*train, *held_out])
    if settings.rows > len(train):
        raise BadInput(f"--rows {settings.rows} is more than the {len(train)} training rows: pass at most {len(train)}")
    loaded = causal(settings)
    generator = generator_of(settings, loaded)
    both = [*train, *held_out]
    encoded = encode(both, loaded.tokenizer, settings.max_new_tokens, generator.positions)
    prompts = {id(row): tokens for row, tokens in zip(both, encoded)}
    run = Run(settings, path, loaded, generator, rewards, name, train, held_out, prompts, resumed, began)
    if resumed and resumed["digest"] != run.digest():
        raise BadInput(f"--resume {str(path)!r}: the rows are not those that the run began with: restore --data, or begin another run")
    run.pool = pool_of(settings, loaded, rewards, max(map(len, encoded)))
    try:
        _begin(run, say)
    except BaseException:
        run.close()
        raise
    return run


def _begin(run: Run, say: Callable[[str], None]) -> None:
    """Judge the model as it is."""
    settings, resumed, rewards = run.settings, run.resumed, run.rewards
    optimizer_of(settings, run.loaded.model, run.pool)  # so that it is refused now
    say(_described(run))
    run.before = resumed["before"] if resumed else run.judge()
    if math.isnan(run.before["reward"]):
        cure = "correct them, or pass --eval-data with rows that they can judge"
        raise BadInput(f"the rewards {', '.join(rewards.functions)} are NaN for every held-out row: {cure}")


def rewards_of(settings: Settings, functions: Sequence[Function], resumed: dict[str, Any] | None = None) -> Rewards:
    """The rewards of the settings, or these functions in their place."""
    given: Sequence[Any] = functions or settings.reward
    if not given and resumed:
        began = ", ".join(map(shown, resumed["rewards"]))
        raise BadInput(f"the run began with rewards given in Python, {began}: pass them to zokern.evolve.resume(folder, rewards=[...])")
    if not given:
        raise BadInput("--reward is missing: pass one or more, such as exact:answer or my_module:my_function")
    rewards = Rewards(given, settings.reward_weights, [resumed["folder"]] if resumed and resumed.get("folder") else [])
    if resumed and resumed["rewards"] != list(rewards.functions):
        then, now = ", ".join(resumed["rewards"]), ", ".join(rewards.functions)
        raise BadInput(f"the run began with the rewards {then}, and here are {now}: pass those it began with")
    return rewards


def generator_of(settings: Settings, loaded: Model) -> Generator:
    return Generator(
        loaded.model, loaded.tokenizer, settings.max_new_tokens, settings.batch_size, settings.temperature, settings.stop, settings.cache
    )


def with_rates(settings: Settings) -> Settings:
    """The settings with learning rate and perturbation radius, where none were given."""
    cls, points = named(settings.optimizer), need("zokern.hf").STARTING_POINTS
    method = settings.adapter[0] if settings.adapter[0] in points else "full"
    rates = starting_rates(cls, method, {"lr": settings.lr} | settings.optimizer_settings)
    lr = rates.pop("lr")
    return replace(settings, lr=lr, optimizer_settings=rates | settings.optimizer_settings)


def optimizer_of(settings: Settings, model: torch.nn.Module, pool: Pool | None = None) -> ZerothOrder:
    """The optimizer of settings that have their rates. Weights in 16 bits are copied: to stream them, noise would be made again for every
    token."""
    cls: Any = named(settings.optimizer)
    given: dict[str, Any] = dict(settings.optimizer_settings)
    params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    asked: Any = given.pop("perturbation", None)
    asked = pool or asked or (Copied() if any(p.itemsize == 2 for _, p in params) else None)
    given |= {name: getattr(torch, str(value)) for name, value in given.items() if cls.declared()[name].kind is torch.dtype}
    if "blocks" in given:
        given["blocks"] = layers_of(model, "--blocks", "leave it out")
    with refusing(f"--optimizer {settings.optimizer} cannot be made", "correct its settings", ValueError):
        made: Any = cls(
            params, lr=settings.lr, seed=settings.seed, maximize=True, perturbation=perturbation_of(model, asked, True), **given
        )
    assert isinstance(made, ZerothOrder)
    return made


def _described(run: Run) -> str:
    settings, radius = run.settings, named(run.settings.optimizer).radius
    rates = f"lr {settings.lr:g}, {radius} {settings.optimizer_settings[radius]:g}"
    count = sum(p.numel() for _, p in run.loaded.trained())
    rows = f"{len(run.train)} training prompts, {len(run.held_out)} held out"
    return f"{run.loaded.name} on {run.data}: {rows}; {settings.optimizer}, {run.method}, {count:,} parameters, {rates}"
