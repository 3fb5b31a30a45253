"""Small runs whose every bit is given by arithmetic alone, so that what one version wrote another can be held to, on any machine.

Weights are fractions of 128. The loss is a sum of squares in float64, added up one by one: no matrix product, no function of a
mathematical library, no sum whose order a processor's registers decide.
"""

import hashlib
import warnings
from functools import partial

import torch
from attack import tiny
from safetensors.torch import load_file, save_file

import zokern
from zokern import FZOO, MEAZO, AdaMeZO, EvolutionStrategies, ForwardGradient, MeZO, MeZOSVRG, ZOAdam, ZOConservative, ZOMomentum, ZOSign

SAVED, RECORDED, FURTHER = 5, 7, 10  # steps after which a run is saved, its log is closed, and it ends
SKIPPED = 3  # the step whose loss is not finite


def weight(*shape, dtype=torch.float32, first=0):
    n = torch.Size(shape).numel()
    values = [((37 * i + 11) % 101 - 50) / 128 for i in range(first, first + n)]
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64).reshape(shape).to(dtype))


class Block(torch.nn.Module):
    """Half of it in bfloat16, and that transposed."""

    def __init__(self, rows, columns):
        super().__init__()
        self.slanted = torch.nn.Parameter(weight(columns, rows, dtype=torch.bfloat16, first=rows).detach().T)
        self.bias = weight(rows)


class Net(torch.nn.Module):
    """Parameters of both dtypes: tied, transposed, frozen, empty, and one without dimensions."""

    def __init__(self):
        super().__init__()
        self.embed = weight(5, 7)
        self.layers = torch.nn.ModuleList([Block(3, 7), Block(9, 1)])
        self.head = self.embed
        self.lone, self.empty, self.frozen = weight(dtype=torch.bfloat16, first=3), weight(0), weight(4)
        self.frozen.requires_grad_(False)

    def loss(self, step):
        total = torch.zeros((), dtype=torch.float64)
        for p in self.parameters():
            targets = [((13 * i + 7 * step + 3) % 17 - 8) / 16 for i in range(p.numel())]
            distance = p.double() - torch.tensor(targets, dtype=torch.float64).reshape(p.shape)
            for term in (distance * distance).flatten().unbind():
                total = total + term
        return total


def blocks(net):
    return [[net.embed, net.lone], [net.empty, *net.layers[0].parameters()], list(net.layers[1].parameters())]


# How each is made of a net and the groups of its parameters.
LINEAR, ADAM = dict(lr=2**-9, eps=2**-5), dict(lr=2**-6, eps=2**-5, betas=(0.5, 0.75), delta=2**-10)
CASES = {
    "mezo": lambda net, groups: MeZO(groups, weight_decay=0.125, **LINEAR),
    "mezo-defer": lambda net, groups: MeZO(groups, weight_decay=0.125, defer=True, **LINEAR),
    "mezo-defer-one-sided": lambda net, groups: MeZO(groups, q=2, estimator="one-sided", defer=True, **LINEAR),
    "mezo-two-queries": lambda net, groups: MeZO(groups, q=2, weight_decay=0.125, **LINEAR),
    "mezo-signs": lambda net, groups: MeZO(groups, q=2, weight_decay=0.125, sparsity=0.375, noise="rademacher", **LINEAR),
    "mezo-blocks": lambda net, groups: MeZO(groups, blocks=blocks(net), **LINEAR),
    "mezo-sparse-blocks-defer": lambda net, groups: MeZO(groups, blocks=blocks(net), sparsity=0.375, defer=True, **LINEAR),
    "zo-conservative": lambda net, groups: ZOConservative(groups, weight_decay=0.125, **LINEAR),
    "zo-conservative-one-sided": lambda net, groups: ZOConservative(groups, estimator="one-sided", **LINEAR),
    "zo-sign": lambda net, groups: ZOSign(groups, weight_decay=0.125, lr=2**-7, eps=2**-5),
    "zo-sign-scalar": lambda net, groups: ZOSign(groups, q=2, form="scalar", lr=2**-7, eps=2**-5),
    "zo-momentum": lambda net, groups: ZOMomentum(groups, momentum=0.75, **LINEAR),
    "zo-momentum-bfloat16": lambda net, groups: ZOMomentum(groups, weight_decay=0.125, state_dtype=torch.bfloat16, **LINEAR),
    "zo-adam": lambda net, groups: ZOAdam(groups, weight_decay=0.125, **ADAM),
    "zo-adam-amsgrad-bfloat16": lambda net, groups: ZOAdam(groups, amsgrad=True, state_dtype=torch.bfloat16, **ADAM),
    "zo-adam-sparse-uncorrected": lambda net, groups: ZOAdam(groups, q=2, bias_correction=False, sparsity=0.375, **ADAM),
    "zo-adam-signs": lambda net, groups: ZOAdam(groups, noise="rademacher", **ADAM),
    "mezo-svrg-copy": lambda net, groups: MeZOSVRG(groups, q=3, anchor="copy", weight_decay=0.125, lr_full=2**-8, **LINEAR),
    "mezo-svrg-replay": lambda net, groups: MeZOSVRG(groups, q=2, anchor="replay", sparsity=0.375, lr_full=2**-8, **LINEAR),
    "mezo-svrg-signs": lambda net, groups: MeZOSVRG(groups, q=3, anchor="replay", noise="rademacher", lr_full=2**-8, **LINEAR),
    "es": lambda net, groups: EvolutionStrategies(groups, population=5, weight_decay=0.125, lr=2**-7, sigma=2**-5),
    "es-mirrored-ranks-signs": lambda net, groups: EvolutionStrategies(
        groups, population=6, mirrored=True, shaping="ranks", maximize=True, sparsity=0.375, noise="rademacher", lr=2**-7, sigma=2**-5
    ),
    "fzoo": lambda net, groups: FZOO(groups, q=3, weight_decay=0.125, lr=2**-7, eps=2**-5),
    "meazo": lambda net, groups: MEAZO(groups, q=2, beta=0.5, delta=2**-10, lr=2**-7, eps=2**-5),
    "adamezo": lambda net, groups: AdaMeZO(groups, history=3, q=2, weight_decay=0.125, **ADAM),
    "forward-gradient": lambda net, groups: ForwardGradient(groups, q=2, lr=2**-9, weight_decay=0.125),
}


def hybrid(net):
    """Which no log can hold; its state is saved all the same. Products with a power of two are exact, whether torch fuses them or not."""
    sgd = partial(torch.optim.SGD, lr=2**-7, momentum=0.5)
    return zokern.Hybrid(net, partial(MeZO, seed=2**63 + 5, perturbation="in-place", **LINEAR), sgd, zokern.splits.Intra((0,)))


def optimizer_of(case, net):
    """Of two named groups, the second with a rate of its own."""
    if case == "hybrid":
        return hybrid(net)
    named = list(net.named_parameters())
    shared = {"seed": 2**63 + 5, "perturbation": "in-place", "rounding": "nearest"}  # the first that there was
    optimizer = CASES[case](net, [{"params": named[:2], **shared}, {"params": named[2:], **shared}])
    optimizer.param_groups[1]["lr"] /= 2
    return optimizer


def train(net, optimizer, steps):
    """Steps of a run, with a rate that is halved now and then, and a loss at one of them that is not finite."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was skipped", RuntimeWarning)
        for step in steps:
            for group in optimizer.param_groups if step % 3 == 2 else ():
                group["lr"] /= 2
            factor = float("nan") if step == SKIPPED else 1.0
            full = [lambda: (net.loss(0) + net.loss(1)) / 2 * factor] if isinstance(optimizer, MeZOSVRG) else []  # noqa: B023
            optimizer.step(lambda: net.loss(step) * factor, *full)  # noqa: B023


def digest(net):
    """16 hex digits of the SHA-256 of all weights, in row-major order."""
    sha = hashlib.sha256()
    for _, p in net.named_parameters():
        sha.update(p.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def ended(net, optimizer):
    """The digest where the steps so far have led."""
    optimizer.flush()
    return digest(net)


def digest_of_file(path):
    """Of the tensors in a file of safetensors, whatever else a library writes into it."""
    sha = hashlib.sha256()
    for name, p in sorted(load_file(path).items()):
        sha.update(name.encode() + p.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def base_model(folder):
    """Model and data of the run of the command line, made anew: they are larger than what it saved."""
    tiny.make(folder)
    path = folder / "model" / "model.safetensors"
    save_file({name: weight(*p.shape, first=len(name)).data for name, p in load_file(path).items()}, path, metadata={"format": "pt"})
