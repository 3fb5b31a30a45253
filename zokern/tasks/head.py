"""Asking a model with a classification head: no prompt, the texts as they are."""

from collections.abc import Sequence

import torch

from ..errors import BadInput
from .prompts import fill
from .reader import Batch, Features, Reader, device_of, padded_tokens, with_labels
from .rows import Example


class HeadReader(Reader):
    """One text or two, joined and cut as the tokenizer does; a candidate's score is the head's logit.

    For ``AutoModelForSequenceClassification`` with as many labels as the task. Where the model knows the task's labels by name, its own
    order counts. The arguments, and errors, are those of ``Reader``.

    Reference:
        Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", Appendix D.
    """

    kind = "head"

    def encode(self, example: Example) -> Features:
        texts = [fill(template, example) for template in self.prompt]
        return dict(tokens=dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length)), label=example.label)

    def collate(self, features: Sequence[Features]) -> Batch:
        return with_labels(padded_tokens(self.tokenizer, features), features)

    def scores(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        device = device_of(model)
        logits = model(**{name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}).logits.float()
        due = len(batch["input_ids"]), len(self.task.labels)
        if logits.shape != due:
            cure = f"pass a sequence-classification model with num_labels={due[1]} for {self.task.name!r}"
            raise BadInput(f"model {type(model).__name__} gives {tuple(logits.shape)} logits for {due[0]} rows: {cure}")
        return self.order(model, logits)

    def order(self, model: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
        """Return logits in the task's order of the classes.

        Args:
            model: whose config names the classes in its own order.
            logits: [rows, classes] in that order.
        """
        labels = self.task.labels
        names = {int(i): str(name) for i, name in (getattr(model.config, "id2label", None) or {}).items()}
        for same in (str, str.casefold):
            own = {same(name): i for i, name in names.items()}
            order = [own.get(same(label)) for label in labels]
            if sorted(order, key=str) == sorted(range(len(labels)), key=str):
                return logits if order == list(range(len(labels))) else logits[:, order]
        return logits
