"""Tiny real models of transformers, and rows for them."""

import torch
import transformers

from zokern.hf import adapt

SIZE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=64, max_position_embeddings=48, pad_token_id=1)
WIDE = dict(initializer_range=0.2, init_std=0.2)  # so that every part of a tiny model matters to its loss
ROWS = 20
EPS = {"full": 1e-3, "lora": 1e-2, "prefix": 1e-1, "prompt": 1e-1}


def make(name, method="full", dtype=torch.float32, **config):
    """A model with weights that the same call makes again."""
    torch.manual_seed(0)
    if name.startswith("opt"):
        kind = transformers.OPTForCausalLM if name == "opt-lm" else transformers.OPTForSequenceClassification
        model = kind(transformers.OPTConfig(**SIZE, **WIDE, ffn_dim=32, word_embed_proj_dim=16, **config))
    else:
        model = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SIZE, **WIDE, intermediate_size=32, **config))
    model = model.to(dtype)
    return model if method == "full" else adapt(model, method)


def rows(name, count=ROWS):
    """Rows of different lengths, padded on the left; of a language model, with labels of -100 where there is padding."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(count):
        length = 5 + i % 5
        ids = torch.randint(4, 64, (9,), generator=generator)
        mask = torch.arange(9) >= 9 - length
        ids = torch.where(mask, ids, 1)
        labels = torch.where(mask, ids, -100) if name == "opt-lm" else torch.tensor(i % 2)
        made.append(dict(input_ids=ids, attention_mask=mask.long(), labels=labels))
    return made


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def farthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
