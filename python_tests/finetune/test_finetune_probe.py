"""The linear probe against torch.distributions, and what LoRA leaves to zeroth-order training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zokern.errors import BadInput
from zokern.finetune import finetune
from zokern.finetune.data import load as load_data
from zokern.finetune.model import load as load_model
from zokern.finetune.probe import _covariance, probe

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("n, d, scale", [(40, 5, np.arange(1, 6)), (9, 30, np.arange(1, 31)), (21, 2, 1)])
def test_the_covariance_is_ledoit_and_wolfs(n, d, scale):
    """In the last case the estimate of the noise is larger than all there is to shrink: nothing but the target is left."""
    x = np.random.default_rng(n).normal(size=(n, d)) * scale
    sample = sum(np.outer(row, row) for row in x) / n
    target = np.trace(sample) / d * np.eye(d)
    noise = sum(np.linalg.norm(np.outer(row, row) - sample) ** 2 for row in x) / n**2
    shrink = min(noise / np.linalg.norm(sample - target) ** 2, 1)
    expected = shrink * target + (1 - shrink) * sample
    np.testing.assert_allclose(_covariance(torch.from_numpy(x), 2).numpy(), expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


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
    covariance = _covariance(x - means[labels], 2)
    joint = [
        torch.distributions.MultivariateNormal(m, covariance).log_prob(x) + (labels == c).double().mean().log() for c, m in enumerate(means)
    ]
    assert (labels == 0).sum() != (labels == 1).sum()
    torch.testing.assert_close((logits[:, 1] - logits[:, 0]).double(), joint[1] - joint[0], rtol=1e-3, atol=1e-3)


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
