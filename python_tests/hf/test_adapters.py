"""What is trained is what was asked for, and nothing else."""

import copy
import pickle
import re

import peft
import pytest
import torch
import transformers
from hf_cases import SIZE, WIDE, make, rows, weights

import zokern
from zokern.hf import STARTING_POINTS, adapt, both_names, lora_plus

LAYERS = 2
WIDTH = SIZE["hidden_size"]
# model, method -> (numbers trained, what their names hold): q and v of two layers, rank 8; 5 virtual tokens of keys and values, 10 of
# embeddings; OPT's new head is 2 x 16, RoBERTa's a dense layer and an output, both with biases.
B, MAGNITUDE, PREFIX, PROMPT = 2 * LAYERS * 8 * WIDTH, 2 * LAYERS * WIDTH, 5 * LAYERS * 2 * WIDTH, 10 * WIDTH
HEADS = {"opt-lm": 0, "opt-cls": 2 * WIDTH, "roberta": WIDTH * WIDTH + WIDTH + 2 * WIDTH + 2}
TRAINED = {
    "lora": (B, {"lora_B"}),
    "dora": (B + MAGNITUDE, {"lora_B", "lora_magnitude_vector"}),
    "prefix": (PREFIX, {"prompt_encoder"}),
    "prompt": (PROMPT, {"prompt_encoder"}),
}


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("name", HEADS)
def test_trained_parts(name, method, dtype):
    model = make(name, method, dtype)
    count, kinds = TRAINED[method]
    parts = trained(model)
    assert sum(p.numel() for p in parts.values()) == count + HEADS[name]
    assert all(any(kind in n for kind in kinds | {"modules_to_save"}) for n in parts)
    assert {p.dtype for p in parts.values()} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if n not in parts and "lora_A" not in n} == {dtype}
    assert model.peft_config["default"].task_type == ("CAUSAL_LM" if name == "opt-lm" else "SEQ_CLS")


def loss_that_every_part_moves(model, batch):
    """The loss, which is another with any trained tensor moved, and the same when all are back."""
    before = model(**batch).loss
    for p in trained(model).values():
        held = p.clone()
        p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        assert model(**batch).loss != before
        p.copy_(held)
    assert model(**batch).loss == before
    return before


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("name", HEADS)
def test_the_loss_depends_on_every_part(name, method):
    """Every trained tensor matters from the first step on, and only so."""
    model = make(name, method).eval()
    batch = transformers.default_data_collator(rows(name, 4))
    with torch.no_grad():
        before = loss_that_every_part_moves(model, batch)
        for part, p in model.named_parameters():
            if "lora_A" in part:
                p += 1.0
        assert model(**batch).loss == before  # why A is not trained


@pytest.mark.parametrize("method", ["full", *TRAINED])
def test_zeroth_order_steps_learn(method, trainer_of):
    """Random rows by heart: the loss on them falls by a tenth at least, under every adapter."""
    settings = {"full": (3e-3, 1e-3), "lora": (3e-2, 1e-2), "dora": (3e-2, 1e-2), "prefix": (3e-2, 1e-1), "prompt": (3e-2, 1e-1)}
    lr, eps = settings[method]
    data = rows("opt-cls", 8)
    trainer = trainer_of(
        "opt-cls",
        method,
        (zokern.MeZO, {"lr": lr, "eps": eps}),
        per_device_train_batch_size=8,
        max_steps=80,
        logging_steps=80,
        lr_scheduler_type="constant",
        trainer={"train_dataset": data, "eval_dataset": data},
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before


def test_a_prefix_begins_as_tokens(monkeypatch):
    """Before a causal model it is those very tokens: the same logits as with them in front."""
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**SIZE, **WIDE, ffn_dim=32, word_embed_proj_dim=16)).eval()
    tokens = torch.tensor([[50, 3, 17, 17, 8]])
    ids = torch.tensor([[9, 4, 33, 20]])
    with torch.no_grad():
        expected = model(torch.cat([tokens, ids], 1)).logits[:, 5:]
        monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: tokens)
        adapted = adapt(model, "prefix").eval()
        assert torch.allclose(adapted(ids, attention_mask=torch.ones_like(ids)).logits, expected, atol=1e-5)
    random = adapt(make("opt-lm"), "prefix", start="random", num_virtual_tokens=3)
    assert trained(random)["prompt_encoder.default.embedding.weight"].shape == (3, 2 * LAYERS * WIDTH)


SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def other_kind(kind):
    """-> (model, batch with labels) of a kind that is not a language model alone."""
    torch.manual_seed(0)
    image, text = dict(image_size=8, patch_size=4), dict(vocab_size=50, **SMALL)
    labels, ids = torch.tensor([0, 1]), torch.randint(5, 40, (2, 6))
    if kind == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **image))
        return model, dict(pixel_values=torch.randn(2, 3, 8, 8), labels=labels)
    if kind == "wav2vec2":
        conv = dict(conv_dim=(8,), conv_stride=(2,), conv_kernel=(2,), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
        model = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(**SMALL, **conv, num_feat_extract_layers=1))
        return model, dict(input_values=torch.randn(2, 64), labels=labels)
    if kind == "bart":
        sizes = {
            f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
        }
        model = transformers.BartForSequenceClassification(transformers.BartConfig(vocab_size=50, d_model=16, **sizes, num_labels=2))
        ids[:, -1] = model.config.eos_token_id
        return model, dict(input_ids=ids, labels=labels)
    vision, text = transformers.CLIPVisionConfig(**SMALL, **image), transformers.LlamaConfig(**text)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=49, vision_feature_layer=-1)
    )
    ids[:, :4] = 49
    return model, dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(2, 3, 8, 8), labels=ids % 49)


@pytest.mark.parametrize("method", ["lora", "dora", "prefix", "prompt"])
@pytest.mark.parametrize("kind, head", [("vit", 2), ("wav2vec2", 4), ("bart", 4), ("llava", 0)])
def test_other_kinds_are_adapted_with_their_new_head_or_refused(kind, head, method):
    model, batch = other_kind(kind)
    refused = {
        "vit": "puts tokens before a text, and ViTForImageClassification reads pixel_values",
        "wav2vec2": "puts tokens before a text, and Wav2Vec2ForSequenceClassification reads input_values",
        "bart": "peft does not find the head of BartForSequenceClassification, classification_head",
    }
    if method in ("prefix", "prompt") and kind in refused:
        with pytest.raises(ValueError, match=refused[kind]):
            adapt(model, method)
        return
    model = adapt(model, method).eval().double()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    new = [name for name in trained(model) if "lora_" not in name and "prompt_encoder" not in name]
    assert len(new) == head and all("modules_to_save" in name for name in new)
    with torch.no_grad():
        loss_that_every_part_moves(model, batch)


def test_a_model_whose_decoder_sees_no_tokens_alone_begins_with_a_random_prefix():
    config = transformers.T5Config(vocab_size=50, d_model=16, num_layers=1, num_heads=2, d_ff=32, d_kv=8, decoder_start_token_id=0)
    with pytest.raises(ValueError, match='T5ForConditionalGeneration cannot be asked for the keys of tokens .*: pass start="random"'):
        adapt(transformers.T5ForConditionalGeneration(config), "prefix")
    assert trained(adapt(transformers.T5ForConditionalGeneration(config), "prefix", start="random"))


def test_an_adapter_is_saved_and_loaded_by_peft(trainer_of, tmp_path):
    trainer = trainer_of("opt-cls", "lora")
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    loaded = peft.PeftModel.from_pretrained(make("opt-cls"), tmp_path / "saved").eval()
    batch = transformers.default_data_collator(rows("opt-cls", 4))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trainer.model.eval()(**batch).logits)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
@pytest.mark.parametrize("name", ["opt-cls", "roberta"])
def test_virtual_tokens_that_peft_has_loaded(name, method, tmp_path):
    """Whatever the model's transformers calls its cache, in a copy and after a pickle as well."""
    model = make(name, method).eval()
    model.save_pretrained(tmp_path)
    loaded = both_names(peft.PeftModel.from_pretrained(make(name), tmp_path)).eval()
    batch = transformers.default_data_collator(rows(name, 4))
    with torch.no_grad():
        expected = model(**batch).logits
        for other in (loaded, both_names(loaded), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
            assert torch.equal(other(**batch).logits, expected)


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_an_adapted_model_writes_what_is_likeliest(method):
    model = make("opt-lm", method).eval()
    with torch.no_grad():
        for p in trained(model).values():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
        ids = torch.tensor([[9, 4, 33, 20], [7, 50, 12, 5]])
        written = ids
        for _ in range(6):
            written = torch.cat([written, model(written, attention_mask=torch.ones_like(written)).logits[:, -1:].argmax(-1)], 1)
        for other in (model, copy.deepcopy(model)):
            made = other.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=1
            )
            assert torch.equal(made, written)


def test_heads_and_patterns():
    heads = {"opt-cls": {"score.weight"}, "roberta": {f"classifier.{n}.{k}" for n in ("dense", "out_proj") for k in ("weight", "bias")}}
    for name, expected in heads.items():
        model = adapt(make(name, dtype=torch.bfloat16), "head")
        assert set(trained(model)) == expected
        assert {p.dtype for p in trained(model).values()} == {torch.float32}
    names = [name for name, _ in make("opt-cls").named_parameters()]
    assert set(trained(adapt(make("opt-cls"), "*.layers.1.*"))) == {n for n in names if ".layers.1." in n}
    both = adapt(make("opt-cls"), ["score.*", re.compile(r"layers\.0\.fc[12]\.bias$")])
    assert set(trained(both)) == {"score.weight", "model.decoder.layers.0.fc1.bias", "model.decoder.layers.0.fc2.bias"}
    assert set(trained(adapt(both, "full"))) == set(names)


def test_options_are_those_of_peft():
    model = adapt(make("opt-lm"), "lora", r=2, target_modules=["fc1"], train_a=True)
    assert {name.split(".")[-4] for name in trained(model)} == {"fc1"}
    assert sum(p.numel() for p in trained(model).values()) == LAYERS * 2 * (16 + 32)
    assert model.peft_config["default"].lora_dropout == 0.0 and model.peft_config["default"].lora_alpha == 16


def test_lora_plus_has_two_rates(trainer_of):
    model = adapt(make("opt-cls"), "lora", train_a=True)
    optimizer = lora_plus(model, zokern.ZOAdam, lr=1e-4, ratio=16, eps=1e-2, seed=3)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates.keys() == trained(model).keys() and optimizer.param_groups[0]["seed"] == 3
    assert all(rate == pytest.approx(1.6e-3 if "lora_B" in name else 1e-4) for name, rate in rates.items())
    before = weights(model)
    trainer = trainer_of("opt-cls", model=model, trainer={"optimizers": (optimizer, None)}, lr_scheduler_type="constant", max_steps=3)
    trainer.train()
    moved = {name: float((p - before[name]).abs().max()) for name, p in weights(model).items()}
    assert min(v for n, v in moved.items() if "lora_B" in n) > 4 * max(v for n, v in moved.items() if "lora_B" not in n) > 0


def refused():
    opt = lambda: make("opt-cls")  # noqa: E731
    nearest = r"'model.decoder.layers.1.fc1.wieght' names no parameter; nearest are model.decoder.layers.1.fc1.weight"
    yield "pattern", lambda: adapt(opt(), "model.decoder.layers.1.fc1.wieght"), nearest
    yield "expression", lambda: adapt(opt(), [re.compile("fc3")]), "'fc3' names no parameter"
    yield "method", lambda: adapt(opt(), "lorra"), "or one of lora, dora"
    yield "nothing", lambda: adapt(opt(), []), r"\[\] names nothing"
    yield "tied head", lambda: adapt(make("opt-lm"), "head"), "OPTForCausalLM has no head of its own"
    yield "option", lambda: adapt(opt(), "lora", rank=8), "options .*rank.* do not make a LoraConfig"
    yield "head's option", lambda: adapt(opt(), "head", r=8), "r: options of peft's, and 'head' has none"
    yield "train_a", lambda: adapt(opt(), "prefix", train_a=True), "train_a belongs to lora and dora, not to 'prefix'"
    yield "start", lambda: adapt(opt(), "lora", start="random"), "start belongs to prefix"
    yield "start's value", lambda: adapt(opt(), "prefix", start="zero"), "start='zero'"
    yield "twice", lambda: adapt(adapt(opt(), "lora"), "prompt"), "adapted by peft already"
    yield "task", lambda: adapt(opt().model, "lora"), "task_type=None, and OPTModel does not tell"
    yield "modules", lambda: adapt(opt(), "lora", target_modules=["nowhere"]), "check your `target_modules`"
    yield "ratio of a frozen A", lambda: lora_plus(adapt(opt(), "lora"), zokern.MeZO, lr=1e-4, ratio=16), "no A of LoRA is trained"
    yield "ratio", lambda: lora_plus(adapt(opt(), "lora", train_a=True), zokern.MeZO, lr=1e-4, ratio=0.5), "ratio=0.5"


@pytest.mark.parametrize("call, message", [pytest.param(*case[1:], id=case[0]) for case in refused()])
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_starting_point_can_be_started(trainer_of):
    for method, point in STARTING_POINTS.items():
        assert 0 < point.lr[0] <= point.lr[1] and point.source
        trainer = trainer_of("opt-cls", method, (zokern.MeZO, {"lr": point.lr[1], "eps": point.eps}), max_steps=1)
        trainer.train()
        assert trainer.zeroth_order.skipped == 0
