"""Completions of prompts: greedy or drawn, in batches of like lengths, the same whatever batch a prompt is in."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from ..errors import BadInput, need
from ..tasks.reader import Tokenizer, device_of, padded
from ..tasks.virtual_tokens import both_names, has_virtual_tokens

CACHES = ("dynamic", "static")


@dataclass(frozen=True)
class Completions:
    """What a model wrote.

    Attributes:
        texts: in the order of the prompts, without special tokens, up to a stop.
        tokens: how many were generated, those that end a text among them.
    """

    texts: list[str]
    tokens: int


class Generator:
    """Writes completions with a model as it is at that moment: call it with the tokens of prompts and a seed, an integer from 0.

    A row ends with the tokenizer's or the model's end of text, with a stop, or after ``max_new_tokens``. Other defaults of the model's own
    generation config (sampling, penalties) do not count. The prompts of a batch are padded on the left; batches go from long prompts to
    short ones.

    Each token is drawn from the softmax of logits / temperature with a uniform number of its own, that of (seed, row, position). So a text
    depends on the seed and on its prompt's place among the prompts, not on batches, nor on torch's random state, which stays as it is.

    Args:
        model: a causal language model of transformers or peft, in evaluation mode.
        tokenizer: its tokenizer; it needs no padding token.
        max_new_tokens: of a completion, at most.
        batch_size: prompts at a time. Default 64.
        temperature: 0 takes the likeliest token. Default 0.0.
        stops: texts where a completion ends, such as "\\n"; they are not part of it. Default ().
        cache: of keys and values: "dynamic" grows; "static" has its full size from the start. Default "dynamic".
        ends: tokens that end a row, beside those of tokenizer and model. Default ().

    Raises:
        BadInput: an argument is out of range; the model has an encoder.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, max_new_tokens: int, batch_size: int = 64, temperature: float = 0.0,
        stops: Sequence[str] = (), cache: str = "dynamic", ends: Sequence[int] = (),
    ):  # fmt: skip
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise BadInput(f"{name} {value}: pass 1 or more")
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise BadInput(f"temperature {temperature}: pass 0, which is greedy, or a positive number")
        if cache not in CACHES:
            raise BadInput(f"cache {cache!r}: pass one of {', '.join(CACHES)}")
        if cache == "static" and getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise BadInput("cache 'static' cannot hold the virtual tokens of peft's prefix and prompt tuning: pass 'dynamic'")
        if isinstance(stops, str) or not all(stops):
            raise BadInput(f"stops {stops!r}: pass a list of texts, none of them empty")
        if model.config.is_encoder_decoder:
            raise BadInput(f"the model ({type(model).__name__}) has an encoder and a decoder: pass a causal language model")
        self.model, self.tokenizer, self.max_new_tokens, self.batch_size = both_names(model), tokenizer, max_new_tokens, batch_size
        self.temperature, self.stops, self.cache, self.ends = temperature, tuple(stops), cache, tuple(ends)

    @property
    def positions(self) -> int | None:
        """How many tokens of prompt and completion the model can hold together; None where it does not say."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        virtual = getattr(getattr(self.model, "active_peft_config", None), "num_virtual_tokens", None)
        return most and most - (virtual or 0)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], seed: int | Sequence[int] | None = None) -> Completions:
        """Completions of prompts.

        Args:
            prompts: the tokens of each.
            seed: an integer from 0, or several, by which tokens are drawn where there is a temperature. Default None.

        Raises:
            BadInput: the model is in training mode; a temperature comes without a seed.
        """
        if self.model.training:
            raise BadInput("the model is in training mode, in which dropout changes what it writes: call model.eval()")
        uniforms = None
        if self.temperature:
            if seed is None:
                raise BadInput(f"temperature {self.temperature} draws tokens: pass a seed")
            uniforms = torch.from_numpy(np.random.default_rng(seed).random((len(prompts), self.max_new_tokens)))
        texts, tokens = [""] * len(prompts), 0
        with self._plain() as ends:
            for batch in self._batches([len(prompt) for prompt in prompts]):
                found = self._completed([prompts[row] for row in batch], ends, None if uniforms is None else uniforms[batch])
                for row, (text, count) in zip(batch, found, strict=True):
                    texts[row] = text
                    tokens += count
        return Completions(texts, tokens)

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Rows by length, the longest first, where memory is short if anywhere."""
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        # Virtual tokens stand before the padding, so that a row's text would depend on how much there is: rows of one length at a time.
        apart = has_virtual_tokens(self.model)
        for _, group in groupby(order, key=lambda row: lengths[row] * apart):
            rows = list(group)
            yield from (rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size))

    @contextmanager
    def _plain(self) -> Iterator[set[int]]:
        """In here the model's ``generate`` does nothing that its own generation config asks for; yields what ends a text."""
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        theirs, ends = base.generation_config, ends_of(self.tokenizer, base.generation_config).union(self.ends)
        base.generation_config = need("transformers").GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=self._pad,
            use_cache=True,
            cache_implementation=None if self.cache == "dynamic" else self.cache,
            disable_compile=True,  # compiled code may not see weights that Streamed lays elsewhere
        )
        try:
            yield ends
        finally:
            base.generation_config = theirs

    def _completed(self, prompts: list[list[int]], ends: set[int], uniforms: torch.Tensor | None) -> list[tuple[str, int]]:
        """(text, number of tokens) of each prompt of a batch."""
        device = device_of(self.model)
        ids, mask = padded(prompts, self._pad, left=True).to(device), padded([[1] * len(p) for p in prompts], 0, left=True).to(device)
        width = ids.shape[1]
        stopping = _Stops(self.tokenizer, self.stops, width)
        drawing = [] if uniforms is None else [_Drawing(self.temperature, uniforms.to(device), width)]
        made = self.model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=drawing, stopping_criteria=[stopping] if self.stops else []
        )
        found = []
        for row, tokens in enumerate(made[:, width:].tolist()):
            end = next((i for i, token in enumerate(tokens, 1) if token in ends), len(tokens))
            count = min(end, stopping.ended.get(row, end))
            found.append((text_of(tokens[:count], self.tokenizer, self.stops), count))
        return found

    @property
    def _pad(self) -> int:
        return next(i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if i is not None)


def ends_of(tokenizer: Tokenizer, generation_config: Any) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those of a model's generation config."""
    theirs = generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(theirs if isinstance(theirs, list) else [theirs])} - {None}


def text_of(tokens: list[int], tokenizer: Tokenizer, stops: Sequence[str]) -> str:
    """The text of generated tokens, without special ones, up to a stop."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)]


class _Drawing:
    """A logits processor: leaves the token that is drawn as the only one, so that the greedy search of transformers takes it."""

    def __init__(self, temperature: float, uniforms: torch.Tensor, width: int):
        self.temperature, self.uniforms, self.width = temperature, uniforms, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        shares = torch.softmax(scores.double() / self.temperature, -1).cumsum(-1)
        below = self.uniforms[:, input_ids.shape[1] - self.width, None] * shares[:, -1:]
        token = torch.searchsorted(shares, below, right=True).clamp(max=scores.shape[1] - 1)  # NaN is beyond all
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class _Stops:
    """A stopping criterion: a row is done when its last tokens hold a stop; ``ended`` says after how many it was."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], width: int):
        self.tokenizer, self.stops, self.width, self.ended = tokenizer, stops, width, dict[int, int]()
        self.tail = 1 + max((len(stop.encode()) for stop in stops), default=0)  # a token is a byte or more

    def __call__(self, input_ids: torch.Tensor, scores: Any, **unused: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.width :][:, -self.tail :], skip_special_tokens=True)
        done = [any(stop in text for stop in self.stops) for text in texts]
        for row in (row for row, found in enumerate(done) if found):
            self.ended.setdefault(row, input_ids.shape[1] - self.width)
        return torch.tensor(done, device=input_ids.device)
