"""Real tokenizers, trained on the licence, and tiny models that write much different text: random and with large weights."""

import json

import pytest
import torch
from licence_tokenizer import licence_tokenizer

from zokern.evolve import Settings

transformers = pytest.importorskip("transformers")

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory):
    """(form of a text, names of special tokens) -> a byte-level tokenizer, saved and loaded."""

    return lambda single, template=None, **names: licence_tokenizer(tmp_path_factory.mktemp("tokenizer"), single, template, **names)


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


@pytest.fixture(scope="session")
def saved(tmp_path_factory, tokenizer):
    """The folder of the tiny Llama."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sums(tmp_path_factory):
    """A jsonl file of 20 prompts, with answers."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i} and {i} is", "answer": str(2 * i)}) + "\n" for i in range(20)))
    return path


@pytest.fixture
def settings(saved, sums, tmp_path):
    """A run of a quarter of a second; change it with ``replace``."""
    few = dict(rows=4, max_new_tokens=4, steps=5, eval_every=2, device="cpu")
    own = dict(sigma=0.05, population=4)
    return Settings(str(saved), data=str(sums), out=str(tmp_path / "run"), optimizer_settings=own, **few)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Drawing takes longer than all else in a small run: but for tests that take ``drawn`` they go without."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("zokern.evolve.report.draw", lambda *given: given[-1].touch())


@pytest.fixture
def drawn():
    """For tests in whose runs the curve is drawn."""


@pytest.fixture
def model_of(tokenizer):
    return lambda *args, **more: tiny(len(tokenizer), *args, **more)
