"""The oracle of streamed weights: a copy of the model whose weights are what they should be."""

import copy

import torch
from torch import nn

from zokern import Layout, NoiseKey, ops

TERMS = [(NoiseKey(1, 2), 0.1), (NoiseKey(1, 3), -0.03)]


def mlp(*widths):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in zip(widths, widths[1:])))


def perturbed(model, layout, terms=TERMS, theta=None):
    """A deep copy of the model at theta + sum_k c_k z(key_k), in the layout's parameters."""
    other = copy.deepcopy(model)
    theirs = dict(zip(model.parameters(), other.parameters()))
    ops.add_noise_(theta or layout, terms, out=[theirs[p].data for p in layout.params])
    return other


def layout_of(model):
    return Layout([(name, p) for name, p in model.named_parameters() if p.requires_grad])


class Untouched:
    """Inside, nothing of a model may change: values, addresses, strides, hooks; looked at in the end."""

    def __init__(self, model):
        self.model = model

    def look(self):
        hooks = [len(h) for m in self.model.modules() for h in (m._forward_pre_hooks, m._forward_hooks, m._forward_hooks_always_called)]
        places = [(p.data_ptr(), p.stride(), p.device, p.is_inference()) for p in self.model.parameters()]
        return hooks, places

    def __enter__(self):
        self.values, self.before = [p.detach().clone() for p in self.model.parameters()], self.look()

    def __exit__(self, *error):
        assert self.look() == self.before
        assert all(torch.equal(a, b) for a, b in zip(self.values, self.model.parameters()))


def streams(streamed, loss, terms=TERMS, layout=None):
    """Twice the same loss, to the bit, as that of the oracle; another one than at theta; and the model is left as it was."""
    model = streamed.model
    layout = layout or layout_of(model)
    with Untouched(model), torch.no_grad():
        expected = loss(perturbed(model, layout, terms))
        for _ in range(2):
            with streamed.showing([layout], [layout], [terms]):
                made = loss(model)
            assert torch.equal(made, expected)
        assert not torch.equal(loss(model), expected)
    return made
