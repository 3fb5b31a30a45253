"""What an engine of vLLM is asked, however its workers are reached."""

import base64
import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import BadInput
from ...ops.arguments import Term
from ..engine import Engine, EngineDied, Sampling
from ..generate import Completions, text_of
from ..messages import Plan, Updates, terms_message
from ..shard import Piece

BYTES = 1 << 24  # of weights in one answer
MOST = 128  # tokens whose probabilities are asked for in one request


class Owned(NamedTuple):
    """A piece, its dtype in the model, and which worker's it is, by its number there."""

    piece: Piece
    dtype: torch.dtype
    worker: int
    number: int


class Workers(Engine):
    """What all ways to reach vLLM share.

    Args:
        tokenizer: of transformers, which makes texts of tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.plan: Plan | None = None
        self.owned: list[Owned] = []

    @abstractmethod
    def rpc(self, call: str) -> list[str]:
        """Return ``zokern(call)`` of every worker."""

    @abstractmethod
    def reset(self) -> bool:
        """Forget cached prefixes. Return whether they are forgotten."""

    @abstractmethod
    def write(self, prompts: Sequence[list[int]], params: Sequence[dict[str, Any]]) -> list[list[int]]:
        """The tokens that follow each prompt.

        Args:
            prompts: the tokens of each.
            params: of each, arguments of SamplingParams.
        """

    @abstractmethod
    def follow(self, prefixes: Sequence[tuple[list[int], list[int]]]) -> list[dict[int, float]]:
        """The log-probability of some tokens after each prefix.

        Args:
            prefixes: (prefix, tokens), of which there are 128 at most.
        """

    def begin(self, plan: Plan) -> dict[str, int]:
        answers = self.call("begin", plan.message())
        if len(had := {applied for applied, _ in answers}) > 1:
            raise BadInput(f"{self.name}: its workers have had {sorted(had)} updates, and should have had as many each: start it again")
        pieces = [[(Piece(*piece), getattr(torch, dtype)) for *piece, dtype in of_worker] for _, of_worker in answers]
        self.plan, self.owned, self.applied = plan, _owned(self.name, plan, pieces), had.pop()
        return self.checksums()

    def go(self, updates: Updates, terms: Sequence[Term]) -> None:
        self.applied = self.call("go", updates.message(), terms_message(terms))[0]
        if not self.reset():
            raise EngineDied(f"{self.name} keeps cached prefixes of other weights, while it works on requests of somebody else")

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seed: Sequence[int] = ()) -> Completions:
        common = dict(
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stops),
            stop_token_ids=list(sampling.ends),
            detokenize=bool(sampling.stops),
        )
        drawn = [dict(seed=int(np.random.SeedSequence([*seed, row]).generate_state(1)[0])) for row in range(len(prompts))]
        made = self.write(prompts, [common | own if sampling.temperature else common for own in drawn])
        return Completions([text_of(tokens, self.tokenizer, sampling.stops) for tokens in made], sum(map(len, made)))

    def score(self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        asked: dict[tuple[int, ...], set[int]] = {}
        for prompt, each in zip(prompts, options, strict=True):
            for option in each:
                for i, token in enumerate(option):
                    asked.setdefault((*prompt, *option[:i]), set()).add(token)
        requests = [(list(prefix), sorted(known)[i : i + MOST]) for prefix, known in asked.items() for i in range(0, len(known), MOST)]
        found = dict[tuple[int, ...], dict[int, float]]()
        for (prefix, _), shares in zip(requests, self.follow(requests), strict=True):
            found.setdefault(tuple(prefix), {}).update(shares)
        return [
            [sum(found[(*prompt, *option[:i])][token] for i, token in enumerate(option)) for option in each]
            for prompt, each in zip(prompts, options)
        ]

    def checksums(self) -> dict[str, int]:
        of_workers, found = self.call("checksums"), dict[str, int]()
        for piece, _, worker, number in self.owned:
            found[piece.name] = (found.get(piece.name, 0) + of_workers[worker][number]) % (1 << 64)
        return found

    def read(self, name: str) -> torch.Tensor:
        assert self.plan
        shape = next(tensor.shape for tensor in self.plan.tensors if tensor.name == name)
        of_it = [owned for owned in self.owned if owned.piece.name == name]
        made = torch.empty(shape, dtype=of_it[0].dtype)
        for owned in of_it:
            owned.piece.within(made).copy_(self._read(owned).view(owned.piece.rows, owned.piece.columns))
        return made

    def _read(self, owned: Owned) -> torch.Tensor:
        count, each, parts = owned.piece.rows * owned.piece.columns, BYTES // owned.dtype.itemsize, []
        for begin in range(0, count, each):
            answer = self.call("read", owned.worker, owned.number, begin, min(begin + each, count))[owned.worker]
            parts.append(torch.frombuffer(bytearray(base64.b64decode(answer)), dtype=owned.dtype))
        return torch.cat(parts)

    def call(self, command: str, *arguments: Any) -> list[Any]:
        """The result of each worker.

        Args:
            command: what the workers are asked to do.
            *arguments: of the command, as JSON has them.

        Raises:
            BadInput: a worker refused.
        """
        answers = [json.loads(answer) for answer in self.rpc(json.dumps([command, *arguments]))]
        if errors := [answer["error"] for answer in answers if "error" in answer]:
            raise BadInput(f"{self.name}: {errors[0]}")
        return [answer["result"] for answer in answers]


def _owned(name: str, plan: Plan, pieces: Sequence[Sequence[tuple[Piece, torch.dtype]]]) -> list[Owned]:
    """Each piece with the first worker that holds it, whose elements together are all that are trained."""
    first: dict[Piece, Owned] = {}
    for worker, of_worker in enumerate(pieces):
        for number, (piece, dtype) in enumerate(of_worker):
            first.setdefault(piece, Owned(piece, dtype, worker, number))
    for tensor in plan.tensors:
        seen = sum(piece.rows * piece.columns for piece in first if piece.name == tensor.name)
        if seen != tensor.numel:
            raise BadInput(
                f"{name}: its loader places {seen:,} of the {tensor.numel:,} elements of {tensor.name!r}: it packs or converts them, "
                "or does not know the tensor; train another part, or take another engine"
            )
    return list(first.values())
