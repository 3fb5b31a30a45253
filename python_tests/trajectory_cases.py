"""The optimizers, the model and the runs of the tests of trajectories."""

import json
import warnings
import zlib
from functools import partial

import torch
from optimizer_cases import OPTIMIZERS

from zokern import ForwardGradient, MeZO, MeZOSVRG, Streamed


def forward_gradient(params, eps=None, **settings):
    return ForwardGradient(params, q=2, **settings)


CASES = {
    **OPTIMIZERS,
    "ForwardGradient": forward_gradient,
    "MeZO defer": partial(MeZO, defer=True),
    "MeZO defer one-sided": partial(MeZO, defer=True, q=2, estimator="one-sided"),
    **{
        f"{name} streamed": OPTIMIZERS[name]
        for name in ("MeZO", "MeZO q=2", "MeZO blocks", "ZOConservative", "ZOAdam", "AdaMeZO", "MeZOSVRG copy")
    },
    "MeZOSVRG replay streamed": OPTIMIZERS["MeZOSVRG replay"],
    "MeZO defer streamed": partial(MeZO, defer=True),
    "MeZO sparse blocks": lambda params, **settings: OPTIMIZERS["MeZO blocks"](params, sparsity=0.4, **settings),
}


class Net(torch.nn.Module):
    """Tied weights, a transposed parameter, a frozen one, and one of several pieces."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(4)

        def weight(*shape):
            return torch.nn.Parameter(torch.randn(shape, generator=generator).mul(0.3).to(dtype))

        self.embed, self.middle = weight(11, 7), weight(7, 9)
        self.slanted = torch.nn.Parameter(weight(7, 9).detach().T)
        self.frozen, self.bias, self.empty = weight(9), weight(9), weight(0)
        self.frozen.requires_grad_(False)
        self.head = self.embed

    def forward(self, tokens):
        hidden = torch.tanh(self.embed[tokens].float() @ self.middle.float() + self.bias.float() + self.frozen.float())
        logits = hidden @ self.slanted.float() @ self.head.float().T
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), (tokens * 3 % 11).flatten())


def optimizer_of(name, net, groups=2, **settings):
    """Two named groups with settings of their own, or all parameters."""
    settings = {"lr": 1e-2, "eps": 1e-2, "seed": 5, "weight_decay": 0.1, **settings}
    if name == "ForwardGradient":
        del settings["eps"]
    if name.endswith("streamed"):
        settings["perturbation"] = Streamed(net)
    named = list(net.named_parameters())
    params = [{"params": named[:2]}, {"params": named[2:], "lr": 3e-3}] if groups == 2 else named
    return CASES[name](params, **settings)


def batch(step):
    return torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(step))


def train(optimizer, net, steps, scheduler=None, nan_at=None, after=None):
    """-> the weights after each step."""
    taken = []
    for step in steps:
        tokens = batch(step)
        factor = float("nan") if step == nan_at else 1.0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* was skipped", RuntimeWarning)
            full = [lambda: net(tokens).double()] if type(optimizer) is MeZOSVRG else []  # noqa: B023
            optimizer.step(lambda: net(tokens) * factor, *full)  # noqa: B023
        if scheduler is not None:
            scheduler.step()
        if after is not None:
            after(step)
        taken.append(weights(net))
    return taken


def weights(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def same(net, expected):
    """Bit for bit."""
    integer = {4: torch.int32, 2: torch.int16}
    return all(
        torch.equal(p.detach().contiguous().view(integer[p.element_size()]), expected[name].contiguous().view(integer[p.element_size()]))
        for name, p in net.named_parameters()
    )


class Raw(str):
    """What stands in a line as it is."""


def text(value):
    """JSON, but for what is raw, and a name twice where a dict is a list of pairs."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{text(held)}" for key, held in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text, value)) + "]"
    return json.dumps(value)


def sealed(header, steps, damage=lambda line, body: body):
    """The bytes of a log, whose checksums are right."""
    lines, crc = [], 0
    for i, line in enumerate([header, *steps]):
        body = damage(i, text(line)[:-1].encode("utf-8", "surrogateescape"))
        crc = zlib.crc32(body, crc)
        lines.append(body + (b',"crc":"%04x"}' % (crc & 0xFFFF) if i else b',"crc":"%08x"}' % crc))
    return b"\n".join(lines) + b"\n"


def unsealed(path):
    """The lines of a log without their checksums."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "crc"} for line in lines]
