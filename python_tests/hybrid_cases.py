"""What the tests of Hybrid share: a small model, its batch, and splits written down by hand."""

from functools import partial

import torch
from torch import nn

from zokern import MeZO, splits

SGD = partial(torch.optim.SGD, lr=2e-2, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=1e-2)
ZO = partial(MeZO, lr=2e-3, eps=1e-2, seed=7)
BLOCKS = 4


class Net(nn.Module):
    """An embedding, four blocks and a head, and a scalar loss."""

    def __init__(self, width=6):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(BLOCKS))
        self.head = nn.Linear(width, 11)

    def forward(self, tokens):
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), tokens.flatten().roll(1))


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def moved(model, before):
    """Names of the parameters that are not what they were."""
    return {name for (name, p), old in zip(model.named_parameters(), before) if not torch.equal(p, old)}


def block(*places):
    return {f"layers.{i}.0.{leaf}" for i in places for leaf in ("weight", "bias")}


EMBED, HEAD = {"embed.weight"}, {"head.weight", "head.bias"}
# split: {name: first-order rows}, written down by hand; None is all of them.
STATIC = {
    splits.Depth(0): dict.fromkeys(block(0, 1, 2, 3) | HEAD),
    splits.Depth(3): dict.fromkeys(block(3) | HEAD),
    splits.Depth(4): dict.fromkeys(HEAD),
    splits.Inter(2): dict.fromkeys(block(2, 3) | HEAD),
    splits.Inter([2, 0]): dict.fromkeys(block(0, 2) | HEAD),
    splits.Intra(1): dict.fromkeys(block(3), 3) | dict.fromkeys(HEAD),
    splits.Intra([0, 2], ratio=0.3): dict.fromkeys(block(0, 2), 2) | dict.fromkeys(HEAD),
}
LISA = splits.LISA(gamma=2, every=3, seed=5)
