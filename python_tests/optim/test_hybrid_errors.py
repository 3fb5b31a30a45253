"""What Hybrid and its splits refuse, and how they say it."""

from functools import partial

import pytest
import torch
from hybrid_cases import ADAMW, EMBED, HEAD, LISA, SGD, ZO, Net, weights
from tolerances import RESTORED
from torch import nn

from zokern import EvolutionStrategies, Hybrid, MeZO, splits


def alias():
    net = Net()
    net.head.weight = nn.Parameter(net.embed.weight.detach())
    return net


def alias_in_blocks(*places):
    net = Net()
    for i in places[1:]:
        net.layers[i][0].weight = nn.Parameter(net.layers[places[0]][0].weight.detach())
    return net


@pytest.mark.parametrize(
    "given, error, message",
    [
        (dict(split=splits.Depth(5)), ValueError, r"k=5 in Depth: the model has 4 blocks; pass an integer in \[0, 4\]"),
        (dict(split=splits.Depth(-1)), ValueError, "k=-1 in Depth"),
        (dict(split=splits.Depth(1.5)), ValueError, "k=1.5 in Depth"),
        (dict(split=splits.Inter(0)), ValueError, r"blocks=0 in Inter: the model has 4 blocks; pass how many of the deepest, in \[1, 4\]"),
        (dict(split=splits.Inter(5)), ValueError, "blocks=5 in Inter"),
        (dict(split=splits.Inter([1, 4])), ValueError, r"blocks=\(1, 4\) in Inter"),
        (dict(split=splits.Inter([1, 1])), ValueError, r"blocks=\(1, 1\) in Inter"),
        (dict(split=splits.Intra("3")), ValueError, "blocks='3' in Intra"),
        (dict(split=splits.LISA(5, 2)), ValueError, r"gamma=5 in LISA: the model has 4 blocks; pass an integer in \[1, 4\]"),
        (dict(split=splits.LISA(0, 2)), ValueError, "gamma=0 in LISA"),
        (dict(split=splits.LISA(4, 2)), ValueError, r"leaves no parameter to zo: all 311 trainable elements, in 4 blocks"),
        (dict(split=splits.Inter(4), freeze=EMBED), ValueError, "leaves no parameter to zo: all 245 trainable elements"),
        (dict(split=splits.Depth(4), freeze=HEAD), ValueError, r"Depth\(k=4\) leaves no parameter to fo: all 234 trainable elements"),
        (dict(split=splits.Depth(4), freeze=HEAD, zo=None), ValueError, "leaves no parameter to fo"),
        (dict(split="half"), TypeError, "split='half': pass zokern.splits.Depth"),
        (dict(model=nn.Linear(2, 2)), ValueError, r"no layers found .*pass zokern.layers\(model, blocks="),
        (dict(model=alias()), ValueError, "'embed.weight' and 'head.weight' share memory, .*both halves: tie them"),
        (dict(model=alias_in_blocks(2, 3), split=splits.Intra(2)), ValueError, "share memory"),
        (dict(model=alias_in_blocks(0, 3), split=LISA), ValueError, "share memory"),
        (dict(zo=ADAMW), TypeError, "zo makes AdamW: pass what makes a ZerothOrder, such as functools"),
        (dict(zo=lambda named: list(named)), TypeError, "zo makes list: pass what makes a ZerothOrder, such as functools"),
        (dict(zo=lambda named: None), TypeError, "zo makes NoneType"),
        (dict(zo=MeZO([torch.ones(2, requires_grad=True)])), TypeError, "zo is a MeZO: pass a callable that makes the optimizer"),
        (dict(fo=None), TypeError, "fo is a NoneType: pass a callable"),
        (dict(fo=lambda params: None), TypeError, "fo makes NoneType: pass what makes a torch Optimizer"),
        (dict(zo=partial(MeZO, defer=True)), ValueError, "defer=True: .*leave defer=False"),
        (dict(zo=partial(EvolutionStrategies, maximize=True)), ValueError, "maximize=True, and fo goes down .*leave maximize=False"),
        (dict(zo=None, share_forward=True), ValueError, "share_forward=True with zo=None"),
        (dict(fo=torch.optim.LBFGS), ValueError, "fo makes LBFGS, whose step evaluates the loss itself: pass one that takes .grad"),
        (dict(split=LISA, fo=torch.optim.Adagrad), ValueError, "fo makes Adagrad, which keeps state for all parameters from the start"),
    ],
)
def test_errors_name_the_value_and_the_cure(given, error, message):
    given = {"model": Net(), "zo": ZO, "fo": ADAMW, "split": splits.Depth(2), **given}
    for name in given.pop("freeze", ()):
        given["model"].get_parameter(name).requires_grad_(False)
    with pytest.raises(error, match=message):
        Hybrid(**given)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: splits.Intra(2, 1.0), r"ratio=1.0 in Intra: pass a number in \(0, 1\)"),
        (lambda: splits.Intra(2, 0.0), "ratio=0.0"),
        (lambda: splits.LISA(2, 0), "every=0 in LISA: pass an integer >= 1"),
        (lambda: splits.LISA(2, 2.5), "every=2.5 in LISA"),
        (lambda: splits.LISA(2, 2, seed=-1), r"seed=-1 is outside \[0, 2\*\*64\)"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_memory_shared_within_a_half_is_no_error(batch):
    for net, split in ((alias_in_blocks(0, 1), splits.Depth(2)), (alias_in_blocks(2, 3), splits.Depth(2))):
        Hybrid(net, ZO, SGD, split).step(lambda: net(batch))  # noqa: B023


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (lambda loss: loss.detach(), ValueError, "does not depend on the first-order parameters: return it as computed"),
        (lambda loss: loss.item(), TypeError, "closure returned float: return the loss itself, a 0-dim tensor"),
        (lambda loss: loss.expand(2), ValueError, r"tensor of shape \(2,\), torch.float32: return a real 0-dim loss"),
        (lambda loss: loss * 1j, ValueError, "torch.complex64: return a real 0-dim loss"),
    ],
)
def test_a_loss_that_cannot_be_differentiated_is_told_so(net, batch, share, bad, error, message):
    hybrid, before = Hybrid(net, ZO, SGD, splits.Depth(2), share_forward=share), weights(net)
    with pytest.raises(error, match=message):
        hybrid.step(lambda: bad(net(batch)))
    assert all((a - b).abs().max() <= RESTORED for a, b in zip(net.parameters(), before))
    with pytest.raises(ValueError, match="closure=None: .*call step"):
        hybrid.step(None)


def test_a_state_of_another_split_is_refused_and_changes_nothing(net, batch):
    hybrid = Hybrid(net, ZO, ADAMW, LISA)
    for _ in range(4):
        hybrid.step(lambda: net(batch))
    state = hybrid.state_dict()
    for other, zo, message in (
        (splits.LISA(2, 3, seed=8), ZO, "other first-order rows: 'layers"),
        (splits.Depth(2), ZO, r"'embed.weight' had 11, split=Depth\(k=2\) gives it 0; pass the split"),
        (LISA, None, "saved with a zo"),
    ):
        fresh = Hybrid(Net(), zo, ADAMW, other)
        with pytest.raises(ValueError, match=message):
            fresh.load_state_dict(state)
        assert fresh.steps == 0 and not fresh.fo.state
    fresh = Hybrid(Net(), ZO, lambda params: torch.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}]), LISA)
    names = fresh.zo.layout.names
    with pytest.raises(ValueError, match="param groups|parameter group"):
        fresh.load_state_dict(state)
    assert fresh.steps == 0 and fresh.zo.param_groups[0]["step"] == 0 and fresh.zo.layout.names == names
