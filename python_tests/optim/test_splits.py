"""The splits of Hybrid: who is first-order, in which rows, and when."""

import copy
from functools import partial

import pytest
import torch
from hybrid_cases import ADAMW, BLOCKS, EMBED, HEAD, LISA, SGD, STATIC, ZO, block, moved, weights
from tolerances import RESTORED
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import zokern
from zokern import Hybrid, MeZO, splits
from zokern.optim.hybrid.halves import Cut


@pytest.mark.parametrize("split", STATIC, ids=str)
def test_the_halves_are_those_that_were_written_down(net, split):
    found = split.first_order(zokern.layers(net))
    named = {p: name for name, p in net.named_parameters()}
    rows = {name: len(p) for p, name in named.items()}
    assert {named[p]: n for p, n in found.items()} == {name: n or rows[name] for name, n in STATIC[split].items()}


def test_lisa_trains_embedding_head_and_the_blocks_of_the_draw(net, batch):
    hybrid = Hybrid(net, None, ADAMW, LISA)
    draws, named = [], dict(net.named_parameters())
    for _ in range(60):
        before = weights(net)
        hybrid.step(lambda: net(batch))
        draws.append(tuple(i for i in range(BLOCKS) if block(i) <= moved(net, before)))
        assert moved(net, before) == EMBED | HEAD | block(*draws[-1]) and len(draws[-1]) == 2
        after = {named_p for named_p, p in named.items() if p in hybrid.fo.state}
        # At most the state of the draw to come, and of those alone that have moved since.
        ends = hybrid.steps % 3 == 0
        assert EMBED | HEAD <= after <= EMBED | HEAD | block(*draws[-1]) and (ends or after == EMBED | HEAD | block(*draws[-1]))
    assert all(len(set(draws[i : i + 3])) == 1 for i in range(0, 60, 3))
    assert set().union(*draws) == set(range(BLOCKS))


def test_a_draw_drops_the_state_of_those_that_leave_and_keeps_that_of_those_that_stay(net, batch):
    hybrid = Hybrid(net, ZO, ADAMW, splits.LISA(1, 1, seed=0))
    live = lambda: {i for i in range(BLOCKS) if net.layers[i][0].weight in hybrid.halves.first}  # noqa: E731
    assert len(hybrid.zo.layout.params) == 6
    for step in range(1, 8):
        old = live()
        hybrid.step(lambda: net(batch))
        (kept,) = old
        assert (net.layers[kept][0].weight in hybrid.fo.state) == (kept in live())
        assert hybrid.fo.state[net.head.weight]["step"] == step
        assert len(hybrid.zo.layout.params) == 6 and hybrid.zo.layout.names == [
            n for n, p in net.named_parameters() if p not in hybrid.halves.first
        ]


def test_draws_come_from_seed_and_step_alone():
    found = zokern.layers(nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(12))))
    place = {params[0]: i for i, params in enumerate(found.params)}

    def draw(step, **given):
        return sorted(place[p] for p in splits.LISA(**{"gamma": 3, "every": 5, **given}).first_order(found, step))

    assert draw(5) == draw(9) != draw(10)
    assert draw(5, every=1) != draw(9, every=1) and draw(0) != draw(0, seed=1)
    counts = torch.zeros(12)
    for step in range(400):
        counts[draw(step, every=1)] += 1
    # Each in a quarter of 400 draws: mean 100, deviation 8.7; beyond 5 deviations once in 10^5 for 12 blocks.
    assert (counts - 100).abs().max() < 5 * 8.7
    assert draw(0, gamma=12) == list(range(12))


def test_groups_made_by_the_factories_survive_the_draws(net, batch):
    def zo(named):
        named = list(named)
        small = [(name, p) for name, p in named if p.dim() == 1]
        return MeZO([{"params": [x for x in named if x[1].dim() > 1]}, {"params": small, "lr": 0.0}], lr=2e-3)

    def fo(params):
        return torch.optim.AdamW(
            [{"params": [p for p in params if p.dim() > 1]}, {"params": [p for p in params if p.dim() == 1], "lr": 0.0}]
        )

    hybrid = Hybrid(net, zo, fo, splits.LISA(2, 1))
    before = weights(net)
    for _ in range(6):
        hybrid.step(lambda: net(batch))
    still = {name for name in block(0, 1, 2, 3) | HEAD if name.endswith("bias")}
    assert all(
        (net.get_parameter(name) - old).abs().max() <= 12 * RESTORED
        for name, old in zip(dict(net.named_parameters()), before)
        if name in still
    )
    assert moved(net, before) >= EMBED | {name for name in block(0, 1, 2, 3) | HEAD if name.endswith("weight")}


def test_intra_keeps_state_and_noise_for_its_rows_only(net, batch):
    hybrid = Hybrid(net, ZO, ADAMW, splits.Intra([3], ratio=0.34))
    hybrid.step(lambda: net(batch))
    shapes = sorted(tuple(state["exp_avg"].shape) for state in hybrid.fo.state.values())
    assert shapes == sorted([(2, 6), (2,), (11, 6), (11,)])
    cut = {name: tuple(p.shape) for name, p in zip(hybrid.zo.layout.names, hybrid.zo.layout.params) if "[" in name}
    assert cut == {"layers.3.0.weight[2:]": (4, 6), "layers.3.0.bias[2:]": (4,)}
    assert all(p.grad is None for half in (hybrid.zo, hybrid.fo) for g in half.param_groups for p in g["params"])


def test_intra_gives_parameters_too_small_to_cut_to_one_side():
    torch.manual_seed(0)
    block = nn.Linear(3, 1)
    block.scale = nn.Parameter(torch.ones(()))
    model = nn.Sequential(nn.Linear(3, 3), block)
    for ratio, side in ((0.3, 0), (0.7, 1)):
        found = splits.Intra(1, ratio).first_order(zokern.layers(model))
        assert [found[p] for p in (block.weight, block.bias, block.scale)] == [side] * 3
        hybrid = Hybrid(model, ZO, SGD, splits.Intra(2, ratio))
        first = {id(p) for g in hybrid.fo.param_groups for p in g["params"]}
        assert (id(block.scale) in first) == bool(side)


def test_intra_keeps_one_whole_gradient_at_a_time(net, batch):
    hybrid, alive = Hybrid(net, ZO, SGD, splits.Intra(4)), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            alive.append(sum(p.grad is not None for layer in net.layers for p in layer.parameters()))
            return f(*args, **(kwargs or {}))

    with Watch():
        hybrid.step(lambda: net(batch))
    assert max(alive) == 1


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_intra_adds_up_the_gradients_of_checkpointed_segments(net, batch):
    net.layers[3][0].weight = net.layers[2][0].weight
    twin = copy.deepcopy(net)
    for layer in twin.layers[1:]:  # each segment's backward is a run of its own, so the shared weight is reached twice
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=True)
    for model in (net, twin):
        Hybrid(model, ZO, SGD, splits.Intra(4)).step(lambda: model(batch))  # noqa: B023
    for a, b in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_intra_follows_a_model_that_is_converted_or_reloaded(net, batch):
    hybrid = Hybrid(net, ZO, SGD, splits.Intra(2))
    hybrid.step(lambda: net(batch))
    net.to(torch.bfloat16)
    before = weights(net)
    hybrid.step(lambda: net(batch).float())
    assert moved(net, before) == EMBED | block(0, 1, 2, 3) | HEAD
    assert all(p.dtype == torch.bfloat16 for p in hybrid.zo.layout.params)
    changed = (net.layers[3][0].weight != before[7]).any(1)
    assert changed[:3].any() and changed[3:].any()


@pytest.mark.parametrize(
    "replaced", [lambda w: w.t(), lambda w: w[:3], lambda w: w.view(torch.bfloat16)[:, :4]], ids=["t", "less", "dtype"]
)
def test_a_cut_follows_a_parameter_that_is_replaced_at_its_address(replaced):
    whole = nn.Parameter(torch.randn(4, 4))
    cut = Cut(whole, 1)
    whole.data = replaced(whole.data)
    cut.follow()
    for part, rows in ((cut.first, whole[:1]), (cut.zeroth, whole[1:])):
        assert (part.data_ptr(), part.dtype, part.shape, part.stride()) == (rows.data_ptr(), rows.dtype, rows.shape, rows.stride())
