"""Streamed weights of the models that people have: the same loss, to the bit, as a copy of the model with those weights."""

import pytest
import torch
import transformers as T
from streamed_cases import streams

from zokern import Streamed

SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, max_position_embeddings=24)
LLAMA = dict(SMALL, num_key_value_heads=2, pad_token_id=0)
OPT = dict(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=24, max_position_embeddings=24)
GPT2 = dict(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=24, pad_token_id=0)
T5 = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
VIT = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4)
MOE = dict(LLAMA, num_local_experts=8, num_experts_per_tok=1)
IDS = torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(3))


def language(model):
    return model(input_ids=IDS, labels=IDS).loss


def classes(model):
    return model(input_ids=IDS, labels=torch.tensor([0, 1])).loss


def images(model):
    return model(torch.ones(2, 3, 8, 8), labels=torch.tensor([0, 1])).loss


MODELS = {
    "Llama": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA), language),
    "Llama, tied": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA, tie_word_embeddings=True), language),
    "OPT": (T.OPTForCausalLM, T.OPTConfig(**OPT, word_embed_proj_dim=8), language),
    "GPT-2": (T.GPT2LMHeadModel, T.GPT2Config(**GPT2), language),
    "BERT, masked": (T.BertForMaskedLM, T.BertConfig(**SMALL), language),
    "BERT classifier": (T.BertForSequenceClassification, T.BertConfig(**SMALL), classes),
    "RoBERTa, masked": (T.RobertaForMaskedLM, T.RobertaConfig(**SMALL), language),
    "RoBERTa classifier": (T.RobertaForSequenceClassification, T.RobertaConfig(**SMALL), classes),
    "T5": (T.T5ForConditionalGeneration, T.T5Config(**T5), language),
    "ALBERT": (T.AlbertForSequenceClassification, T.AlbertConfig(**SMALL, embedding_size=8), classes),
    "ViT": (T.ViTForImageClassification, T.ViTConfig(**VIT), images),
    "Mixtral": (T.MixtralForCausalLM, T.MixtralConfig(**MOE), language),
}


def build(name, **changes):
    cls, config, loss = MODELS[name]
    torch.manual_seed(0)
    return cls(config).eval(), loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_a_perturbed_copy(name, dtype):
    model, loss = build(name)
    streams(Streamed(model.to(dtype)), loss)
