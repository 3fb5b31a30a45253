"""A running vLLM over HTTP, which is killed in the middle; and an AsyncLLM."""

import threading

import pytest
import torch
from transformers import GenerationConfig

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm_cases import OPTIONS, Server, load  # noqa: E402

import zokern  # noqa: E402
from zokern import FZOO  # noqa: E402
from zokern.engines import Local, Pool, Sampling  # noqa: E402
from zokern.engines.vllm import EXTENSION, AsyncVLLM, VLLMServer  # noqa: E402
from zokern.errors import BadInput  # noqa: E402

PROMPTS = [[5, 6, 7, 8] * 8, [9, 10], [11, 12, 13]]  # the first fills blocks of a prefix cache
OPTIONS_OF = [[[3], [4, 5]], [[20, 21, 22], [3]], [[7], [8]]]


def likelihood(engine, number):
    return sum(row[0] for row in engine.score(PROMPTS, OPTIONS_OF)) / 3


def test_a_server_that_is_killed_and_started_again(folder_of, tokenizer):
    folder = folder_of("Llama", torch.float32)
    config = GenerationConfig(repetition_penalty=2.0, do_sample=True, temperature=0.5, top_k=3, eos_token_id=tokenizer.eos_token_id)
    config.save_pretrained(folder)  # which a server takes where a request does not say otherwise
    server = Server(folder, "--worker-extension-cls", EXTENSION, "--enable-prefix-caching", "--max-num-seqs", "16")
    try:
        server.wait()
        engine, local = VLLMServer(server.url, tokenizer), Local(load(folder), tokenizer)
        pool = Pool([engine])
        optimizer = FZOO(load(folder).named_parameters(), lr=1e-2, eps=1e-2, q=3, perturbation=pool)
        local.begin(pool.plan)
        key, other = (zokern.NoiseKey(5, step) for step in (1, 2))
        written = []
        for terms in ([], [(key, 0.05)], [(other, 0.05)], [(key, 0.05)], []):  # whatever its cache holds
            pool.go(terms)
            local.go(pool._missing(local), terms)
            written.append(engine.generate(PROMPTS, Sampling(8)))
            assert written[-1] == local.generate(PROMPTS, Sampling(8))
            for there, here in zip(engine.score(PROMPTS, OPTIONS_OF), local.score(PROMPTS, OPTIONS_OF)):
                assert there == pytest.approx(here, abs=1e-3)
        assert written[0] == written[4] != written[1] == written[3] != written[2]

        measured = []

        def step(function):
            optimizer.step(pool.driver(function))
            measured.append(optimizer.measurements)

        step(likelihood)
        pool.go()
        engine.restart()  # which was only out of reach
        pool._begin(engine)
        assert engine.applied == 1
        step(likelihood)
        dying = threading.Event()

        def struck(engine, number):
            if number == 2 and not dying.is_set():
                dying.set()
                server.kill()
                server.start()
            return likelihood(engine, number)

        with pytest.warns(RuntimeWarning, match="does not answer.*was started again"):
            step(struck)
        step(likelihood)
        assert len({float(loss) for losses in measured for loss in losses}) == 16
        found = pool.checksums()
        pool.pull(optimizer)
        model = load(folder)  # the very weights that the logged numbers lead to
        plain = FZOO(model.named_parameters(), lr=1e-2, eps=1e-2, q=3, perturbation=zokern.Copied())
        for step in measured:
            plain.repeat(step)
        assert all(map(torch.equal, optimizer.layout.params, model.parameters())) and len(found) == len(plain.layout.params)
        with pytest.raises(BadInput, match="updates of an earlier run: start it again"):
            FZOO(load(folder).named_parameters(), perturbation=Pool([VLLMServer(server.url, tokenizer)]))
        with pytest.raises(BadInput, match="'unknown' does not answer|unknown url type"):
            VLLMServer("unknown")
    finally:
        server.kill()
    with pytest.raises(BadInput, match="does not answer.*start it with VLLM_SERVER_DEV_MODE=1 vllm serve"):
        VLLMServer(server.url, tokenizer)


def test_a_server_without_the_extension(folder_of, tokenizer):
    server = Server(folder_of("Llama"))
    try:
        server.wait()
        with pytest.raises(BadInput, match="its workers have no zokern.*--worker-extension-cls"):
            VLLMServer(server.url, tokenizer)
    finally:
        server.kill()


def test_an_asynchronous_engine(folder_of, tokenizer, closing):
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    folder = folder_of("Llama")
    args = AsyncEngineArgs(model=folder, dtype="float32", worker_extension_cls=EXTENSION, enable_prefix_caching=True, **OPTIONS)
    engine, local = closing(AsyncVLLM(AsyncLLM.from_engine_args(args), tokenizer)), Local(load(folder), tokenizer)
    pool = Pool([engine, local])
    optimizer = FZOO(load(folder).named_parameters(), lr=1e-2, eps=1e-2, q=3, perturbation=pool)
    for _ in range(2):
        optimizer.step(pool.driver(likelihood))
    pool.checksums()  # equal, or it raises
    pool.go([(key, 0.02) for key, _ in optimizer.last.terms[:1]])
    assert engine.generate(PROMPTS, Sampling(8)) == local.generate(PROMPTS, Sampling(8))
    for there, here in zip(engine.score(PROMPTS, OPTIONS_OF), local.score(PROMPTS, OPTIONS_OF)):
        assert there == pytest.approx(here, abs=1e-3)
    assert all(torch.equal(engine.read(name), local.read(name)) for name in optimizer.layout.names)
