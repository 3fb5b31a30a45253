"""Streamed weights on a GPU: made ahead on a side stream, or brought from the host when a part runs."""

import pytest
import torch
import transformers as T
from streamed_cases import TERMS, Untouched, layout_of, perturbed, streams

from zokern import Layout, Streamed

pytestmark = pytest.mark.gpu
LLAMA = dict(vocab_size=1000, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4, intermediate_size=512)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def llama(tied, dtype=torch.float32, device="cuda"):
    torch.manual_seed(0)
    return T.LlamaForCausalLM(T.LlamaConfig(**LLAMA, tie_word_embeddings=tied)).eval().to(device, dtype)


def language(model):
    ids = torch.arange(64, device="cuda").view(2, 32)
    return model(input_ids=ids, labels=ids).loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_parts_that_are_made_ahead(tied, dtype):
    model = llama(tied, dtype)
    streamed, layout = Streamed(model), layout_of(model)
    for _ in range(5):  # ten evaluations, the host far ahead of the device
        streams(streamed, language, layout=layout)
    assert len(streamed._scratch.buffers) == 2


def test_updates_between_evaluations_are_seen():
    """The side stream reads theta: an update on the main stream comes before or after."""
    model = llama(False)
    streamed, layout = Streamed(model), layout_of(model)
    made, expected = [], []
    with torch.no_grad():
        for _ in range(8):
            with streamed.showing([layout], [layout], [TERMS]):
                made.append(language(model))
            expected.append(language(perturbed(model, layout)))
            for p in model.parameters():
                p.mul_(0.98)
    assert torch.equal(torch.stack(made), torch.stack(expected)) and len({*map(float, made)}) == 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_the_hosts_memory(tied, dtype):
    here, there = llama(tied, dtype), llama(tied, dtype, "cpu")
    layout, streamed = layout_of(there), Streamed(there, device="cuda")
    with torch.no_grad():
        expected = [language(here), language(perturbed(here, layout_of(here)))]
        for pinned in (False, True):
            if pinned:
                for p in there.parameters():
                    p.data = p.data.pin_memory()
            with Untouched(there):
                for _ in range(3):
                    with streamed.running():
                        assert torch.equal(language(there), expected[0])
                    with streamed.showing([layout], [layout], [TERMS]):
                        assert torch.equal(language(there), expected[1])
    assert all(p.device.type == "cpu" for p in there.parameters())


def test_the_device_holds_two_parts_of_a_model_in_the_hosts_memory():
    model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(8)))
    layout, streamed = Layout(model.parameters()), Streamed(model, device="cuda")
    x = torch.ones(1, 2048, device="cuda")
    x @ x.T  # cuBLAS keeps a workspace from its first product on
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        with torch.no_grad(), streamed.showing([layout], [layout], [TERMS]):
            model(x)
    assert torch.cuda.max_memory_allocated() - before < 2 * (16 << 20) + (2 << 20)


def test_an_evaluation_never_waits_for_the_device():
    model = llama(False)
    streamed, layout = Streamed(model), layout_of(model)
    ids = torch.arange(64, device="cuda").view(2, 32)
    closure = lambda: model.model.layers[0].mlp(model.model.embed_tokens(ids))  # noqa: E731
    streams(streamed, language, layout=layout)
    with torch.no_grad():
        for mode in ("default", "default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                with streamed.showing([layout], [layout], [TERMS]):
                    closure()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_a_captured_model_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8).cuda())
    layout, streamed = Layout(model.parameters()), Streamed(model)
    x = torch.ones(8, device="cuda")
    streams(streamed, lambda model: model(x).sum(), layout=layout)
    with pytest.raises(RuntimeError, match=r"0 \(Linear\) is called in a model that is compiled or captured.*zokern.Copied\(\)"):
        with torch.no_grad(), streamed.showing([layout], [layout], [TERMS]), torch.cuda.graph(torch.cuda.CUDAGraph()):
            model(x)
