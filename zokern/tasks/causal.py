"""Asking a causal language model: how likely is each option after the prompt, or what does it write?"""

import json
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import BadInput
from .lean import token_losses
from .metrics import token_f1
from .prompts import OPTION, fill
from .reader import Batch, Features, Reader, Tokenizer, device_of, padded, with_labels
from .rows import Example
from .task import Task
from .virtual_tokens import both_names, has_virtual_tokens


class CausalReader(Reader):
    """Each option is appended to the prompt; its score is the mean log-probability of its tokens, as MeZO's code has it.

    Options that differ in their last token alone share one pass of the model, which makes no logits but those of the options. Rows are
    padded on the right, where causal models do not look. A row that is too long loses its beginning, as with MeZO, but not the token that
    the tokenizer begins every text with. Where the task writes, the right answer and a line break are the only option, and predictions are
    generated, greedily, up to the first line break.

    Args:
        max_new_tokens: of a written answer. Default 50, as MeZO's.

    All other arguments are those of ``Reader``.

    Raises:
        BadInput: as ``Reader``; a prompt that does not end with the option; max_new_tokens that leave no room in max_length.

    Reference:
        Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Appendix E.
    """

    kind = "causal"

    def __init__(
        self, task: Task, tokenizer: Tokenizer, max_length: int | None = None, objective: str = "cross-entropy", prompt: Any = None,
        max_new_tokens: int = 50,
    ):  # fmt: skip
        self.max_new_tokens = max_new_tokens
        super().__init__(task, tokenizer, max_length, objective, prompt)

    def _check(self) -> None:
        if not self.prompt.template.endswith("{" + OPTION + "}"):
            raise BadInput(f"the prompt {self.prompt.template!r} of a causal model has to end with {{option}}: move it there")
        if self.task.writes and not 0 < self.max_new_tokens < self.max_length:
            raise BadInput(f"max_new_tokens={self.max_new_tokens} leaves no room in max_length={self.max_length}: pass less")
        start = self.tokenizer("")["input_ids"][:1]  # what the tokenizer begins every text with, if anything
        self._begins = start if start and start[0] in self.tokenizer.all_special_ids else []

    def encode(self, example: Example) -> Features:
        before, writes = fill(self.prompt.template, example), self.task.writes
        options = [f"{text}\n" for text in example.answers[:1]] if writes else [fill(option, example) for option in self.prompt.options]
        prompt = self._ids(before.strip(" "))
        candidates = [self._candidate(prompt, before + option, example) for option in options]
        if not writes:
            return dict(candidates=candidates, label=example.label)
        begin = self._cut(prompt, self.max_length - self.max_new_tokens)
        return dict(candidates=candidates, label=0 if options else None, prompt=begin, answers=list(example.answers))

    def collate(self, features: Sequence[Features]) -> Batch:
        batch: Batch = {}
        if any(feature["candidates"] for feature in features):
            batch |= self._packed(features)
        if self.task.writes:
            batch |= dict(zip(("prompt_ids", "prompt_mask"), self._padded([f["prompt"] for f in features], left=True)))
            answers = [list(json.dumps(feature["answers"]).encode()) for feature in features]
            batch["answers"] = padded(answers, 0).to(torch.uint8)  # so that they travel with a batch
        batch = with_labels(batch, features)
        if self.objective == "option" and "labels" in batch:
            right = [dict(feature, candidates=[feature["candidates"][feature["label"]]]) for feature in features]
            batch |= {f"right_{name}": tensor for name, tensor in self._packed(right).items()}
        return batch

    def scores(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if self.task.writes:
            raise BadInput(f"task {self.task.name!r} has no candidates to be scored, its answers are written: ask for predictions")
        batch, losses = self._losses(model, batch)
        sums = torch.cat([losses, losses.new_zeros(1)])[batch["tokens"]].sum(1)
        means = -sums / batch["tokens"].ge(0).sum(1)
        return torch.cat([means, means.new_full((1,), -torch.inf)])[batch["candidates"]]

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        right = self.answers(batch)
        if self.task.writes and self.objective == "f1":
            answers = (json.loads(bytes(row).rstrip(b"\0")) for row in batch["answers"].tolist())
            scores = [*map(token_f1, self.predictions(model, batch), answers)]
            return torch.tensor(1 - sum(scores) / len(scores), device=device_of(model))
        if self.objective == "option":
            return self._losses(model, {n.removeprefix("right_"): t for n, t in batch.items() if n.startswith("right_")})[1].mean()
        if self.task.writes:
            return self._losses(model, batch)[1].mean()
        return self._objective(self.scores(model, batch), right)

    def predictions(self, model: torch.nn.Module, batch: Batch) -> list:
        if not self.task.writes:
            return super().predictions(model, batch)
        ids, mask = (batch[name].to(device_of(model)) for name in ("prompt_ids", "prompt_mask"))
        if not has_virtual_tokens(model):
            return self._written(model, ids, mask)
        # Virtual tokens stand before the padding, so that a row's text would depend on how much there is: rows of one length at a time.
        found, lengths = [""] * len(ids), mask.sum(1)
        for length in lengths.unique().tolist():
            rows = lengths.eq(length).nonzero()[:, 0]
            for row, text in zip(rows.tolist(), self._written(model, ids[rows, -length:], mask[rows, -length:]), strict=True):
                found[row] = text
        return found

    def _written(self, model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
        """What the model writes after prompts that are padded on the left."""
        tokenizer = self.tokenizer
        breaks = tokenizer("a\n", add_special_tokens=False)["input_ids"][-1:]  # after a word, as answers end
        ends = [i for i in breaks if tokenizer.decode([i]) == "\n"]
        ends += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        made = both_names(model).generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=self._pad,
        )
        texts = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip().partition("\n")[0].strip() for text in texts]

    @property
    def _pad(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in known if i is not None)

    def _ids(self, text: str) -> list[int]:
        """Tokens as the tokenizer begins a text, without what it may end it with."""
        ids, special = self.tokenizer(text)["input_ids"], self.tokenizer.all_special_ids
        while len(ids) > len(self._begins) and ids[-1] in special and not text.endswith(self.tokenizer.decode(ids[-1:])):
            ids = ids[:-1]
        return ids

    def _candidate(self, prompt: list[int], text: str, example: Example) -> tuple[list[int], list[int]]:
        """-> (tokens that the model reads, the tokens of the option): the last ones, from where the prompt's tokens end."""
        ids = self._ids(text.strip(" "))
        same = next((i for i, pair in enumerate(zip(ids, prompt)) if pair[0] != pair[1]), min(len(ids), len(prompt)))
        if same == len(ids):
            raise BadInput(f"{example.location}: an option is empty: fill in the row")
        if same == 0:  # nothing to predict the first token from
            start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
            if start is None:
                raise BadInput(f"{example.location}: nothing stands before the option, and the tokenizer has no token to begin with")
            ids, same = [start, *ids], 1
        option = ids[same:]
        if len(option) + len(self._begins or [0]) > self.max_length:
            raise BadInput(f"{example.location}: an option has {len(option)} tokens, too many for max_length={self.max_length}: pass more")
        return self._cut(ids, self.max_length)[:-1], option

    def _cut(self, ids: list[int], most: int) -> list[int]:
        if len(ids) <= most:
            return ids
        begins = self._begins if ids[: len(self._begins)] == self._begins else []
        return begins + ids[len(ids) - (most - len(begins)) :]

    def _padded(self, lists: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return padded(lists, self._pad, left), padded([[1] * len(x) for x in lists], 0, left)

    def _packed(self, features: Sequence[Features]) -> Batch:
        """The candidates of all rows, each sequence once, and where their tokens are predicted."""
        sequences: dict[tuple, int] = {}  # (row, tokens) -> its number
        predictions: list[tuple[int, int, int]] = []  # sequence, position, token
        tokens: list[list[int]] = []
        candidates: list[list[int]] = []
        for row, feature in enumerate(features):
            candidates.append([*range(len(tokens), len(tokens) + len(feature["candidates"]))])
            for ids, option in feature["candidates"]:
                sequence = sequences.setdefault((row, *ids), len(sequences))
                first = len(ids) - len(option)  # the position that predicts the option's first token
                tokens.append([*range(len(predictions), len(predictions) + len(option))])
                predictions += [(sequence, first + i, token) for i, token in enumerate(option)]
        input_ids, attention_mask = self._padded([list(ids) for _, *ids in sequences])
        predicted = torch.tensor(predictions).T
        return dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            where=predicted[:2],
            targets=predicted[2],
            tokens=padded(tokens, -1),  # of each candidate, as they stand in targets
            candidates=padded(candidates, -1),  # of each row
        )

    def _losses(self, model: torch.nn.Module, batch: Batch) -> tuple[Batch, torch.Tensor]:
        """-> the batch on the model's device, the cross-entropy of every option token."""
        batch = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
        inputs = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        return batch, token_losses(model, inputs, batch["where"], batch["targets"])
