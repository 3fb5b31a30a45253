"""A real language model, SmolLM2-135M: every element perturbed as the Hugging Face model's, and the same text."""

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm_cases import OPTIONS, load  # noqa: E402

import zokern  # noqa: E402
from bench import smollm2  # noqa: E402
from zokern import MeZO  # noqa: E402
from zokern.engines import Local, Pool, Sampling  # noqa: E402
from zokern.engines.vllm import VLLM  # noqa: E402
from zokern.noise.reference import noise  # noqa: E402

if why := smollm2.missing():
    pytest.skip(why, allow_module_level=True)

TEXTS = ["The capital of France is", "Two and two make", "I think that", "def add(a, b):", "Once upon a time", "Water boils at"]
KEY = zokern.NoiseKey(11, 4)


@torch.no_grad()
def test_all_its_elements(tmp_path, closing):
    folder = str(smollm2.converted())
    engine = closing(VLLM(folder, dtype="float32", **OPTIONS))
    model = load(folder)
    pool = Pool([engine])
    optimizer = MeZO(model.named_parameters(), lr=1e-6, perturbation=pool)
    assert sum(owned.piece.rows * owned.piece.columns for owned in engine.owned) == 134_515_008
    prompts = [engine.tokenizer(text)["input_ids"] for text in TEXTS]
    before = engine.generate(prompts, Sampling(12))
    assert before.texts[0].startswith(" Paris")

    pool.update(zokern.estimators.perturbation.Pass([(KEY, 2e-2)], 0.999))
    pool.go()
    first = dict(zip(optimizer.layout.names, optimizer.layout.first))
    norm = model.model.norm.weight
    expected = (norm.double() * 0.999 + 2e-2 * torch.from_numpy(noise(KEY, first["model.norm.weight"], norm.numel())).double()).float()
    assert torch.allclose(engine.read("model.norm.weight"), expected, atol=1e-7)  # by NumPy
    zokern.ops.add_noise_(optimizer.layout, [(KEY, 2e-2)], 0.999)
    for (name, there), here in zip(pool.read(), model.parameters(), strict=True):
        assert torch.equal(there, here), name

    written = engine.generate(prompts, Sampling(12))
    assert sum(a != b for a, b in zip(written.texts, before.texts)) >= 4
    assert Local(model, engine.tokenizer).generate(prompts, Sampling(12)).texts[0] == written.texts[0]
    model.save_pretrained(tmp_path)
    engine.tokenizer.save_pretrained(tmp_path)
    engine.close()
    saved = closing(VLLM(str(tmp_path), dtype="float32", **OPTIONS))
    assert saved.generate(prompts, Sampling(12)) == written
