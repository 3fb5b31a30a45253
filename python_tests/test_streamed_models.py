"""Streamed weights of the models that people have: the same loss, to the bit, as a copy of the model with those weights."""

from functools import partial

import peft
import pytest
import torch
import transformers as T
from late_streams import Streams
from streamed_cases import TERMS, Untouched, layout_of, perturbed, streams
from torch import nn

from zokern import Streamed
from zokern.estimators.scratch import Scratch
from zokern.tasks.lean import lean_loss

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


def build(name):
    cls, config, loss = MODELS[name]
    torch.manual_seed(0)
    return cls(config).eval(), loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_a_perturbed_copy(name, dtype):
    model, loss = build(name)
    streams(Streamed(model.to(dtype)), loss)


def test_a_block_that_is_called_again_and_again_is_made_once(monkeypatch):
    model, loss = build("ALBERT")
    made, fill = [], Scratch.fill
    monkeypatch.setattr(Scratch, "fill", lambda *arguments: made.append(0) or fill(*arguments))
    streamed = Streamed(model)
    made_once = len(streamed.parts) * 2
    streams(streamed, loss)
    assert len(made) == made_once


@pytest.mark.parametrize("name", ["Llama, tied", "BERT, masked", "T5", "ALBERT", "ViT"])
def test_parts_that_are_made_ahead_as_late_as_may_be(name, monkeypatch):
    """The third evaluation of a loss is one in which most parts are made ahead."""
    late = Streams(monkeypatch)
    model, loss = build(name)
    streamed, layout = Streamed(model), layout_of(model)
    for _ in range(2):
        streams(streamed, loss, layout=layout)
    ahead = [line for line in late.log if line.startswith("side makes")]
    assert len(ahead) > len(streamed.parts)


def test_parts_of_an_encoder_decoder_may_be_given():
    model, loss = build("T5")
    streams(Streamed(model, [model, *model.encoder.block, *model.decoder.block]), loss)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model, loss = build("Llama")
    model.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
    streams(Streamed(model.train()), loss)


ADAPTERS = {
    "LoRA": peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "LoRA of an embedding": peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
    "DoRA": peft.LoraConfig(r=2, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
    "LoRA, and a head": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("all_of_it", [False, True], ids=["adapter", "all"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters(adapter, all_of_it):
    model, _ = build("Llama")
    model = peft.get_peft_model(model, ADAPTERS[adapter]).eval()
    for p in model.parameters():  # what is 0 at first shows nothing
        p.data += 0.01
    if all_of_it:
        unused = ("original_module.weight",) if adapter == "LoRA, and a head" else ()
        for name, p in model.named_parameters():
            p.requires_grad_(not name.endswith(unused) if unused else True)
    mask = torch.ones_like(IDS)
    streams(Streamed(model), lambda model: model(input_ids=IDS, attention_mask=mask, labels=IDS).loss)


def test_generation_with_a_cache():
    model, _ = build("Llama, tied")
    layout = layout_of(model)
    generate = partial(T.LlamaForCausalLM.generate, input_ids=IDS, attention_mask=torch.ones_like(IDS), do_sample=False, max_new_tokens=6)
    generate = partial(generate, output_logits=True, return_dict_in_generate=True)
    expected, streamed = generate(perturbed(model, layout)), Streamed(model)
    for _ in range(2):
        with Untouched(model), streamed.showing([layout], [layout], [TERMS]):
            made = generate(model)
        assert torch.equal(made.sequences, expected.sequences)
        assert all(torch.equal(a, b) for a, b in zip(made.logits, expected.logits))


@pytest.mark.parametrize("name", ["Llama", "Llama, tied", "GPT-2"])
def test_the_lean_loss(name):
    """Which calls the head on its own, chunk by chunk."""
    model, _ = build(name)
    streams(Streamed(model), lambda model: lean_loss(model, IDS, torch.ones_like(IDS), IDS, chunk=3))


@pytest.mark.parametrize("training", [False, True])
def test_torchs_own_encoder(training):
    """Its layers read the weights of modules inside them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False).train(training)
    x = torch.randn(2, 5, 16)
    streams(Streamed(model), lambda model: model(x).square().sum())
    streams(Streamed(model.bfloat16()), lambda model: model(x.bfloat16()).float().square().sum())
