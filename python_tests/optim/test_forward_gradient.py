"""ForwardGradient against autograd's gradient and the oracle's z in float64, on the models it is for."""

import copy
import io
import pickle
import re
import warnings

import pytest
import torch
from torch import nn

from zokern import ForwardGradient, NoiseKey
from zokern.estimators import Estimate

SMALL = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32)
TOKENS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(TOKENS)
MASK[1, 5:] = 0


def on_inputs(*shape):
    """A loss of a module's first output on float inputs, of the dtype of its parameters."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))

    def loss(model):
        inputs = x.to(next(model.parameters()).dtype)
        out = model(inputs, inputs, inputs) if isinstance(model, nn.MultiheadAttention) else model(inputs)
        return ((out if isinstance(out, torch.Tensor) else out[0]) ** 3).mean()

    return loss


def on_text(labels):
    return lambda model: model(input_ids=TOKENS, attention_mask=MASK, labels=labels).loss


def hugging_face(name, labels, attention="sdpa", **settings):
    def make():
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, name[: re.search("For|LMHead", name).start()] + "Config")
        return getattr(transformers, name)(config(**SMALL, attn_implementation=attention, **settings)), on_text(labels)

    return make


def lora():
    peft = pytest.importorskip("peft")
    model, loss = MODELS["OPT"]()
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
    for p in model.parameters():
        if p.requires_grad:
            p.data.normal_(std=0.3)  # lora_B starts at 0
    return model, loss


CLASS = torch.tensor([0, 1])
MODELS = {
    "MLP": lambda: (nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)), on_inputs(5, 10)),
    "attention": lambda: (nn.MultiheadAttention(8, 2, batch_first=True), on_inputs(3, 6, 8)),
    "layer": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), on_inputs(3, 6, 8)),
    "encoder": lambda: (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), on_inputs(3, 6, 8)),
    "convolutions": lambda: (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3)), on_inputs(2, 3, 8, 8)),
    "recurrent": lambda: (nn.GRU(8, 8, num_layers=2), on_inputs(5, 3, 8)),
    "OPT": hugging_face("OPTForCausalLM", TOKENS, ffn_dim=32, word_embed_proj_dim=16),
    "OPT eager": hugging_face("OPTForCausalLM", TOKENS, "eager", ffn_dim=32, word_embed_proj_dim=16),
    "RoBERTa": hugging_face("RobertaForSequenceClassification", CLASS, intermediate_size=32),
    "BERT": hugging_face("BertForSequenceClassification", CLASS, "eager", intermediate_size=32),
    "GPT-2": hugging_face("GPT2LMHeadModel", TOKENS, bos_token_id=0, eos_token_id=0),
    "Llama": hugging_face("LlamaForCausalLM", TOKENS, num_key_value_heads=1, intermediate_size=32),
    "LoRA": lora,
}


def exact(model, loss, z):
    """(L, <grad L, z>, |grad L|) by autograd in float64. z: one a trainable parameter, in order."""
    twin = copy.deepcopy(model).double()
    params = [p for p in twin.parameters() if p.requires_grad]
    assert len(params) == len(z)
    value = loss(twin)
    grads = torch.autograd.grad(value, params, allow_unused=True)
    products = [(g * d).sum() for g, d in zip(grads, z) if g is not None]
    return value.detach(), torch.stack(products).sum(), torch.stack([g.norm() for g in grads if g is not None]).norm()


@pytest.mark.parametrize("name", MODELS)
def test_g_is_the_derivative_along_z(name, explicit):
    torch.manual_seed(0)
    model, loss = MODELS[name]()
    model.eval()
    optimizer = ForwardGradient(model, seed=3)
    params, before = list(model.parameters()), [p.detach().clone() for p in model.parameters()]
    estimate = optimizer.estimate(lambda: loss(model))
    value, grad, size = exact(model, loss, explicit(NoiseKey(3), optimizer.layout))
    # g is a sum over thousands of products, with a standard deviation of |grad|: float32 is good to about 1e-6 of it.
    torch.testing.assert_close(estimate.projected_grad, grad, rtol=0, atol=1e-5 * float(size))
    torch.testing.assert_close(estimate.loss, value.double(), rtol=1e-5, atol=1e-6)
    assert all(p is q for p, q in zip(params, model.parameters())) and all(torch.equal(p, b) for p, b in zip(params, before))
    assert size > 0 and all(p.grad is None for p in params)


@pytest.mark.parametrize(
    "name, dtype, tolerance", [("OPT", torch.bfloat16, 0.08), ("Llama", torch.bfloat16, 0.02), ("Llama", torch.float16, 3e-3)]
)
def test_sixteen_bit_weights_take_a_rounded_z(name, dtype, tolerance, explicit):
    """The tolerance is twice what autograd's gradient in the same dtype is off by: both round every activation."""
    torch.manual_seed(0)
    model, loss = MODELS[name]()
    model.eval().to(dtype)
    optimizer = ForwardGradient(model, seed=3)
    estimate = optimizer.estimate(lambda: loss(model))
    z = [d.to(dtype).double() for d in explicit(NoiseKey(3), optimizer.layout)]
    _, grad, size = exact(model, loss, z)
    torch.testing.assert_close(estimate.projected_grad, grad, rtol=0, atol=tolerance * float(size))


@pytest.mark.parametrize("q, weight_decay", [(1, 0.0), (1, 0.1), (3, 0.1)])
def test_steps_against_explicit_z_on_a_transformer(transformer, tokens, explicit, q, weight_decay):
    lr, steps = 2e-3, 6
    optimizer = ForwardGradient(transformer, lr=lr, weight_decay=weight_decay, q=q, seed=11)
    twin = copy.deepcopy(transformer).double()
    for step in range(steps):
        loss = twin(tokens)
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        z = [explicit(NoiseKey(11, step, probe), optimizer.layout) for probe in range(q)]
        g = [sum((a * b).sum() for a, b in zip(grads, directions)) for directions in z]
        with torch.no_grad():
            for i, p in enumerate(twin.parameters()):
                p.mul_(1 - lr * weight_decay).sub_(lr * sum(g[k] * z[k][i] for k in range(q)) / q)
        measured = optimizer.step(lambda: transformer(tokens))
        torch.testing.assert_close(measured, loss.detach().double(), rtol=1e-5, atol=1e-5)
        assert len(optimizer.last.losses) == q and optimizer.last.projected_grad.shape == (() if q == 1 else (q,))
    for p, e in zip(transformer.parameters(), twin.parameters()):
        torch.testing.assert_close(p.double(), e, rtol=0, atol=2e-6)  # float32 roundings of weights below 4


def test_groups_have_their_own_lr_and_decay_and_one_z(explicit):
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(30)), nn.Parameter(torch.randn(20))
    optimizer = ForwardGradient([{"params": [a], "lr": 0.1}, {"params": [b], "weight_decay": 2.0}], lr=0.01, seed=5)
    za, zb = explicit(NoiseKey(5), optimizer.layout)
    a0, b0 = a.detach().double(), b.detach().double()
    g = (2 * a0 * za).sum() + (3 * b0**2 * zb).sum()
    optimizer.step(lambda: (a**2).sum() + (b**3).sum())
    torch.testing.assert_close(a.detach().double(), a0 - 0.1 * g * za, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(b.detach().double(), 0.98 * b0 - 0.01 * g * zb, rtol=1e-5, atol=1e-5)


def test_a_frozen_part_a_part_that_is_not_used_and_memory_that_is_shared(explicit):
    torch.manual_seed(0)
    used, frozen, unused = (nn.Parameter(torch.randn(12)) for _ in range(3))
    frozen.requires_grad_(False)
    alias = nn.Parameter(used.detach().view(3, 4))
    optimizer = ForwardGradient([used, frozen, unused, alias])
    z, _ = explicit(NoiseKey(0), optimizer.layout)
    estimate = optimizer.estimate(lambda: (used**2).sum() * frozen.sum() + alias[1].sum())
    expected = (2 * used * z).sum() * frozen.sum() + z[4:8].sum()
    torch.testing.assert_close(estimate.projected_grad, expected.detach().double(), rtol=1e-5, atol=1e-5)


def test_autocast_cannot_serve_a_cached_weight_without_its_tangent(explicit):
    torch.manual_seed(0)
    model, loss = MODELS["MLP"]()
    optimizer = ForwardGradient(model)
    _, grad, size = exact(model, loss, explicit(NoiseKey(0), optimizer.layout))
    with torch.autocast("cpu", torch.bfloat16):
        loss(model)  # fills autocast's cache
        estimate = optimizer.estimate(lambda: loss(model))
    torch.testing.assert_close(estimate.projected_grad, grad, rtol=0, atol=8 * 2.0**-8 * float(size))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.08)])  # float32: TF32 is off by default
def test_the_gpu_measures_the_same_derivative(dtype, tolerance, explicit):
    torch.manual_seed(0)
    model, _ = MODELS["OPT"]()
    model.eval().to(dtype)
    z = [d.to(dtype).double() for d in explicit(NoiseKey(3), ForwardGradient(model).layout)]
    _, grad, size = exact(model, on_text(TOKENS), z)
    model.cuda()
    inputs = dict(input_ids=TOKENS.cuda(), attention_mask=MASK.cuda(), labels=TOKENS.cuda())
    estimate = ForwardGradient(model, seed=3).estimate(lambda: model(**inputs).loss)
    torch.testing.assert_close(estimate.projected_grad.cpu(), grad, rtol=0, atol=tolerance * float(size))


def parameter(n=50):
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(n))


REFUSED = {
    "a float": (lambda w: w.sum().item(), TypeError, r"closure returned float.*without .item\(\)"),
    "nothing": (lambda w: None, TypeError, "closure returned NoneType"),
    "a vector": (lambda w: w * 2, ValueError, r"shape \(50,\): return a 0-dim loss"),
    "detached": (lambda w: w.sum().detach(), ValueError, r"without a derivative: .*\.detach\(\)"),
    "a constant": (lambda w: torch.tensor(1.0), ValueError, "without a derivative"),
    "no formula": (lambda w: torch.cdist(w[None], w[None] + 1).sum(), NotImplementedError, "_cdist_forward.*attn_implementation='eager'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_loss_without_a_derivative_is_refused_and_nothing_moves(what):
    closure, error, message = REFUSED[what]
    w = parameter()
    optimizer, before = ForwardGradient([w]), w.detach().clone()
    with pytest.raises(error, match=message):
        optimizer.step(lambda: closure(w))
    assert torch.equal(w, before) and optimizer.param_groups[0]["step"] == 0 and optimizer.last is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_closure_that_raises_leaves_all_as_it_was(error):
    torch.manual_seed(0)
    model, loss = MODELS["encoder"]()
    model.eval()
    params, before = list(model.parameters()), [p.detach().clone() for p in model.parameters()]
    optimizer = ForwardGradient(model, lr=1e-3)

    def stop(*_):
        raise error("mid-forward")

    hook = model.layers[1].linear1.register_forward_pre_hook(stop)
    with pytest.raises(error, match="^mid-forward$"):
        optimizer.step(lambda: loss(model))
    hook.remove()
    assert all(p is q for p, q in zip(params, model.parameters())) and all(torch.equal(p, b) for p, b in zip(params, before))
    assert not torch.overrides._get_current_function_mode_stack() and torch.backends.cuda.flash_sdp_enabled()
    loss(model).backward()  # autograd is as it was
    assert all(p.grad is not None for p in params) and optimizer.param_groups[0]["step"] == 0
    optimizer.step(lambda: loss(model))
    assert not torch.equal(params[0], before[0])


SINGULAR = {
    "an infinite loss": lambda w: w.sum() + float("inf"),
    "no number": lambda w: w.sum() * float("nan"),
    "an infinite derivative": lambda w: (w - w.detach()).abs().sum().sqrt() + w.sum(),
}


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("what", SINGULAR)
def test_what_is_not_finite_skips_the_step_counts_and_warns_once(what, q):
    w = parameter()
    optimizer, before = ForwardGradient([w], lr=1e-2, weight_decay=0.5, q=q), w.detach().clone()
    with pytest.warns(RuntimeWarning, match="step 0 was skipped"):
        optimizer.step(lambda: SINGULAR[what](w))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(lambda: SINGULAR[what](w))
    assert torch.equal(w, before) and optimizer.skipped == 2 and optimizer.last.skipped
    optimizer.step(lambda: (w**2).sum())
    assert optimizer.skipped == 2 and not torch.equal(w, before)


def reload(optimizer, w):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    fresh = ForwardGradient([w], lr=0.5, seed=99)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


WAYS = {
    "state_dict": reload,
    "deepcopy": lambda optimizer, w: copy.deepcopy(optimizer),
    "pickle": lambda optimizer, w: pickle.loads(pickle.dumps(optimizer)),
}


@pytest.mark.parametrize("way", WAYS)
def test_resuming_is_bit_for_bit_the_uninterrupted_run(way):
    runs = []
    for stop in (12, 5):
        w = parameter()
        optimizer = ForwardGradient([w], lr=1e-3, weight_decay=0.1, q=2, seed=4)
        for step in range(12):
            if step == stop:
                optimizer = WAYS[way](optimizer, w)
                (w,) = optimizer.param_groups[0]["params"]
            optimizer.step(lambda: (w**2).sum())  # noqa: B023
        runs.append(w.detach())
    assert torch.equal(*runs)


def test_logged_floats_replay_a_run_bit_for_bit():
    w, replayed = parameter(), parameter()
    optimizer, log = ForwardGradient([w], lr=1e-3, weight_decay=0.1), []
    for _ in range(10):
        optimizer.step(lambda: (w**2).sum())
        log.append([(key, float(g)) for key, g in optimizer.last.terms])
    player = ForwardGradient([replayed], lr=1e-3, weight_decay=0.1)
    for terms in log:
        player.apply(Estimate(terms))
    assert torch.equal(w, replayed)


@pytest.mark.parametrize(
    "bad, message",
    [({"lr": -1.0}, "lr=-1.0 .*>= 0"), ({"weight_decay": -1.0}, "weight_decay=-1.0"), ({"q": 0}, "q=0 .*>= 1"), ({"seed": -1}, "seed=-1")],
)
def test_settings_out_of_range_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        ForwardGradient([parameter()], **bad)


def test_a_scheduler_drives_lr():
    w = parameter()
    optimizer = ForwardGradient([w], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    optimizer.step(lambda: (w**2).sum())
    scheduler.step()
    before = w.detach().clone()
    optimizer.step(lambda: (w**2).sum())
    assert torch.equal(w, before)


def test_a_derivative_so_large_that_an_update_would_not_be_finite_moves_nothing():
    w = torch.nn.Parameter(torch.randn(50))
    before, opt = w.detach().clone(), ForwardGradient([w], lr=1e-3)
    with pytest.warns(RuntimeWarning, match="step 0 was skipped"):
        opt.step(lambda: (w * 1e20).sum())
    assert torch.equal(w, before) and opt.skipped == 1
