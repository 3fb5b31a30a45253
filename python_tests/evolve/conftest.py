"""Real tokenizers, trained on the licence, and tiny models that write much different text: random and with large weights."""

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

LICENSE = Path(__file__).parents[2] / "LICENSE"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory):
    """(form of a text, names of special tokens) -> a byte-level tokenizer, saved and loaded."""

    def make(single, template=None, **names):
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        special = ["<pad>", "<s>", "</s>"]
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator([LICENSE.read_text()], trainer)
        made.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
        folder = tmp_path_factory.mktemp("tokenizer")
        transformers.PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **names).save_pretrained(folder)
        return transformers.AutoTokenizer.from_pretrained(folder)

    return make


@pytest.fixture(scope="session")
def tokenizer(tokenizer_of):
    """Begins every text with a token of its own, as Llama's, and has no padding token; with a chat template."""
    return tokenizer_of("<s> $A", template=TEMPLATE, bos_token="<s>", eos_token="</s>")


def tiny(vocabulary, kind="Llama", dtype=torch.float32, **more):
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, max_position_embeddings=128)
    if kind == "Llama":
        small |= dict(num_key_value_heads=2, initializer_range=0.6)
    else:  # OPT, whose positions are learned
        small = {name: value for name, value in small.items() if name != "intermediate_size"}
        small |= dict(ffn_dim=32, word_embed_proj_dim=16, init_std=0.6)
    config = getattr(transformers, f"{kind}Config")(vocab_size=vocabulary, **small, **more)
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()


@pytest.fixture
def model(tokenizer):
    return tiny(len(tokenizer))


@pytest.fixture
def model_of(tokenizer):
    return lambda *args, **more: tiny(len(tokenizer), *args, **more)
