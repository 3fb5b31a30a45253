"""Streamed weights: what a part computes with, what is refused, and that nothing of it stays."""

import re

import pytest
import torch
from streamed_cases import TERMS, Untouched, layout_of, perturbed, streams
from torch import nn

from zokern import Layout, Streamed

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def loss(tokens):
    return lambda model: model(tokens)


def mlp(*widths):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in zip(widths, widths[1:])))


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
    largest = max(sum(-(-4 * p.numel() // 64) * 64 for p in block.parameters()) for block in model)
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


def test_an_exception_that_the_model_catches():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = mlp(5, 5), mlp(5, 5)

        def forward(self, x):
            try:
                self.first(x.double())
            except RuntimeError:
                return self.second(x) + self.first(x)

    model = Tries()
    streams(Streamed(model, [model.first, model.second]), lambda model: model(torch.ones(5)).sum())


class Borrows(nn.Module):
    """Reads a weight while its module does not run."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.outer, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how

    def forward(self, x):
        return self.outer(self.how(self.inner, self.inner(x)))


BORROWED = {
    "aten.t.default": lambda m, x: nn.functional.linear(x, m.weight),
    "aten.mm.default": lambda m, x: x @ m.weight,
    "aten.stack.default": lambda m, x: torch.stack([m.weight, m.weight])[0, :2] + x,
    "aten.select.int": lambda m, x: x * m.weight[0],
    "aten.detach.default": lambda m, x: x.mul(other=m.weight.data[:2]),
}


@pytest.mark.parametrize("how", BORROWED)
def test_a_read_outside_of_its_part_is_refused_in_the_first_evaluation(how):
    model = nn.Sequential(Borrows(BORROWED[how]))
    layout = layout_of(model)
    streamed = Streamed(model, [model[0].inner, model[0].outer])
    for _ in range(2):  # an evaluation that failed has proven nothing
        message = rf"'0.inner.weight', of 0.inner \(Linear\), is read \(by {re.escape(how)}\).*parts=\[...\].*zokern.Copied\(\)"
        with Untouched(model), torch.no_grad(), pytest.raises(RuntimeError, match=message):
            with streamed.showing([layout], [layout], [TERMS]):
                model(torch.ones(2, 4))
    streams(Streamed(model, [model[0]]), lambda model: model(torch.ones(2, 4)).sum())  # the cure
