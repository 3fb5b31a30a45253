"""Hybrid against explicit z and plain autograd in float64, and what it promises of memory, faults and resuming."""

import copy
import io
import warnings
from functools import partial

import pytest
import torch
import transformers
from hybrid_cases import ADAMW, EMBED, HEAD, LISA, SGD, STATIC, ZO, Net, block, moved, weights
from tolerances import RESTORED
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import zokern
from zokern import Hybrid, splits


def oracle(net, batch, first_order, z_of, steps, share):
    """Two-point ZO-SGD by explicit z and SGD with momentum by plain autograd, in float64, with masks for the rows."""
    net = copy.deepcopy(net).double()
    names = [name for name, _ in net.named_parameters()]
    params = [p.detach() for p in net.parameters()]
    loss = lambda values: torch.func.functional_call(net, dict(zip(names, values)), (batch,))  # noqa: E731
    momentum, losses = [torch.zeros_like(p) for p in params], []
    for step in range(steps):
        rows = first_order(step)
        mask = [torch.zeros_like(p) for p in params]
        for name, m in zip(names, mask):
            if name in rows:
                m[: rows[name]] = 1
        z = z_of(step)
        plus, minus = ([p + sign * 1e-2 * d for p, d in zip(params, z)] for sign in (1, -1))
        g = (loss(plus) - loss(minus)).detach() / 2e-2
        values = [p.clone().requires_grad_() for p in (plus if share else params)]
        at = loss(values)
        grads = torch.autograd.grad(at, values)
        losses.append((loss(plus) + loss(minus)).detach() / 2 if share else at.detach())
        momentum = [(0.9 * m + grad) * keep for m, grad, keep in zip(momentum, grads, mask)]  # who leaves forgets
        params = [p - 2e-3 * g * d - 2e-2 * m for p, d, m in zip(params, z, momentum)]
    return params, losses


@pytest.mark.parametrize("share", [False, True], ids=["three forwards", "two forwards"])
@pytest.mark.parametrize("split", [*STATIC, LISA], ids=str)
def test_against_explicit_z_and_autograd(net, batch, explicit, split, share):
    steps, hybrid = 7, Hybrid(net, ZO, SGD, split, share_forward=share)
    start, named, record, losses = copy.deepcopy(net), dict(net.named_parameters()), [], []
    for step in range(steps):
        if split is LISA:
            live = {name for name, p in named.items() if not any(p is q for q in hybrid.zo.layout.params)}
            rows = dict.fromkeys(live)
            assert live >= EMBED | HEAD and len(live) == 3 + 2 * 2
        else:
            rows = STATIC[split]
        z = explicit(zokern.NoiseKey(7, step), hybrid.zo.layout)
        whole = []
        for name, p in named.items():
            full = torch.zeros_like(p, dtype=torch.float64)
            for title, part in zip(hybrid.zo.layout.names, z):
                if title.split("[")[0] == name:
                    assert (title == name) == (name not in rows)
                    full[len(full) - len(part) :] = part
            whole.append(full)
        record.append((rows, whole))
        losses.append(hybrid.step(lambda: net(batch)))
    expected, theirs = oracle(start, batch, lambda t: record[t][0], lambda t: record[t][1], steps, share)
    # Float32 losses near 2.4 are good to 2e-7, so g to 2e-5 of sizes up to 5; over the steps that moves theta by 1e-6.
    torch.testing.assert_close(torch.stack(losses), torch.stack(theirs), rtol=0, atol=1e-5)
    for p, e in zip(net.parameters(), expected):
        torch.testing.assert_close(p.double(), e, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share, calls", [(False, [True, False, False]), (True, [True, False])])
def test_how_often_the_closure_is_called_and_how(net, batch, share, calls):
    twin = copy.deepcopy(net)
    Hybrid(twin, ZO, SGD, splits.Depth(2), share_forward=share).step(lambda: twin(batch))
    seen, state, needs = [], torch.get_rng_state(), [p.requires_grad for p in net.parameters()]
    hybrid = Hybrid(net, ZO, SGD, splits.Depth(2), share_forward=share)
    for p in net.parameters():
        p.grad = torch.ones_like(p)  # someone's left-overs, which are no part of the step

    def closure():
        seen.append(torch.is_grad_enabled())
        if seen[-1]:
            named = {name for name, p in net.named_parameters() if p.requires_grad}
            assert named == block(2, 3) | HEAD
        return net(batch)

    with torch.no_grad():
        hybrid.step(closure)
    assert seen == calls and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters()) and [p.requires_grad for p in net.parameters()] == needs
    assert hybrid.last.estimate is hybrid.zo.last and hybrid.steps == 1 and not hybrid.last.skipped
    assert len(hybrid.fo.state) == 6 and all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters()))


def stored(model, closure):
    """Bytes that autograd stores for backward, without the parameters, in one call of the closure."""
    mine, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in mine:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(), t  # held, so that no address is used twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = closure()
    return loss, sum(n for n, _ in seen.values())


@pytest.mark.parametrize("share", [False, True])
def test_activations_below_the_deepest_first_order_block_are_not_stored(share):
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, ffn_dim=32, max_position_embeddings=24,
        word_embed_proj_dim=16, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config).eval()
    tokens = torch.randint(4, 40, (3, 20))
    counts = []
    for k in range(5):
        sizes = []

        def closure():
            loss, size = stored(model, lambda: model(tokens, labels=tokens).loss)
            sizes.append(size)  # noqa: B023
            return loss

        Hybrid(model, ZO, SGD, splits.Depth(k), share_forward=share).step(closure)
        assert not any(sizes[1:])
        counts.append(sizes[0])
    a_block = 3 * 20 * 16 * 4 * 4  # its two norms' and two sub-layers' inputs at the least, in bytes
    assert all(a - b > a_block for a, b in zip(counts, counts[1:])), counts
    differences = [a - b for a, b in zip(counts, counts[1:])]
    assert max(differences) < 1.1 * min(differences)  # a block's share each


def test_nothing_of_a_zeroth_order_parameters_size_is_written(batch):
    net, made = Net(width=6), []
    net.embed = nn.Embedding(5000, 6)

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            made.extend(t.untyped_storage().nbytes() for t in (out if isinstance(out, tuple | list) else [out]) if owns(t, args))
            return out

    def owns(t, args):
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        return isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in inputs

    hybrid = Hybrid(net, ZO, ADAMW, splits.Depth(2))
    with Sizes():
        for _ in range(2):
            hybrid.step(lambda: net(batch))
    assert made and max(made) < net.embed.weight.nbytes / 10


def closure_that(net, batch, call, what):
    calls = []

    def closure():
        calls.append(0)
        return what(net(batch)) if len(calls) == call + 1 else net(batch)

    return closure


CALLS = [(False, 0), (False, 1), (False, 2), (True, 0), (True, 1)]


@pytest.mark.parametrize("split", [splits.Depth(2), splits.Intra(2), LISA], ids=str)
@pytest.mark.parametrize("share, call", CALLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_moves_neither_half(net, batch, split, share, call, value):
    hybrid = Hybrid(net, partial(ZO, weight_decay=1.0), partial(ADAMW, weight_decay=1.0), split, share_forward=share)
    before = weights(net)
    with pytest.warns(RuntimeWarning, match="step 0 was skipped"):
        hybrid.step(closure_that(net, batch, call, lambda loss: loss * value))
    assert all((a - b).abs().max() <= RESTORED for a, b in zip(net.parameters(), before))
    assert (hybrid.skipped, hybrid.zo.skipped, hybrid.steps, hybrid.last.skipped, len(hybrid.fo.state)) == (1, 1, 1, True, 0)
    hybrid.step(lambda: net(batch))
    assert hybrid.skipped == 1 and len(hybrid.fo.state) > 0 and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("split", [splits.Depth(2), splits.Intra(2), LISA], ids=str)
@pytest.mark.parametrize("share, call", CALLS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_all_as_it_was(net, batch, split, share, call, error):
    hybrid = Hybrid(net, ZO, ADAMW, split, share_forward=share)
    before = weights(net)

    def fail(loss):
        raise error("mid-step")

    with pytest.raises(error, match="mid-step"):
        hybrid.step(closure_that(net, batch, call, fail))
    assert all((a - b).abs().max() <= RESTORED for a, b in zip(net.parameters(), before))
    assert hybrid.steps == 0 and hybrid.last is None and not hybrid.fo.state
    assert all(p.requires_grad and p.grad is None and not p._post_accumulate_grad_hooks for p in net.parameters())
    hybrid.step(lambda: net(batch))
    assert hybrid.steps == 1


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("split", [splits.Depth(2), splits.Inter([1]), splits.Intra(2), LISA], ids=str)
@pytest.mark.parametrize("stop", [4, 6])  # within a draw of LISA, and at its end
def test_resuming_is_bit_for_bit_the_uninterrupted_run(net, batch, split, share, stop):
    def start(model):
        hybrid = Hybrid(model, partial(ZO, weight_decay=0.1), ADAMW, split, share_forward=share)
        return hybrid, torch.optim.lr_scheduler.LinearLR(hybrid.zo, 1.0, 0.1, 9), torch.optim.lr_scheduler.LinearLR(hybrid.fo, 1.0, 0.1, 9)

    def run(model, hybrid, *schedulers, steps):
        for _ in range(steps):
            hybrid.step(lambda: model(batch))
            for scheduler in schedulers:
                scheduler.step()

    straight = copy.deepcopy(net)
    run(straight, *start(straight), steps=11)
    first, *schedulers = start(net)
    run(net, first, *schedulers, steps=stop)
    buffer = io.BytesIO()
    torch.save([first.state_dict(), net.state_dict(), *(s.state_dict() for s in schedulers)], buffer)
    buffer.seek(0)
    state, values, *theirs = torch.load(buffer, weights_only=True)
    again = Net()
    again.load_state_dict(values)
    resumed, *schedulers = start(again)
    resumed.load_state_dict(state)
    for scheduler, saved in zip(schedulers, theirs):
        scheduler.load_state_dict(saved)
    run(again, resumed, *schedulers, steps=11 - stop)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters()))
    assert resumed.steps == 11 and resumed.zo.param_groups[0]["step"] == 11


def test_schedulers_drive_both_halves_without_a_warning(net, batch):
    hybrid = Hybrid(net, ZO, SGD, splits.Depth(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(half, 0.5) for half in (hybrid.zo, hybrid.fo)]
        for _ in range(2):
            hybrid.step(lambda: net(batch))
            for scheduler in schedulers:
                scheduler.step()
    assert hybrid.zo.param_groups[0]["lr"] == 5e-4 and hybrid.fo.param_groups[0]["lr"] == 5e-3


def test_zo_none_freezes_the_rest(net, batch):
    hybrid = Hybrid(net, None, ADAMW, splits.Depth(2))
    before = weights(net)
    loss = hybrid.step(lambda: net(batch))
    assert moved(net, before) == block(2, 3) | HEAD
    assert hybrid.zo is None and hybrid.last.estimate is None and loss == hybrid.last.loss
    before = weights(net)
    with pytest.warns(RuntimeWarning, match="step 1 was skipped"):
        hybrid.step(lambda: net(batch) * float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hybrid.step(lambda: net(batch) * float("nan"))
    assert hybrid.skipped == 2 and not moved(net, before)


def test_a_lora_model_and_one_whose_layers_are_given(batch):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, max_position_embeddings=24
    )
    model = transformers.RobertaForSequenceClassification(config)
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])).eval()
    labels = torch.randint(0, 2, (5,))
    closure = lambda: model(batch + 2, labels=labels).loss  # noqa: E731
    before = weights(model)
    hybrid = Hybrid(model, ZO, ADAMW, splits.Depth(2))
    assert len(hybrid.zo.layout.params) == 8 and all("lora" in name for name in hybrid.zo.layout.names)
    first = float(hybrid.step(closure))
    assert all("lora" in name or "modules_to_save" in name for name in moved(model, before))
    for _ in range(15):
        hybrid.step(closure)
    assert float(closure().detach()) < first - 0.1

    torch.manual_seed(0)
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )
    with pytest.raises(ValueError, match=r"pass zokern.layers\(model, blocks="):
        Hybrid(t5, ZO, ADAMW, splits.Depth(2))
    found = zokern.layers(t5, blocks=[*t5.encoder.block, *t5.decoder.block])
    hybrid = Hybrid(found, ZO, ADAMW, splits.Depth(2))
    t5.eval()
    losses = [float(hybrid.step(lambda: t5(input_ids=batch, labels=batch).loss)) for _ in range(10)]
    assert losses[-1] < losses[0] - 0.1


def test_autocast_around_steps_sees_fresh_weights(net, batch):
    hybrid = Hybrid(net, None, partial(torch.optim.SGD, lr=1.0), splits.Depth(2))
    with torch.autocast("cpu", torch.bfloat16):
        hybrid.step(lambda: net(batch))
        inside = net(batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert inside == net(batch).item()
