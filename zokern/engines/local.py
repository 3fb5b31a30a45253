"""An engine in this process: a model of transformers."""

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import BadInput
from ..ops.arguments import Term
from ..tasks.reader import Tokenizer, device_of, padded
from .engine import Engine, Sampling
from .generate import Completions, Generator
from .messages import Plan, Updates
from .shard import Shard, whole


class Local(Engine):
    """A causal language model of transformers as an engine. theta is kept beside its weights, in float32 unless the pool says otherwise.

    Args:
        model: in evaluation mode; its weights are the engine's from ``begin`` on.
        tokenizer: its tokenizer.
        batch_size: prompts at a time. Default 64.
    """

    name = "the model in this process"

    def __init__(self, model: Any, tokenizer: Tokenizer, batch_size: int = 64) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.shard: Shard | None = None

    def begin(self, plan: Plan) -> dict[str, int]:
        own = dict(self.model.named_parameters())
        for tensor in plan.tensors:
            if tensor.name not in own or own[tensor.name].shape != tensor.shape:
                found = tuple(own[tensor.name].shape) if tensor.name in own else "not there"
                raise BadInput(f"{self.name}: {tensor.name!r} is {found}, of the run {tensor.shape}: pass the model of the run")
        self.shard = Shard(plan, whole(plan, {name: p.data for name, p in own.items()}))
        self.applied = 0
        return self.checksums()

    def go(self, updates: Updates, terms: Sequence[Term]) -> None:
        self._shard.go(updates, terms)
        self.applied = self._shard.applied

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seed: Sequence[int] = ()) -> Completions:
        writer = Generator(
            self.model, self.tokenizer, sampling.max_new_tokens, self.batch_size, sampling.temperature, sampling.stops, ends=sampling.ends
        )
        return writer(prompts, seed)

    @torch.no_grad()
    def score(self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        rows = [(prompt, option) for prompt, each in zip(prompts, options, strict=True) for option in each]
        found: list[float] = []
        for begin in range(0, len(rows), self.batch_size):
            found += self._scored(rows[begin : begin + self.batch_size])
        left = iter(found)
        return [[next(left) for _ in each] for each in options]

    def _scored(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        device = device_of(self.model)
        ids = padded([[*prompt, *option] for prompt, option in rows], 0).to(device)
        mask = padded([[1] * (len(prompt) + len(option)) for prompt, option in rows], 0).to(device)
        shares = torch.log_softmax(self.model(input_ids=ids, attention_mask=mask).logits.float(), -1)
        return [
            float(
                shares[row, len(prompt) - 1 : len(prompt) + len(option) - 1].gather(1, torch.tensor(option, device=device)[:, None]).sum()
            )
            for row, (prompt, option) in enumerate(rows)
        ]

    def checksums(self) -> dict[str, int]:
        return {piece.name: found for (piece, _), found in zip(self._shard.held, self._shard.checksums())}

    def read(self, name: str) -> torch.Tensor:
        return dict(self.model.named_parameters())[name].detach().cpu().clone()

    def close(self) -> None:
        self.shard = None

    @property
    def _shard(self) -> Shard:
        assert self.shard, "begin comes first"
        return self.shard
