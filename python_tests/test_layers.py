"""zokern.layers on the models it names: what comes before and after the blocks is told by running the model."""

import re
from functools import partial

import peft
import pytest
import torch
import transformers
from torch import nn

import zokern

SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, max_position_embeddings=24)
LLAMA = dict(SMALL, num_key_value_heads=2, pad_token_id=0)
OPT = dict(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=24, max_position_embeddings=24)
GPT2 = dict(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=24, pad_token_id=0)
DISTIL = dict(vocab_size=40, dim=16, n_layers=3, n_heads=2, hidden_dim=24, max_position_embeddings=24)
BART = dict(vocab_size=40, d_model=16, decoder_layers=3, decoder_attention_heads=2, decoder_ffn_dim=24, max_position_embeddings=24)
T = transformers

# name: (class, config, name of the list of blocks)
MODELS = {
    "OPT": (T.OPTForCausalLM, T.OPTConfig(**OPT, word_embed_proj_dim=16), "model.decoder.layers"),
    "OPT with projections": (T.OPTForCausalLM, T.OPTConfig(**OPT, word_embed_proj_dim=8), "model.decoder.layers"),
    "OPT classifier": (T.OPTForSequenceClassification, T.OPTConfig(**OPT, word_embed_proj_dim=16), "model.decoder.layers"),
    "GPT-2": (T.GPT2LMHeadModel, T.GPT2Config(**GPT2), "transformer.h"),
    "GPT-2 untied": (T.GPT2LMHeadModel, T.GPT2Config(**GPT2, tie_word_embeddings=False), "transformer.h"),
    "GPT-2 classifier": (T.GPT2ForSequenceClassification, T.GPT2Config(**GPT2), "transformer.h"),
    "RoBERTa classifier": (T.RobertaForSequenceClassification, T.RobertaConfig(**SMALL), "roberta.encoder.layer"),
    "RoBERTa": (T.RobertaForMaskedLM, T.RobertaConfig(**SMALL), "roberta.encoder.layer"),
    "BERT": (T.BertForMaskedLM, T.BertConfig(**SMALL), "bert.encoder.layer"),
    "BERT classifier": (T.BertForSequenceClassification, T.BertConfig(**SMALL), "bert.encoder.layer"),
    "MiniLM": (T.BertModel, T.BertConfig(**SMALL), "encoder.layer"),
    "DistilBERT": (T.DistilBertForSequenceClassification, T.DistilBertConfig(**DISTIL), "distilbert.transformer.layer"),
    "Llama": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA), "model.layers"),
    "Llama tied": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA, tie_word_embeddings=True), "model.layers"),
    "Qwen2": (T.Qwen2ForCausalLM, T.Qwen2Config(**LLAMA, tie_word_embeddings=True), "model.layers"),
    "BART's decoder": (T.BartForCausalLM, T.BartConfig(**BART), "model.decoder.layers"),  # a norm of embeddings after the blocks
    "Qwen2 classifier": (T.Qwen2ForSequenceClassification, T.Qwen2Config(**LLAMA), "model.layers"),
}


def build(name, lora=False):
    cls, config, stack = MODELS[name]
    torch.manual_seed(0)
    model = cls(config)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
        stack = f"base_model.model.{stack}"
    return model.eval(), stack


def order_of_use(model, blocks):
    """{parameter: whether its module is first called before the first block}, of all modules called outside the blocks."""
    inside = {module for block in blocks for module in block.modules()}
    reached, before = [], {}

    def note(module, *_):
        if module in blocks:
            reached.append(module)
        elif module not in inside:
            for p in module.parameters(recurse=False):
                before.setdefault(p, not reached)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    model(torch.randint(1, 40, (2, 6)))
    for hook in hooks:
        hook.remove()
    return before


def once(model, found):
    """Each parameter of the model is in exactly one place."""
    listed = [*found.embeddings, *(p for block in found.params for p in block), *found.head]
    return sorted(map(id, listed)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_is_where_the_model_uses_it(name, lora):
    model, stack = build(name, lora)
    found = zokern.layers(model)
    assert found.names == [f"{stack}.{i}" for i in range(3)]
    assert found.modules == [model.get_submodule(block) for block in found.names]
    assert once(model, found)
    for block, params in zip(found.modules, found.params):
        assert set(params) == set(block.parameters())
    before = order_of_use(model, found.modules)
    assert {p for p, early in before.items() if early} == {p for p in found.embeddings if p in before}
    assert {p for p, early in before.items() if not early} == {p for p in found.head if p in before}
    unused = {found.titles[p] for p in (*found.embeddings, *found.head) if p not in before}
    # Parameters that their module's parent reads without calling it: the decoders' biases, and LoRA's of embeddings.
    assert all(title.endswith(".bias") or "lora" in title for title in unused), unused


def test_names_that_were_written_down_by_hand():
    found = zokern.layers(build("OPT with projections")[0])
    names = lambda part: [found.titles[p].removeprefix("model.decoder.") for p in part]  # noqa: E731
    assert names(found.embeddings) == ["embed_tokens.weight", "embed_positions.weight", "project_in.weight"]
    assert names(found.head) == ["project_out.weight", "final_layer_norm.weight", "final_layer_norm.bias"]
    found = zokern.layers(build("BERT classifier")[0])
    names = lambda part: [found.titles[p] for p in part]  # noqa: E731
    assert all(name.startswith("bert.embeddings.") for name in names(found.embeddings)) and len(found.embeddings) == 5
    assert names(found.head) == ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    found = zokern.layers(build("GPT-2")[0])
    assert names(found.embeddings) == ["transformer.wte.weight", "transformer.wpe.weight"]  # the tied head among them
    assert names(found.head) == ["transformer.ln_f.weight", "transformer.ln_f.bias"]


def test_blocks_hold_what_is_trainable_and_no_empty_lists():
    model, _ = build("RoBERTa classifier")
    found = zokern.layers(model)
    assert [set(part) for part in found.blocks()] == [set(found.embeddings), *map(set, found.params), set(found.head)]
    for p in (*found.embeddings, *found.params[1]):
        p.requires_grad_(False)
    found.head[0].requires_grad_(False)
    assert [set(part) for part in found.blocks()] == [set(found.params[0]), set(found.params[2]), set(found.head[1:])]
    adapted = zokern.layers(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])))
    assert [len(part) for part in adapted.blocks()] == [2, 2, 2, 4]  # A and B of each block; the new classifier


def test_a_plain_sequential():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.LayerNorm(4))
    found = zokern.layers(model)
    assert found.names == ["0", "2", "3"] and found.embeddings == found.head == [] and once(model, found)


def test_a_sequential_with_an_embedding_before_and_a_head_on_top():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 9)
            self.body = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
            self.scale = nn.Linear(1, 1)

    model = Model()
    found = zokern.layers(model)
    assert found.names == ["body.1", "body.2"] and once(model, found)
    assert found.embeddings == [model.body[0].weight]
    assert set(found.head) == {*model.head.parameters(), *model.scale.parameters()}
    model.body[1].weight = model.body[0].weight  # tied: still once, and with the embeddings
    found = zokern.layers(model)
    assert once(model, found) and found.params[0] == [model.body[1].bias]


def test_the_names_of_containers_say_nothing():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedder = T.BertModel(T.BertConfig(**SMALL), add_pooling_layer=False)
            self.embedder.norm = nn.LayerNorm(16)

    model = Model()
    found = zokern.layers(model)
    assert set(found.head) == set(model.embedder.norm.parameters())
    assert set(found.embeddings) == set(model.embedder.embeddings.parameters())


def test_a_parameter_of_two_blocks_is_the_first_ones():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    found = zokern.layers(model)
    assert once(model, found) and found.params == [[model[0].weight, model[0].bias], [model[1].bias]]


def t5():
    config = T.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return T.T5ForConditionalGeneration(config)


def test_an_encoder_decoder_is_asked_for_its_blocks():
    model = t5()
    message = r"several lists of layers \(encoder.block, decoder.block\): .*blocks=\[\*model.encoder.block, \*model.decoder.block\]"
    with pytest.raises(ValueError, match=message):
        zokern.layers(model)
    found = zokern.layers(model, blocks=[*model.encoder.block, *model.decoder.block])
    assert once(model, found) and len(found.params) == 4 and found.names[3] == "decoder.block.1"
    assert found.embeddings == [model.shared.weight]
    assert {found.titles[p] for p in found.head} >= {"encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"}


def llava():
    vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4)
    text = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=40)
    config = T.LlavaConfig(
        vision_config=T.CLIPVisionConfig(**vision), text_config=T.LlamaConfig(**text), image_token_id=39, vision_feature_layer=-1
    )
    return T.LlavaForConditionalGeneration(config)


def of_t5(model):
    ids = torch.arange(6).view(2, 3)
    return model(input_ids=ids, labels=ids).loss


def of_llava(model):
    ids = torch.tensor([[39, 39, 39, 39, 5, 6, 7]])
    return model(input_ids=ids, pixel_values=torch.ones(1, 3, 8, 8), labels=ids).loss


@pytest.mark.parametrize("make, loss", [(t5, of_t5), (llava, of_llava)], ids=["T5", "LLaVA"])
def test_the_cure_for_several_lists_of_layers_is_one(make, loss):
    """What the message says to pass, in the places that take a model."""
    torch.manual_seed(0)
    model = make().eval()
    with pytest.raises(ValueError) as error:
        zokern.MeZO(model.named_parameters(), blocks=model)
    cure = re.search(r"pass (zokern.layers\(.*\)) in the model's place$", str(error.value))[1]
    found = eval(cure, {"zokern": zokern, "model": model})
    optimizer = zokern.MeZO(model.named_parameters(), blocks=found)
    assert once(model, found) and len(optimizer.layout.blocks) == 4 + 2 and optimizer.forwards == 12
    assert optimizer.step(lambda: loss(model)).isfinite()
    hybrid = zokern.Hybrid(found, partial(zokern.MeZO, lr=1e-3), partial(torch.optim.SGD, lr=1e-3), zokern.splits.Depth(3))
    assert hybrid.step(lambda: loss(model)).isfinite()


def test_layers_are_shown_by_name_and_number():
    model = t5()
    shown = repr(zokern.layers(model, blocks=[*model.encoder.block, *model.decoder.block]))
    numbers = [sum(p.numel() for block in (model.encoder.block, model.decoder.block) for p in block.parameters()), 40 * 16, 2 * 16]
    assert shown == (
        f"Layers(4 blocks: encoder.block.0, ..., decoder.block.1; parameters: {numbers[0]:,} in the blocks, "
        f"{numbers[1]:,} in the embeddings, {numbers[2]:,} in the head)"
    )
    assert repr(zokern.layers(nn.Sequential(nn.Linear(2, 2)))).startswith("Layers(1 block: 0; ")


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: (nn.Linear(2, 2),), ValueError, r"no layers found in a Linear, .*pass zokern.layers\(model, blocks=\["),
        (lambda: (nn.Sequential(nn.Embedding(2, 2)),), ValueError, "no layers found in a Sequential"),
        (lambda: ([nn.Linear(2, 2)],), TypeError, "model is a list: pass the torch.nn.Module"),
        (lambda: (nn.Sequential(nn.Linear(2, 2)), []), ValueError, r"blocks=\[\]: pass at least one"),
        (lambda: (nn.Sequential(nn.Linear(2, 2)), [nn.Linear(2, 2)]), ValueError, r"blocks\[0\], a Linear, is not in the model"),
        (lambda: (nn.Sequential(nn.Linear(2, 2)), ["0"]), TypeError, r"blocks\[0\] is a str: pass modules"),
        (lambda: ((m := nn.Sequential(nn.Linear(2, 2))), [m, m[0]]), ValueError, r"blocks\[1\] \('0'\) is inside blocks\[0\]"),
        (lambda: ((m := nn.Sequential(nn.Linear(2, 2))), [m[0], m[0]]), ValueError, r"blocks\[0\] \('0'\) is inside blocks\[1\]"),
    ],
)
def test_errors_say_what_to_pass(make, error, message):
    with pytest.raises(error, match=message):
        zokern.layers(*make())
