"""Tiny models with names and shapes of real ones, and engines of this process."""

import pytest
import torch

from zokern import EvolutionStrategies
from zokern.engines import Local, Pool

transformers = pytest.importorskip("transformers")


class Tokens:
    """Each token is written as its number: all that engines ask of a tokenizer."""

    eos_token_id = pad_token_id = 1

    def decode(self, tokens, skip_special_tokens=True):
        return " ".join(map(str, tokens))

    def batch_decode(self, rows, skip_special_tokens=True):
        return [self.decode(row) for row in rows.tolist()]


@pytest.fixture
def tokens():
    return Tokens()


@pytest.fixture
def model_of():
    """dtype -> a tiny Llama whose embeddings are tied, always the same."""

    def make(dtype=torch.float32, **more):
        torch.manual_seed(0)
        small = dict(vocab_size=90, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40)
        config = transformers.LlamaConfig(**small, tie_word_embeddings=True, initializer_range=0.4, eos_token_id=1, **more)
        return transformers.LlamaForCausalLM(config).to(dtype).eval()

    return make


@pytest.fixture
def engine_of(model_of, tokens):
    return lambda dtype=torch.float32: Local(model_of(dtype), tokens)


@pytest.fixture
def optimizer_of(model_of):
    """(engines, ...) -> (pool, an optimizer of it)."""

    def make(engines, dtype=torch.float32, kind=EvolutionStrategies, theta=torch.float32, **more):
        pool = Pool(engines, theta)
        given = dict(lr=0.1, sigma=0.05, population=6, maximize=True) if kind is EvolutionStrategies else {}
        return pool, kind(model_of(dtype).named_parameters(), perturbation=pool, **given | more)

    return make
