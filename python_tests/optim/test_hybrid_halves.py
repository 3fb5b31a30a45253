"""Hybrid as torch's optimizer: it measures in one call and moves in another, and a scheduler, a state and a copy are those of one."""

import copy
import io
import warnings
from functools import partial

import pytest
import torch
from hybrid_cases import ADAMW, LISA, SGD, STATIC, ZO, weights
from tolerances import RESTORED

import zokern
from zokern import ForwardGradient, Hybrid, MeZOSVRG, ZOConservative, splits

SPLITS = [splits.Depth(2), splits.Intra(2), LISA]
KINDS = {
    "plain": dict(zo=ZO),
    "two forwards": dict(zo=ZO, share_forward=True),
    "the rest frozen": dict(zo=None),
    "ZOConservative": dict(zo=partial(ZOConservative, lr=2e-3, eps=1e-2)),
    "ForwardGradient": dict(zo=partial(ForwardGradient, lr=2e-3)),
}


def hybrid_of(net, kind="plain", split=SPLITS[0], fo=ADAMW):
    return Hybrid(net, fo=fo, split=split, **KINDS[kind])


def gradients(hybrid):
    return [p.grad for group in hybrid.fo.param_groups for p in group["params"] if p.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_two_halves_are_a_step(net, batch, split, kind):
    twin = copy.deepcopy(net)
    halves, whole = hybrid_of(net, kind, split), hybrid_of(twin, kind, split)
    for step in range(5):  # LISA draws after three
        measured = halves.measure(lambda: net(batch))
        assert halves.steps == step and len(gradients(halves)) >= 4 and not measured.skipped
        loss = halves.step()
        assert torch.equal(loss, whole.step(lambda: twin(batch))) and torch.equal(measured.loss, whole.last.loss)
        assert not gradients(halves) and all(p.grad is None for p in net.parameters())
    assert all(map(torch.equal, net.parameters(), twin.parameters())) and halves.last.estimate == (halves.zo and halves.zo.last)
    with pytest.raises(ValueError, match="closure=None"):
        halves.step()


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_gradients_between_the_halves_can_be_clipped(net, batch, split):
    """Clipped there, or by a hook before fo's step: the same step."""
    twin = copy.deepcopy(net)
    halves, hooked = hybrid_of(net, split=split, fo=SGD), hybrid_of(twin, split=split, fo=SGD)
    clip = lambda hybrid: torch.nn.utils.clip_grad_norm_([p for g in hybrid.fo.param_groups for p in g["params"]], 0.1)  # noqa: E731
    hooked.fo.register_step_pre_hook(lambda *_: clip(hooked) and None)
    for _ in range(4):
        halves.measure(lambda: net(batch))
        assert clip(halves) > 0.2
        halves.step()
        hooked.step(lambda: twin(batch))
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("kind", ["plain", "two forwards", "the rest frozen"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_what_no_step_follows_moves_nothing(net, batch, split, kind):
    twin, before = copy.deepcopy(net), weights(net)
    hybrid, plain = hybrid_of(net, kind, split), hybrid_of(twin, kind, split)
    hybrid.measure(lambda: net(batch))
    hybrid.flush()
    assert all((a - b).abs().max() <= RESTORED for a, b in zip(net.parameters(), before))
    hybrid.measure(lambda: net(batch * 0))  # instead of the first
    hybrid.measure(lambda: net(batch))
    hybrid.flush()  # as for an evaluation
    hybrid.step()
    plain.step(lambda: twin(batch))
    # Each way there and back rounds: 1e-7 in the weights, of losses to 2e-7 over 2 eps, times lr |z|; AdamW's first step hides no scale.
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(net.parameters(), twin.parameters()))
    assert hybrid.steps == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_where_it_is_differentiated(net, batch, kind):
    """Nothing else is evaluated, nothing moves, and nothing is left to be clipped."""
    hybrid, before, calls = hybrid_of(net, kind), weights(net), []

    def closure():
        calls.append(0)
        return net(batch) * float("nan")

    assert hybrid.measure(closure).skipped and not gradients(hybrid)
    with pytest.warns(RuntimeWarning, match="step 0 was skipped"):
        hybrid.step()
    assert all((a - b).abs().max() <= RESTORED for a, b in zip(net.parameters(), before))
    assert len(calls) == (2 if kind == "two forwards" else 1) and (hybrid.steps, hybrid.skipped) == (1, 1)
    assert hybrid.zo is None or hybrid.zo.skipped == 1


def test_one_scheduler_drives_both_halves_each_from_its_own_lr(net, batch):
    hybrid = hybrid_of(net)
    assert isinstance(hybrid, torch.optim.Optimizer)
    assert list(map(id, hybrid.param_groups)) == list(map(id, [*hybrid.zo.param_groups, *hybrid.fo.param_groups]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.LambdaLR(hybrid, lambda step: 1 / (1 + step))
        for _ in range(3):
            hybrid.step(lambda: net(batch))
            scheduler.step()
    assert [hybrid.zo.param_groups[0]["lr"], hybrid.fo.param_groups[0]["lr"]] == [2e-3 / 4, 1e-2 / 4]
    hybrid.load_state_dict(hybrid.state_dict())  # makes fo's groups anew
    scheduler.step()
    assert [group["lr"] for group in (*hybrid.zo.param_groups, *hybrid.fo.param_groups)] == [2e-3 / 5, 1e-2 / 5]
    with pytest.raises(ValueError, match="momentum or beta1"):
        torch.optim.lr_scheduler.OneCycleLR(hybrid, 0.1, total_steps=9)
    with pytest.raises(TypeError, match="make another Hybrid"):
        hybrid.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize("between", [False, True], ids=["between steps", "between the halves"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_copy_goes_on_by_itself(net, batch, split, between):
    """deepcopy and pickle keep the whole, the model and its pending terms included; a measurement is not kept."""
    hybrid = hybrid_of(net, split=split)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(hybrid, 0.9)  # it wraps step
    hybrid.register_step_post_hook(lambda *_: None)  # which no pickle takes
    for _ in range(4):
        hybrid.step(lambda: net(batch))
        scheduler.step()
    if between:
        hybrid.measure(lambda: net(batch))
    saved = io.BytesIO()
    torch.save((net, hybrid), saved)  # a pickle that keeps what is a view of what
    saved.seek(0)
    for other, copied in (copy.deepcopy((net, hybrid)), torch.load(saved, weights_only=False)):
        hybrid.flush()
        copied.flush()
        assert all(map(torch.equal, net.parameters(), other.parameters())) and copied.steps == 4
        with pytest.raises(ValueError, match="closure=None"):
            copied.step()
        straight = copy.deepcopy(net)
        plain = hybrid_of(straight, split=split)
        plain.load_state_dict(copy.deepcopy(hybrid.state_dict()))  # torch would share the tensors
        for _ in range(3):
            copied.step(lambda: other(batch))  # noqa: B023
            plain.step(lambda: straight(batch))  # noqa: B023
        assert all(map(torch.equal, other.parameters(), straight.parameters()))


def test_an_optimizer_that_no_half_can_be(net):
    for zo, share, message in (
        (MeZOSVRG, False, "zo made a MeZOSVRG, whose anchors need a full batch: pass another"),
        (ForwardGradient, True, "share_forward=True with a zo that makes ForwardGradient.*pass share_forward=False"),
    ):
        with pytest.raises(ValueError, match=message):
            Hybrid(net, zo, ADAMW, next(iter(STATIC)), share_forward=share)


def test_no_graph_is_captured_of_it(net, batch):
    with pytest.raises(ValueError, match="a step of Hybrid cannot be captured: pass a MeZO"):
        zokern.graph(hybrid_of(net), lambda: net(batch))


def test_weights_changed_between_the_halves_are_noticed(net, batch):
    hybrid = hybrid_of(net)
    hybrid.measure(lambda: net(batch))
    with torch.no_grad():
        net.embed.weight.mul_(2)
    with pytest.raises(RuntimeError, match="the weights were changed"):
        hybrid.step()
