"""The linear probe against torch.distributions, and what LoRA leaves to zeroth-order training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zokern.errors import BadInput
from zokern.finetune import finetune
from zokern.finetune.data import load as load_data
from zokern.finetune.features import probe
from zokern.finetune.model import load as load_model

transformers = pytest.importorskip("transformers")


def shrunk(x):
    """Ledoit and Wolf's equation 14, of centred rows."""
    n, d = x.shape
    sample = sum(np.outer(row, row) for row in x) / n
    target = np.trace(sample) / d * np.eye(d)
    noise = sum(np.linalg.norm(np.outer(row, row) - sample) ** 2 for row in x) / n**2
    shrink = min(noise / np.linalg.norm(sample - target) ** 2, 1)
    return shrink * target + (1 - shrink) * sample


@pytest.mark.parametrize("adapter", ["full", "lora", "head"])
def test_logits_of_a_probe_are_log_posteriors(settings, csv_of, adapter):
    """Of Gaussians, by torch.distributions, at the very vectors that the model's pooler gives; unequal classes."""
    data = csv_of(60)
    lines = data.read_text().splitlines()
    data.write_text("\n".join([lines[0], *(line for i, line in enumerate(lines[1:]) if i % 2 or i % 3 == 0)]) + "\n")
    settings = replace(settings, data=str(data), adapter=(adapter,)).checked()
    rows = load_data(settings)
    loaded = load_model(settings, rows)
    features = [loaded.reader.encode(row) for row in rows.train]
    probe(loaded, features)
    bert = (loaded.model.get_base_model() if adapter == "lora" else loaded.model).bert
    tokens = [row["tokens"] for row in features]
    batch = loaded.tokenizer.pad({k: [row[k] for row in tokens] for k in ("input_ids", "attention_mask")}, return_tensors="pt")
    labels = torch.tensor([row["label"] for row in features])
    with torch.no_grad():
        x = bert(**batch).pooler_output.double()
        logits = loaded.model(**batch).logits
    means = torch.stack([x[labels == c].mean(0) for c in (0, 1)])
    covariance = torch.from_numpy(shrunk((x - means[labels]).numpy()))
    joint = [
        torch.distributions.MultivariateNormal(m, covariance).log_prob(x) + (labels == c).double().mean().log() for c, m in enumerate(means)
    ]
    assert (labels == 0).sum() != (labels == 1).sum()
    torch.testing.assert_close((logits[:, 1] - logits[:, 0]).double(), joint[1] - joint[0], rtol=1e-3, atol=1e-3)
    head = (loaded.model.get_base_model() if adapter == "lora" else loaded.model).classifier
    weight = torch.linalg.solve(covariance, means[1] - means[0])
    found = head.weight.detach().double()  # which is float32: half a unit of 1e-7 of each of two
    torch.testing.assert_close(found[1] - found[0], weight, rtol=0, atol=1e-6 * weight.abs().max().item())


def test_a_probe_needs_rows_that_vary(settings, tmp_path):
    data = tmp_path / "same.csv"
    data.write_text("text,label\n" + "the film,good\n" * 20 + "a story,bad\n" * 20)
    with pytest.raises(BadInput, match="--head probe cannot tell how the rows of a class vary, from 32 rows"):
        finetune(replace(settings, data=str(data), head="probe"), lambda line: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_trains_b_and_the_head_in_float32(settings, dtype):
    settings = replace(settings, adapter=("lora",), dtype=dtype).checked()
    loaded = load_model(settings, load_data(settings))
    trained = dict(loaded.trained())
    assert trained and all("lora_B" in name or "classifier" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("lora_A" in name for name, _ in loaded.model.named_parameters())
    assert loaded.model.get_base_model().bert.embeddings.word_embeddings.weight.dtype == getattr(torch, dtype)
