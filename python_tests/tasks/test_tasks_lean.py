"""A lean loss is the plain one, for every architecture, padding and adapter; and its memory is not the logits'."""

import json
import logging
import subprocess
import sys

import pytest
import torch

from zokern.errors import BadInput
from zokern.tasks import lean_loss
from zokern.tasks.lean import kept_logits

VOCABULARY = 97


def batch(side, rows=3, tokens=11):
    """Token ids, mask and labels, every row of another length; some labels are -100."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    if side == "right":
        mask = mask.flip(1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 4:7] = -100
    return ids, mask, labels


def plain_loss(model, ids, mask, labels):
    """Of the full logits, in float64, one position at a time; the first token counts where virtual tokens stand before it."""
    log_probabilities = model(input_ids=ids, attention_mask=mask).logits.double().log_softmax(-1)
    rows, tokens = ids.shape
    virtual = log_probabilities.shape[1] - tokens
    kept = [(r, t) for r in range(rows) for t in range(0 if virtual else 1, tokens) if labels[r, t] != -100]
    return -sum(log_probabilities[r, virtual + t - 1, labels[r, t]] for r, t in kept) / len(kept)


@pytest.mark.parametrize("adapter", [None, "lora", "prefix", "prompt"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
@torch.no_grad()
def test_the_lean_loss_is_the_plain_one(models, adapters, kind, side, adapter):
    model = models(kind, VOCABULARY)
    if adapter:
        model = adapters(model, adapter)
    ids, mask, labels = batch(side)
    expected = plain_loss(model, ids, mask, labels)
    assert model(input_ids=ids, attention_mask=mask, labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for chunk in (1, 7, 30, 256):  # 30 positions predict something: 7 divides them unevenly
        found = lean_loss(model, ids, mask, labels, chunk)
        assert found.dtype == torch.float32 and found.dim() == 0
        assert found.item() == pytest.approx(expected.item(), rel=2e-6)  # a float32 sum of 24 losses


@pytest.mark.parametrize("kind, more", [("gemma2", dict(final_logit_softcapping=2.0)), ("granite", {})])
@torch.no_grad()
def test_logits_that_the_model_changes_afterwards(models, caplog, kind, more):
    model = models(kind, VOCABULARY, **more)
    ids, mask, labels = batch("right")
    expected = plain_loss(model, ids, mask, labels)
    with caplog.at_level(logging.WARNING, "zokern"):
        for _ in range(2):
            assert lean_loss(model, ids, mask, labels, chunk=7).item() == pytest.approx(expected.item(), rel=2e-6)
    assert caplog.text.count("changes its logits") == 1


@torch.no_grad()
def test_a_model_that_goes_around_its_output_embedding(models, caplog):
    model = models("llama", VOCABULARY)
    head, model.lm_head = model.lm_head, torch.nn.Sequential()

    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head  # the same weights, reached otherwise

        def forward(self, hidden):
            return torch.nn.functional.linear(hidden, self.head.weight)

    model.lm_head = Around()
    model.get_output_embeddings = lambda: head
    ids, mask, labels = batch("left")
    expected = plain_loss(model, ids, mask, labels)
    with caplog.at_level(logging.WARNING, "zokern"):
        assert lean_loss(model, ids, mask, labels, chunk=7).item() == pytest.approx(expected.item(), rel=2e-6)
    assert "full logits are made" in caplog.text


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama", "gemma2", "bert", "roberta"])
@torch.no_grad()
def test_some_logits_and_no_others(models, kind):
    model = models(kind, VOCABULARY)
    ids, mask, _ = batch("right")
    full = model(input_ids=ids, attention_mask=mask).logits
    made = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, args, output: made.append(output.shape))
    kept = kept_logits(model, dict(input_ids=ids, attention_mask=mask), torch.tensor([[0, 1, 0, 2], [2, 0, 2, 8]]))
    handle.remove()
    torch.testing.assert_close(kept, torch.stack([full[0, 2], full[1, 0], full[0, 2], full[2, 8]]), rtol=1e-5, atol=1e-5)
    assert made == [(1, 4, VOCABULARY)]


def test_gradients_are_right_too(models):
    ids, mask, labels = batch("right")
    grads = []
    for loss in (lambda m: lean_loss(m, ids, mask, labels, chunk=7), lambda m: m(input_ids=ids, attention_mask=mask, labels=labels).loss):
        model = models("opt", VOCABULARY)
        loss(model).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_hooks_go_even_if_the_model_fails(models):
    model = models("opt", VOCABULARY)
    ids, mask, labels = batch("right")
    with pytest.raises(IndexError):
        lean_loss(model, ids + VOCABULARY, mask, labels)
    head = model.get_output_embeddings()
    assert not head._forward_hooks and not head._forward_pre_hooks


@torch.no_grad()
def test_labels_that_are_none(models):
    ids, mask, labels = batch("right")
    assert lean_loss(models("opt", VOCABULARY), ids, mask, torch.full_like(labels, -100)).isnan()


def test_what_cannot_be_done_is_named(models):
    import transformers

    ids, mask, labels = batch("right")
    model = models("opt", VOCABULARY)
    with pytest.raises(BadInput, match="chunk=0"):
        lean_loss(model, ids, mask, labels, chunk=0)
    with pytest.raises(BadInput, match=r"labels \(3, 10\) and input_ids \(3, 11\)"):
        lean_loss(model, ids, mask, labels[:, 1:])
    with pytest.raises(BadInput, match="OPTModel has no output embedding"):
        lean_loss(model.model, ids, mask, labels)
    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(BadInput, match="an encoder and a decoder"):
        lean_loss(transformers.T5ForConditionalGeneration(config), ids, mask, labels)


CODE = """
import json, re, sys, torch
from transformers import OPTConfig, OPTForCausalLM
from zokern.tasks import lean_loss
torch.set_num_threads(1)
def peak():  # not getrusage's, which begins with that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
config = OPTConfig(vocab_size=50272, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2)
model = OPTForCausalLM(config).eval()
ids = torch.randint(4, 50272, (4, 256))
mask = torch.ones_like(ids)
with torch.no_grad():
    lean_loss(model, ids[:1, :8], mask[:1, :8], ids[:1, :8])
    before = peak()
    lean_loss(model, ids, mask, ids)
    lean = peak() - before
    model(input_ids=ids, attention_mask=mask, labels=ids)
print(json.dumps([lean, peak() - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read the way Linux counts it")
def test_the_memory_of_a_forward_loses_the_logits():
    lean, full = json.loads(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout)
    logits = 4 * 256 * 50272 * 4
    assert full > logits
    # Those of 256 positions and their log-probabilities; 40 MiB for the rest of the model and the allocator.
    assert lean < 2 * logits / 4 + (40 << 20)
