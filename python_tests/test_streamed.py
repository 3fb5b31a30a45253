"""Streamed weights: what a part computes with, what is refused, and that nothing of it stays."""

import copy
import pickle

import pytest
import torch
from streamed_cases import TERMS, Untouched, layout_of, mlp, perturbed, streams
from torch import nn

from zokern import Layout, Streamed

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def loss(tokens):
    return lambda model: model(tokens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_part_computes_with_its_perturbed_weights(transformer, loss, dtype, backend):
    streams(Streamed(transformer.to(dtype)), loss)


def test_the_parts_are_the_blocks_and_what_else_has_parameters(transformer):
    assert [part.name for part in Streamed(transformer).parts] == ["embed", "blocks.layers.0", "blocks.layers.1", "head"]
    given = Streamed(transformer, parts=[transformer, *transformer.blocks.layers])
    assert [(part.name, len(part.params)) for part in given.parts] == [("", 1), ("blocks.layers.0", 12), ("blocks.layers.1", 12)]


def test_a_parameter_that_a_part_around_shows_stays(transformer, loss):
    """The whole model holds the embedding, which is tied; it is made once an evaluation, and not by the head."""
    streams(Streamed(transformer, [transformer, transformer.head, *transformer.blocks.layers]), loss)


def test_memory_is_one_buffer_of_the_largest_part_and_is_used_again():
    model = mlp(30, 200, 7, 7, 300, 2)
    streamed = Streamed(model)
    streams(streamed, lambda model: model(torch.ones(30)).sum())
    largest = max(sum(-(-4 * p.numel() // 512) * 512 for p in block.parameters()) for block in model)
    (buffer,) = streamed._scratch.buffers.values()
    assert buffer.numel() == largest
    streams(streamed, lambda model: model(torch.ones(30)).sum())
    assert streamed._scratch.buffers.popitem()[1] is buffer


def test_only_what_has_terms_is_exchanged():
    model, x = mlp(5, 6, 7), torch.ones(5)
    layout = layout_of(model)
    blocks = Layout(layout.params, blocks=[0, 0, 1, 1])
    layouts = [blocks.part(0), blocks.part(1)]
    streamed = Streamed(model)
    with torch.no_grad(), Untouched(model):
        for terms in ([TERMS, None], [[], TERMS], [TERMS, TERMS[:1]]):
            other = model
            for part, of_part in zip(layouts, terms):
                other = perturbed(
                    other, layout_of(other).only([i for i, p in enumerate(layout.params) if p in {*part.params}]), of_part or []
                )
            expected = other(x)
            with streamed.showing(layouts, layouts, terms):
                assert sum(len(m._forward_hooks) for m in model.modules()) == sum(map(bool, terms))
                assert torch.equal(model(x), expected)


def test_theta_may_be_held_elsewhere():
    """At an anchor: its copies are theta, with or without terms."""
    model, x = mlp(5, 6, 7), torch.ones(5)
    layout = layout_of(model)
    anchor = layout.over([p.detach() * 0.5 for p in layout.params])
    streamed = Streamed(model)
    with torch.no_grad(), Untouched(model):
        for terms in (TERMS, [], TERMS):
            expected = perturbed(model, layout, terms, anchor)(x)
            with streamed.showing([layout], [anchor], [terms]):
                assert torch.equal(model(x), expected)


def test_what_is_kept_for_theta_goes_with_it():
    model = mlp(5, 6, 7)
    layout = layout_of(model)
    streamed = Streamed(model)
    for _ in range(3):
        anchor = layout.over([p.detach() * 0.5 for p in layout.params])
        with torch.no_grad(), streamed.showing([layout], [anchor], [TERMS]):
            model(torch.ones(5))
        del anchor
    assert len(streamed._pieces) == len(streamed._scratch._made) == 0


def test_strides_stay():
    """A transposed weight is multiplied by another kernel, which rounds otherwise; one with gaps has none in scratch memory."""
    model = mlp(300, 300, 300)
    model[0][0].weight.data = model[0][0].weight.data.t().contiguous().t()
    model[1][0].weight.data = torch.randn(300, 600)[:, ::2]
    seen = []
    model[0][1].register_forward_hook(lambda *_: seen.append(model[0][0].weight.stride()))
    streams(Streamed(model), lambda model: model(torch.ones(300)).sum())
    assert {*seen} == {(1, 300)}


@pytest.mark.parametrize("raises", [ValueError, KeyboardInterrupt])
def test_whatever_comes_between_leaves_the_model_as_it_was(transformer, tokens, raises):
    layout, streamed = layout_of(transformer), Streamed(transformer)

    def stop(*_):
        raise raises

    handle = transformer.blocks.layers[1].linear1.register_forward_hook(stop)
    with Untouched(transformer), pytest.raises(raises):
        with streamed.showing([layout], [layout], [TERMS]):
            transformer(tokens)
    handle.remove()
    streams(streamed, lambda model: model(tokens))


class Stop(BaseException):
    """Which torch lets no hook see."""


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_an_exception_that_the_model_catches_closes_what_it_has_left(error):
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.own = mlp(5, 5), nn.Parameter(torch.randn(5))

        def forward(self, x):
            try:
                x = self.inner(x)
            except error:
                closed.append(self.inner[0][0].weight.data_ptr() == homes[1])
            return x * self.own

    closed, model = [], nn.Sequential(Tries(), nn.Linear(5, 5))
    homes = [p.data_ptr() for p in model.parameters()]
    layout, streamed = layout_of(model), Streamed(model, [model[0], model[0].inner, model[1]])
    streams(streamed, lambda model: model(torch.ones(5)).sum(), layout=layout)

    def stop(*_):
        raise error

    model[0].inner[0].register_forward_hook(stop)
    streams(streamed, lambda model: model(torch.ones(5)).sum(), layout=layout)
    with torch.no_grad(), streamed.showing([layout], [layout], [TERMS]):
        model[0](torch.ones(5))
        assert homes == [p.data_ptr() for p in model.parameters()]
    assert closed[-1] == (error is ValueError)


class Lists(nn.Module):
    """Blocks that are lists of their layers, and parameters in a list: nobody calls these."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)]) for _ in range(2))
        self.scales = nn.ParameterList(torch.randn(4) for _ in range(2))
        self.attention = nn.MultiheadAttention(4, 2)  # reads what is in it

    def forward(self, x):
        for (linear, norm), scale in zip(self.blocks, self.scales):
            x = norm(linear(x)) * scale
        return self.attention(x, x, x)[0].sum()


def test_lists_are_no_parts_but_what_is_in_them():
    torch.manual_seed(0)
    streamed = Streamed(Lists().eval())
    assert [part.name for part in streamed.parts] == ["", "blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1", "attention"]
    streams(streamed, lambda model: model(torch.ones(3, 4)))


def test_under_autocast_no_copy_of_other_weights_is_left():
    """Which it keeps as long as it is on."""
    model, x = mlp(4, 5, 6), torch.ones(4)
    layout, streamed = layout_of(model), Streamed(model)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            at_theta = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            expected = perturbed(model, layout)(x)
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
            for _ in range(2):
                with streamed.showing([layout], [layout], [TERMS]):
                    assert torch.equal(model(x), expected)
                assert torch.equal(model(x), at_theta)
    assert not torch.equal(expected, at_theta)


def test_in_inference_mode_and_after_it():
    model, x = mlp(4, 5, 6), torch.ones(4)
    streamed = Streamed(model)
    layout, loss = layout_of(model), lambda model: model(x).sum()
    streams(streamed, torch.inference_mode()(loss), layout=layout)
    streams(streamed, loss, layout=layout)
    with streamed.showing([layout], [layout], [TERMS]):
        assert loss(model).requires_grad  # an inference tensor could not be saved for it


def test_what_is_the_users_own_way_of_running_things():
    """Hooks of modules that read their weights, and a default device."""
    model = mlp(4, 5, 6)
    model[0].register_forward_pre_hook(lambda block, args: (args[0] + block[0].weight.sum(),))
    x = torch.ones(4)

    def loss(model):
        with torch.device("meta"):
            return model(x).sum()

    streams(Streamed(model), loss)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.full((4,), i + 1.0) * 2


def test_a_model_that_is_converted():
    model = mlp(4, 5, 6)
    layout, streamed = layout_of(model), Streamed(model)
    for dtype in (*DTYPES, torch.float32):
        model.to(dtype)
        streams(streamed, lambda model: model(torch.ones(4, dtype=dtype)).sum(), layout=layout)  # noqa: B023


def test_workers_that_load_data_in_the_closure():
    streams(Streamed(mlp(4, 5, 6)), lambda model: sum(model(x).sum() for x in torch.utils.data.DataLoader(Rows(), 2, num_workers=2)))


def test_copies_and_pickles():
    model = mlp(4, 5, 6)
    streamed = Streamed(model, [*model])
    loss = lambda model: model(torch.ones(4)).sum()  # noqa: E731
    streams(streamed, loss)
    for other in (copy.deepcopy(streamed), pickle.loads(pickle.dumps(streamed))):
        assert other.model is not model and [part.name for part in other.parts] == ["0", "1"]
        streams(other, loss)


def test_parts_are_copied_to_where_the_model_computes(monkeypatch):
    """On the CPU: all that is done where there is another device."""
    model = mlp(4, 5, 6)
    frozen = model[0][0].weight.requires_grad_(False)
    streamed = Streamed(model)
    streamed.device = streamed._scratch.device = torch.device("cpu")
    places = []
    model[0][1].register_forward_hook(lambda *_: places.append(frozen.data_ptr()))
    streams(streamed, lambda model: model(torch.ones(4)).sum())
    with torch.no_grad(), Untouched(model), streamed.running():
        made = model(torch.ones(4))
    assert torch.equal(made, model(torch.ones(4)))
    assert len({*places}) == 3  # in the copies of the oracle; in scratch memory, each time; and where it is
    layout = layout_of(model)
    anchor = layout.over([p.detach() * 0.5 for p in layout.params])
    for terms in ([], TERMS):
        with torch.no_grad(), Untouched(model):
            expected = perturbed(model, layout, terms, anchor)(torch.ones(4))
            with streamed.showing([layout], [anchor], [terms]):
                assert torch.equal(model(torch.ones(4)), expected)
