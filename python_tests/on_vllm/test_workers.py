"""Two workers, or one, of several architectures: the weights are those of the Hugging Face model, element by element."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm_cases import OPTIONS, load, padding  # noqa: E402

from zokern import EvolutionStrategies  # noqa: E402
from zokern.engines import Local, Pool, Sampling  # noqa: E402
from zokern.engines.vllm import VLLM  # noqa: E402
from zokern.errors import BadInput  # noqa: E402

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
OPTIONS_OF = [[[3], [4, 5]], [[20, 21, 22], [3]], [[7], [8]]]
CASES = [("Llama", 2, torch.float32), ("Llama", 1, torch.float32), ("Qwen2", 2, torch.bfloat16), ("OPT", 2, torch.float32)]
CASES += [("Gemma", 2, torch.float32), ("GPT2", 1, torch.bfloat16)]


@pytest.mark.parametrize("kind, workers, dtype", CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_the_weights_are_those_of_the_checkpoint_after_ten_updates(kind, workers, dtype, folder_of, tokenizer, closing, monkeypatch):
    if workers > 1:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    folder = folder_of(kind, dtype)
    engine = closing(VLLM(folder, tokenizer, workers, dtype=str(dtype).removeprefix("torch."), **OPTIONS))
    local = Local(load(folder, dtype), tokenizer)
    pool = Pool([engine, local])
    before = engine.llm.collective_rpc(padding)
    optimizer = EvolutionStrategies(
        load(folder, dtype).named_parameters(), lr=0.01, sigma=0.01, population=4, weight_decay=0.1, maximize=True, perturbation=pool
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        optimizer.step(pool.driver(lambda engine, number: float(torch.rand((), generator=generator))))
    assert len(pool.checksums()) == len(optimizer.layout.params)  # of both, or it would have raised
    pool.go([(key, 0.01) for key, _ in optimizer.last.terms])
    for name in optimizer.layout.names:
        there, here = engine.read(name), local.read(name)
        assert there.dtype == here.dtype == dtype and torch.equal(there, here), name
    after = engine.llm.collective_rpc(padding)
    assert after == before and sum(rows for rows, _ in after) >= 54 and all(largest == 0 for _, largest in after)
    near = 1e-3 if dtype == torch.float32 else 0.5
    for there, here in zip(engine.score(PROMPTS, OPTIONS_OF), local.score(PROMPTS, OPTIONS_OF)):
        assert there == pytest.approx(here, abs=near)
    if dtype == torch.float32:
        assert engine.generate(PROMPTS, Sampling(5)) == local.generate(PROMPTS, Sampling(5))
        stopped = Sampling(12, stops=("e",), ends=(tokenizer.eos_token_id,))
        assert engine.generate(PROMPTS, stopped) == local.generate(PROMPTS, stopped)
        drawn = [engine.generate(PROMPTS, Sampling(8, 1.0), seed).texts for seed in ((1, 2), (1, 2), (1, 3))]
        assert drawn[0] == drawn[1] != drawn[2]
    if (kind, workers) == ("Llama", 2):
        _refuses(engine, pool)


def _refuses(engine, pool):
    """What goes wrong between driver and workers."""
    checksums = engine.checksums()
    with pytest.raises(BadInput, match="updates of an earlier run: start it again"):
        engine.begin(replace(pool.plan, run="another"))
    with pytest.raises(BadInput, match="the driver has zokern 9.9 .*install the same version on both sides"):
        engine.call("begin", pool.plan.message() | {"version": "9.9"})
    with pytest.raises(BadInput, match="knows no command 'dance'"):
        engine.call("dance")
    with pytest.raises(BadInput, match="has had|have had"):
        engine.call("go", [3, []], [])
    assert engine.checksums() == checksums


@pytest.mark.parametrize("more, match", [(dict(enable_lora=True), "enable_lora"), (dict(max_model_len=10**6), "cannot start")])
def test_engines_that_cannot_be_are_refused(more, match, folder_of, tokenizer, closing):
    folder = folder_of("Llama")
    with pytest.raises(BadInput, match=match):
        pool = Pool([closing(VLLM(folder, tokenizer, dtype="float32", **OPTIONS | more))])
        EvolutionStrategies(load(folder).named_parameters(), perturbation=pool)


def test_a_cut_of_transposed_weights_is_refused(folder_of, tokenizer, closing, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    folder = folder_of("GPT2", torch.float32)
    pool = Pool([closing(VLLM(folder, tokenizer, 2, dtype="float32", **OPTIONS))])
    with pytest.raises(BadInput, match="c_attn.weight' transposed and in parts.*one worker"):
        EvolutionStrategies(load(folder).named_parameters(), perturbation=pool)


def test_quantised_weights_and_other_versions_are_refused(monkeypatch):
    from types import SimpleNamespace

    from zokern.engines.vllm import versions
    from zokern.engines.vllm.worker import check

    parallel = SimpleNamespace(data_parallel_size=1)
    for more, match in ((dict(quantization="awq"), "quantization='awq'"), (dict(use_mla=True), "MLA")):
        config = SimpleNamespace(model_config=SimpleNamespace(**more), parallel_config=parallel)
        with pytest.raises(BadInput, match=match):
            check(config)
    monkeypatch.setattr(versions, "OLDEST", (0, 99))
    with pytest.raises(BadInput, match="vllm here is of version 0..*not known to work: pip install 'vllm>="):
        VLLM("nowhere")
