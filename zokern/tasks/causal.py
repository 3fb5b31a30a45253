"""Asking a causal language model: how likely is each option after the prompt, or what does it write?"""

import torch

from ..errors import BadInput
from .lean import token_losses
from .metrics import token_f1
from .prompts import OPTION, fill
from .reader import Reader, device_of, padded, with_labels
from .virtual_tokens import both_names, has_virtual_tokens


class CausalReader(Reader):
    """Each option is appended to the prompt; its score is the mean log-probability of its tokens, as MeZO's code has it.

    Options that differ in their last token alone share one pass of the model, which makes no logits but those of the options. Rows are
    padded on the right, where causal models do not look. A row that is too long loses its beginning, as with MeZO, but not the token that
    the tokenizer begins every text with. Where the task writes, the right answer and a line break are the only option, and predictions
    are generated, greedily, up to the first line break.

    Args:
        max_new_tokens: of a written answer. Default 50, as MeZO's.
        Others: as of ``Reader``.
    Reference: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", Appendix E.
    """

    kind = "causal"

    def __init__(self, task, tokenizer, max_length=None, objective="cross-entropy", prompt=None, max_new_tokens=50):
        super().__init__(task, tokenizer, max_length, objective, prompt)
        self.max_new_tokens = max_new_tokens
        if not self.prompt.template.endswith("{" + OPTION + "}"):
            raise BadInput(f"the prompt {self.prompt.template!r} of a causal model has to end with {{option}}: move it there")
        if task.writes and not 0 < max_new_tokens < self.max_length:
            raise BadInput(f"max_new_tokens={max_new_tokens} leaves no room in max_length={self.max_length}: pass less")
        start = tokenizer("")["input_ids"][:1]  # what the tokenizer begins every text with, if anything
        self._begins = start if start and start[0] in tokenizer.all_special_ids else []

    def encode(self, example) -> dict:
        before = fill(self.prompt.template, example)
        if self.task.writes:
            options = [f"{example.answers[0]}\n"] if example.answers else []
        else:
            options = [fill(option, example) for option in self.prompt.options]
        prompt = self._ids(before.strip(" "))
        feature = dict(candidates=[self._candidate(prompt, before + option, example) for option in options], label=example.label)
        if self.task.writes:
            room = self.max_length - self.max_new_tokens
            feature |= dict(prompt=self._cut(prompt, room), answers=list(example.answers), label=0 if options else None)
        return feature

    def collate(self, features) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = {}
        if any(feature["candidates"] for feature in features):
            batch |= self._packed(features)
        if self.task.writes:
            batch |= dict(zip(("prompt_ids", "prompt_mask"), self._padded([f["prompt"] for f in features], left=True)))
            batch["answers"] = _as_bytes([feature["answers"] for feature in features])
        batch = with_labels(batch, features)
        if self.objective == "option" and "labels" in batch:
            right = [dict(feature, candidates=[feature["candidates"][feature["label"]]]) for feature in features]
            batch |= {f"right_{name}": tensor for name, tensor in self._packed(right).items()}
        return batch

    def scores(self, model, batch) -> torch.Tensor:
        if self.task.writes:
            raise BadInput(f"task {self.task.name!r} has no candidates to be scored, its answers are written: ask for predictions")
        batch, losses = self._losses(model, batch)
        sums = torch.cat([losses, losses.new_zeros(1)])[batch["tokens"]].sum(1)
        means = -sums / batch["tokens"].ge(0).sum(1)
        return torch.cat([means, means.new_full((1,), -torch.inf)])[batch["candidates"]]

    def loss(self, model, batch) -> torch.Tensor:
        right = self.answers(batch)
        if self.task.writes and self.objective == "f1":
            found = zip(self.predictions(model, batch), _as_texts(batch["answers"]), strict=True)
            scores = [token_f1(prediction, answers) for prediction, answers in found]
            return torch.tensor(1 - sum(scores) / len(scores), device=device_of(model))
        if self.objective == "option":
            return self._losses(model, {n.removeprefix("right_"): t for n, t in batch.items() if n.startswith("right_")})[1].mean()
        if self.task.writes:
            return self._losses(model, batch)[1].mean()
        return self._objective(self.scores(model, batch), right)

    def predictions(self, model, batch) -> list:
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

    def _written(self, model, ids, mask):
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
    def _pad(self):
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in known if i is not None)

    def _ids(self, text):
        """Tokens as the tokenizer begins a text, without what it may end it with."""
        ids = self.tokenizer(text)["input_ids"]
        while (
            len(ids) > len(self._begins)
            and ids[-1] in self.tokenizer.all_special_ids
            and not text.endswith(self.tokenizer.decode(ids[-1:]))
        ):
            ids = ids[:-1]
        return ids

    def _candidate(self, prompt, text, example):
        """-> (tokens that the model reads, the tokens of the option): the last ones, from where the prompt's tokens end."""
        ids = self._ids(text.strip(" "))
        same = next((i for i, pair in enumerate(zip(ids, prompt)) if pair[0] != pair[1]), min(len(ids), len(prompt)))
        if same == len(ids):
            raise BadInput(f"{example.place}: an option is empty: fill in the row")
        if same == 0:  # nothing to predict the first token from
            start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
            if start is None:
                raise BadInput(f"{example.place}: nothing stands before the option, and the tokenizer has no token to begin with")
            ids, same = [start, *ids], 1
        option = ids[same:]
        if len(option) + len(self._begins or [0]) > self.max_length:
            raise BadInput(f"{example.place}: an option has {len(option)} tokens, too many for max_length={self.max_length}: pass more")
        return self._cut(ids, self.max_length)[:-1], option

    def _cut(self, ids, most):
        if len(ids) <= most:
            return ids
        begins = self._begins if ids[: len(self._begins)] == self._begins else []
        return begins + ids[len(ids) - (most - len(begins)) :]

    def _padded(self, lists, left=False):
        return padded(lists, self._pad, left), padded([[1] * len(x) for x in lists], 0, left)

    def _packed(self, features):
        """The candidates of all rows, each sequence once, and where their tokens are predicted."""
        sequences, predicted, tokens, candidates = [], [], [], []
        for feature in features:
            here, of_row = {}, []
            for ids, option in feature["candidates"]:
                sequence = here.setdefault(tuple(ids), len(sequences))
                if sequence == len(sequences):
                    sequences.append(ids)
                first = len(ids) - len(option)  # the position that predicts the option's first token
                of_row.append(len(tokens))
                tokens.append(list(range(len(predicted), len(predicted) + len(option))))
                predicted += [(sequence, first + i, token) for i, token in enumerate(option)]
            candidates.append(of_row)
        input_ids, attention_mask = self._padded(sequences)
        predicted = torch.tensor(predicted).T
        return dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            where=predicted[:2],
            targets=predicted[2],
            tokens=padded(tokens, -1),  # of each candidate, as they stand in targets
            candidates=padded(candidates, -1),  # of each row
        )

    def _losses(self, model, batch):
        """-> the batch on the model's device, the cross-entropy of every option token."""
        batch = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
        inputs = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        return batch, token_losses(model, inputs, batch["where"], batch["targets"])


def _as_bytes(texts) -> torch.Tensor:
    """Lists of texts as uint8 [rows, most texts, most bytes], 0 where there is none: so they travel with a batch."""
    coded = [[list(text.encode()) for text in row] for row in texts]
    most, longest = max(map(len, coded)), max((len(text) for row in coded for text in row), default=0)
    blank = [0] * longest
    rows = [[text + blank[len(text) :] for text in row] + [blank] * (most - len(row)) for row in coded]
    return torch.tensor(rows, dtype=torch.uint8).view(len(texts), most, longest)


def _as_texts(coded) -> list[list[str]]:
    return [[bytes(text).rstrip(b"\0").decode() for text in row if any(text)] for row in coded.tolist()]
