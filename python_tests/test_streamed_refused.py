"""What streamed weights refuse, and what they must not: weights that are read, or not read, where they should not be."""

import re

import pytest
import torch
from streamed_cases import TERMS, Untouched, layout_of, mlp, perturbed, streams
from torch import nn

from zokern import Layout, Streamed


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


def test_views_and_other_parameters_in_its_memory_are_reads_too():
    for how in ("a view", "a parameter"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        if how == "a parameter":
            model[1].weight = nn.Parameter(model[0].weight.detach()[:2])
        else:
            row = model[0].weight.detach()[1]
            model[0].register_forward_hook(lambda m, x, y: y + row)  # noqa: B023
        layout = layout_of(model)
        with Untouched(model), torch.no_grad(), pytest.raises(RuntimeError, match=r"'0.weight', of 0 \(Linear\), is read"):
            with Streamed(model, [*model]).showing([layout], [layout], [TERMS]):
                model(torch.ones(4))


def test_shapes_and_the_like_may_be_read_at_any_time():
    model = nn.Sequential(
        Borrows(lambda m, x: x.to(m.weight.dtype) * torch.ones_like(m.weight).sum() * m.weight.new_ones(m.weight.shape[0]))
    )
    streams(Streamed(model, [model[0].inner, model[0].outer]), lambda model: model(torch.ones(2, 4)).sum())


def test_a_part_that_is_not_reached_is_refused_in_the_first_evaluation():
    model = mlp(4, 5, 6)
    model.unused = nn.Linear(2, 2)
    layout = layout_of(model)
    streamed = Streamed(model)
    message = r"'unused.weight', of unused \(Linear\), was not reached by the forward pass \(nor were 1 others\): leave it out .*Copied\(\)"
    for _ in range(2):
        with Untouched(model), torch.no_grad(), pytest.raises(RuntimeError, match=message):
            with streamed.showing([layout], [layout], [TERMS]):
                model[:2](torch.ones(4))
    used = Layout(model[:2].named_parameters())
    streams(streamed, lambda model: model[:2](torch.ones(4)).sum(), layout=used)


def test_later_evaluations_may_leave_parts_out_and_are_not_watched():
    model = mlp(4, 5, 6)
    layout, streamed = layout_of(model), Streamed(model)
    streams(streamed, lambda model: model(torch.ones(4)).sum(), layout=layout)
    streams(streamed, lambda model: model[0](torch.ones(4)).sum(), layout=layout)


def compiled(model):
    model[0][0].compile()
    return Streamed(model)


WRONG = {
    "no module": (lambda m: Streamed(m.parameters()), TypeError, "model is a generator: pass the torch.nn.Module"),
    "no parts": (lambda m: Streamed(m, []), ValueError, r"parts=\[\]: pass modules"),
    "a name": (lambda m: Streamed(m, ["0"]), TypeError, r"parts\[0\] is a str: pass modules of the model"),
    "another model's": (lambda m: Streamed(m, [m, nn.Tanh()]), ValueError, r"parts\[1\], a Tanh, is not in the model: pass modules"),
    "a list": (
        lambda m: Streamed(model := nn.Sequential(nn.ModuleList([m])), [model, model[0]]),
        ValueError,
        r"parts\[1\] \('0'\) is a ModuleList, which is never called: pass the modules in it",
    ),
    "compiled": (lambda m: Streamed(torch.compile(m)), ValueError, r"model \(OptimizedModule\) is compiled.*zokern.Copied\(\)"),
    "compiled within": (compiled, ValueError, r"0.0 \(Linear\) is compiled, .*as it was before torch.compile, or .*zokern.Copied\(\)"),
    "outside": (
        lambda m: Streamed(m, [m[1]]).check(layout_of(m)),
        ValueError,
        r"theta\[0\] \('0.0.weight'\) is in none of the parts: pass zokern.Streamed\(model, parts=\[...\]\) with a module around it",
    ),
    "of no part": (
        lambda m: Streamed(m).check(Layout([*m.parameters(), torch.ones(2)])),
        ValueError,
        r"theta\[4\] is not a parameter of the model that zokern.Streamed was given: pass the model that has it",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_say_what_to_pass(what):
    make, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        make(mlp(4, 5, 6))


def test_a_model_that_is_compiled_later_is_refused():
    model = mlp(4, 5, 6)
    layout, streamed = layout_of(model), Streamed(model)
    model.compile()
    with pytest.raises(ValueError, match=r"model \(Sequential\) is compiled"), streamed.showing([layout], [layout], [TERMS]):
        pass


def test_an_evaluation_that_passes_the_parts_over_is_refused():
    """As of a function that was compiled at theta: what torch.compile makes does not look whether modules have other hooks now."""
    model, x = mlp(4, 5, 6), torch.ones(4)
    layout, streamed = layout_of(model), Streamed(model)
    streams(streamed, lambda model: model(x).sum(), layout=layout)
    function = torch.compile(lambda: model(x).sum(), backend="eager")
    for closure in (function, lambda: perturbed(model, layout)(x).sum()):
        with Untouched(model), torch.no_grad(), pytest.raises(RuntimeError, match="no part of the model ran .*zokern.Copied"):
            closure()
            with streamed.showing([layout], [layout], [TERMS]):
                closure()


def test_a_backward_pass_is_told_that_weights_have_gone():
    model = mlp(4, 5, 6)
    layout, streamed = layout_of(model), Streamed(model)
    with streamed.showing([layout], [layout], [TERMS]):
        loss = model(torch.ones(4)).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
