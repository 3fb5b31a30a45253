"""A model that computes with a file: the model that transformers loads, bit for bit, in less memory than its weights have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import zokern
from zokern.errors import BadInput, Unwritable
from zokern.finetune import offload
from zokern.mapped import MappedWeights, write

SMALL = dict(vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
MODELS = {
    "llama": transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama, tied": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "opt": transformers.OPTConfig(**{**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 8}),
    "mixtral": transformers.MixtralConfig(**SMALL, num_local_experts=3, num_key_value_heads=1),
}
TOKENS = torch.arange(12).view(2, 6)
CAUSAL = transformers.AutoModelForCausalLM


@pytest.fixture
def checkpoint(tmp_path):
    """(config, class, options of save_pretrained) -> the folder of such a model in several files, with random values everywhere."""

    def save(config, auto=CAUSAL, **options):
        torch.manual_seed(0)
        model = auto.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0.0, 0.1)
        if model.can_generate():
            model.generation_config.max_new_tokens = 5
        model.save_pretrained(tmp_path / "checkpoint", **{"max_shard_size": "4KB", **options})
        return tmp_path / "checkpoint"

    return save


def mapped(folder, path, dtype=torch.float32, auto=CAUSAL, **options):
    """The model and its weights."""
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    model = offload.without_weights(auto, config, dtype)
    return model, offload.working_copy(folder, model, path)


def assert_same(model, other):
    """Parameters with their ties, buffers, configuration, and what they compute."""
    for kind in ("named_parameters", "named_buffers"):
        found, expected = (dict(getattr(each, kind)(remove_duplicate=False)) for each in (model, other))
        assert found.keys() == expected.keys()
        for name, t in expected.items():
            assert found[name].dtype == t.dtype and torch.equal(found[name], t), name
    assert len([*model.parameters()]) == len([*other.parameters()])
    assert model.training == other.training
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)
    if model.can_generate():
        assert model.generation_config.max_new_tokens == 5
        assert torch.equal(model.generate(TOKENS, do_sample=False), other.generate(TOKENS, do_sample=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_working_copy_is_what_transformers_loads_and_saves(name, dtype, checkpoint, tmp_path):
    folder = checkpoint(MODELS[name], save_original_format=False)
    assert len([*folder.glob("*.safetensors")]) > 2
    model, weights = mapped(folder, tmp_path / "weights.safetensors", dtype)
    plain = CAUSAL.from_pretrained(folder, dtype=torch.float32).to(dtype)
    assert_same(model, plain)
    for each in (plain, model):
        zokern.ops.add_noise_(zokern.Layout(each.named_parameters()), [(zokern.NoiseKey(7, 0), 0.01)])
    assert_same(model, plain)
    offload.save(model, tmp_path / "saved", "4KB")
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2 and index.keys() == weights.tensors.keys()
    assert_same(model, CAUSAL.from_pretrained(tmp_path / "saved", dtype=torch.float32).to(dtype))
    assert {p.data_ptr() for p in model.parameters()} == {t.data_ptr() for t in weights.tensors.values()}


def test_a_checkpoint_in_sixteen_bits_becomes_one_in_float32(checkpoint, tmp_path):
    folder = checkpoint(MODELS["gpt2"])
    CAUSAL.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "sixteen")
    model, _ = mapped(tmp_path / "sixteen", tmp_path / "weights.safetensors")
    assert_same(model, CAUSAL.from_pretrained(tmp_path / "sixteen", dtype=torch.float32))


@pytest.mark.parametrize("name, auto", [("llama, tied", CAUSAL), ("bert", transformers.AutoModelForSequenceClassification)])
def test_names_of_a_base_model_and_classifiers(name, auto, checkpoint, tmp_path):
    config = MODELS.get(name) or transformers.BertConfig(**SMALL, num_labels=3)
    folder = checkpoint(config, transformers.AutoModel if name in MODELS else auto)
    if name in MODELS:
        (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 5}))
    model, _ = mapped(folder, tmp_path / "weights.safetensors", auto=auto)
    assert_same(model, auto.from_pretrained(folder, dtype=torch.float32))


def test_a_tied_weight_that_is_there_twice(checkpoint, tmp_path):
    folder = checkpoint(MODELS["llama, tied"], max_shard_size="1GB")
    file = folder / "model.safetensors"
    tensors = MappedWeights(file).tensors
    write(tmp_path / "twice.safetensors", {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    (tmp_path / "twice.safetensors").replace(file)
    model, weights = mapped(folder, tmp_path / "weights.safetensors")
    assert_same(model, CAUSAL.from_pretrained(folder, dtype=torch.float32))
    weights.close()
    write(tmp_path / "twice.safetensors", {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    (tmp_path / "twice.safetensors").replace(file)
    with pytest.raises(BadInput, match="'model.embed_tokens.weight' and 'lm_head.weight', which the model shares, with other values"):
        mapped(folder, tmp_path / "weights.safetensors")


CURE = r"from_pretrained\(.*\).save_pretrained\(other, save_original_format=False\) once"


def test_checkpoints_that_cannot_be_read_tensor_by_tensor(checkpoint, tmp_path):
    head = transformers.AutoModelForSequenceClassification
    folder = checkpoint(MODELS["mixtral"])
    with pytest.raises(BadInput, match=f"lacks 'model.layers.0.mlp.gate.weight' of the model: call MixtralForCausalLM.{CURE}"):
        mapped(folder, tmp_path / "weights.safetensors")
    folder = checkpoint(MODELS["gpt2"])
    with pytest.raises(BadInput, match=f"lacks 'score.weight' of the model: call GPT2ForSequenceClassification.{CURE}"):
        mapped(folder, tmp_path / "weights.safetensors", auto=head)
    head.from_pretrained(folder, num_labels=3).save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match=r"holds 'score.weight' of shape \(3, 16\), and 'score.weight' of the model has \(2, 16\): call"):
        mapped(tmp_path / "other", tmp_path / "weights.safetensors", auto=head, num_labels=2)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=f"holds weights in torch's own format, .*{CURE}"):
        mapped(folder, tmp_path / "weights.safetensors")
    assert not list(tmp_path.glob("weights.*"))


def test_no_room_for_the_copy(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unwritable, match="/file' cannot be written"):
        mapped(checkpoint(MODELS["gpt2"]), tmp_path / "file" / "weights.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which limits a process's own memory alone")
def test_a_model_that_does_not_fit(checkpoint, tmp_path):
    """Of 100 MiB, in files of at most 20 MB, where there are 32 MiB beside what libraries take."""
    config = transformers.LlamaConfig(vocab_size=4096, hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=4)
    folder = checkpoint(config, max_shard_size="20MB")
    assert sum(file.stat().st_size for file in folder.iterdir()) > 100 << 20
    # Large tensors go back to the system as they are let go of, or what they leave in malloc's heap would count.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "PYTHONPATH": str(Path(zokern.__file__).parent.parent)}
    command = [sys.executable, Path(__file__).parent.parent / "offload_worker.py", folder, tmp_path, "32"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    plain = CAUSAL.from_pretrained(folder, dtype=torch.float32)
    zokern.ops.add_noise_(zokern.Layout(plain.named_parameters()), [(zokern.NoiseKey(7, 0), 0.01)])
    assert json.loads(result.stdout) == plain.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).tolist()
    saved = CAUSAL.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert all(torch.equal(p, q) for p, q in zip(saved.parameters(), plain.parameters()))
