"""A task for a masked language model: which word stands at the mask?"""

from collections.abc import Sequence

import torch

from ..errors import BadInput
from .lean import kept_logits
from .prompts import OPTION, fill, parts
from .reader import Batch, Features, Reader, device_of, fitting, padded_tokens, with_labels
from .rows import Example


class MaskedReader(Reader):
    """The prompt with the mask token in it; a candidate's score is the logit of its word at the mask.

    A row that is too long loses the ends of its texts, never a part of the template. Only the logits at the masks are made. The arguments
    are those of ``Reader``.

    Raises:
        BadInput: the tokenizer has no mask token, or an option is not one token of it; as ``Reader``.

    Reference:
        Gao et al. 2021, "Making Pre-trained Language Models Better Few-shot Learners"; MeZO asks RoBERTa so.
    """

    kind = "masked"

    def _check(self) -> None:
        if self.tokenizer.mask_token is None:
            name = type(self.tokenizer).__name__
            raise BadInput(f"{name} has no mask token: pass a masked model's tokenizer, or read the task as 'causal'")
        before = self.prompt.template.partition("{" + OPTION + "}")[0]
        self._space = " " if before.endswith(" ") else ""  # which byte-level tokenizers make part of the word
        self._words: dict[str, int] = {}
        for option in self.prompt.options:
            if "{" not in option:
                self._word(option)

    def encode(self, example: Example) -> Features:
        found = parts(self.prompt.template, example)
        texts = [text for kind, text in found if kind == "text"]
        mask = self.tokenizer.mask_token

        def ids(texts: list[str]) -> dict[str, list[int]]:
            remaining = iter(texts)
            filled = [mask if kind == OPTION else next(remaining) if kind == "text" else text for kind, text in found]
            return self.tokenizer("".join(filled))

        tokens = ids(fitting(texts, lambda texts: len(ids(texts)["input_ids"]), self.max_length))
        masks = [i for i, token in enumerate(tokens["input_ids"]) if token == self.tokenizer.mask_token_id]
        if len(tokens["input_ids"]) > self.max_length:
            least = len(ids([""] * len(texts))["input_ids"])
            raise BadInput(f"{example.location}: max_length={self.max_length} is less than the template alone: pass {least} or more")
        if len(masks) != 1:
            raise BadInput(f"{example.location}: the text holds {mask!r}, the token of the place to be filled: remove it from the row")
        words = [self._word(fill(option, example)) for option in self.prompt.options]
        return dict(tokens=dict(tokens), mask=masks[0], words=words, label=example.label)

    def collate(self, features: Sequence[Features]) -> Batch:
        batch = padded_tokens(self.tokenizer, features)
        batch["where"] = torch.tensor([(row, feature["mask"]) for row, feature in enumerate(features)]).T
        batch["words"] = torch.tensor([feature["words"] for feature in features])
        return with_labels(batch, features)

    def scores(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        batch = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("where", "words", "labels")}
        return kept_logits(model, inputs, batch["where"]).gather(1, batch["words"]).float()

    def _word(self, option: str) -> int:
        """The one token of an option."""
        if option not in self._words:
            ids = self.tokenizer(self._space + option, add_special_tokens=False)["input_ids"]
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
                raise BadInput(f"option {option!r} of {self.task.name!r} is not one token, but {pieces}: pass a prompt with other words")
            if ids[0] in self._words.values():
                raise BadInput(f"option {option!r} of {self.task.name!r} is the same token as another, {pieces[0]!r}: pass other words")
            self._words[option] = ids[0]
        return self._words[option]
