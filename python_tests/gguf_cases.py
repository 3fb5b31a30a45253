"""A tiny Llama and its tokenizer, and GGUF files of it, written by the package gguf as llama.cpp's own converter writes them."""

import json
from pathlib import Path

import gguf
import tokenizers
import torch
import transformers

HEADS, KEY_HEADS, LAYERS = 4, 2, 2
LICENSE = Path(__file__).parent.parent / "LICENSE"
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<s>", "</s>"]  # without the first, transformers adds it


def llama(words):
    """The model, with weights that the same call makes again, large enough that it writes much different text."""
    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS)
    config = transformers.LlamaConfig(
        vocab_size=words, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=True, **size
    )
    return transformers.LlamaForCausalLM(config).eval()


def vocabulary():
    """-> (tokens in their order, merges), of a byte-level tokenizer."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([LICENSE.read_text()], trainer)
    merges = json.loads(made.to_str())["model"]["merges"]
    return sorted(made.get_vocab(), key=made.get_vocab().get), [" ".join(merge) for merge in merges]


def write(path, kind=gguf.GGMLQuantizationType.F32, template=None, seed=None, architecture="llama", without=(), more=None, tokenizer=True):
    """A GGUF file of the model.

    Args:
        kind: of its matrices' weights. template: of chats. architecture: that it says it has.
        seed: of other weights than the model's.
        without: names of tensors that it lacks. more: others that it holds, by name.
        tokenizer: whether it holds one.
    Returns:
        The model, before its weights became those of the file.
    """
    tokens, merges = vocabulary()
    model = llama(len(tokens))
    if seed is not None:
        torch.manual_seed(seed)
        for p in model.parameters():
            p.data.normal_(0.0, 0.3)
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
        writer.add_token_merges(merges)
        writer.add_pad_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    if template:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    tensors = {names.get_name(name, (".weight",)): p.detach() for name, p in model.named_parameters()}
    for name, tensor in (tensors | (more or {})).items():
        if name in without:
            continue
        for part, heads in (("attn_q", HEADS), ("attn_k", KEY_HEADS)):
            if part in name:  # llama.cpp rotates neighbouring rows, transformers the two halves of a head
                tensor = tensor.view(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
        own = kind if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
        if tensor.is_floating_point():
            writer.add_tensor(name, gguf.quants.quantize(tensor.contiguous().numpy(), own), raw_dtype=own)
        else:  # as it is
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def dequantised(path, heads, key_heads):
    """The tensors of a file of a Llama, by transformers' names, computed from the format alone: each row of a head where it belongs."""
    reader = gguf.GGUFReader(path)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    parts |= {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"} | {"attn_output": "self_attn.o_proj"}
    parts |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    found = {}
    for held in reader.tensors:
        name = held.name.removesuffix(".weight")
        values = torch.from_numpy(gguf.quants.dequantize(held.data, held.tensor_type).copy()).reshape(*reversed(held.shape.tolist()))
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            if count := {"attn_q": heads, "attn_k": key_heads}.get(part):
                size = len(values) // count
                rows = [head * size + 2 * (row % (size // 2)) + row // (size // 2) for head in range(count) for row in range(size)]
                values = values[rows]
            found[f"model.layers.{layer}.{parts[part]}.weight"] = values
        else:
            found[f"{names[name]}.weight"] = values
    return found
