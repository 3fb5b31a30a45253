"""Suite ``drift``: what rounding does to weights that are perturbed and to what they are moved by, in each dtype and mode. Distances, not
times."""

import copy
import math

import torch

import zokern

from . import modes, record
from .cases import Drift
from .models import DTYPES, build
from .oracle import CHECK, EPS, check
from .step import PUBLISHED, PublishedMeZO

SIGMA = 0.02  # of the weights, N(0, SIGMA^2): a language model's usual initialisation
SMALL = 1e-6  # lr * g of an update that a run with usual settings makes
DRIFT, UPDATE = "steps with lr = 0", "updates of 1e-6 z"


def measure(case: Drift, device) -> list[dict]:
    """Steps with lr = 0 should leave the weights where they are: how far off are they, rms, in units of eps, and are they the same bits?
    And which part of small updates reaches the weights? -> records.

    Raises:
        Refused: the primitive is wrong.
    """
    model = build(case.model, case.dtype, device) if case.model else Weights(case.n, DTYPES[case.dtype]).to(device)
    checked = next(model.parameters()).detach().clone()
    check(checked, 0, [(CHECK, EPS)], lambda: zokern.ops.add_noise_(zokern.Layout([checked]), [(CHECK, EPS)]))
    common = {
        "suite": "drift",
        "dtype": case.dtype,
        "n": sum(p.numel() for p in model.parameters()),
        "model": case.model,
        "sigma": None if case.model else SIGMA,
        **record.where(device),
    }

    def told(op, name, measured):
        return dict.fromkeys(record.FIELDS) | common | {"op": op, "candidate": name} | record.backend(device, name != PUBLISHED) | measured

    drifting = [*modes.of(case.dtype), *([] if case.model else [PUBLISHED])]  # 134M weights would take that half an hour
    return [told(DRIFT, name, drift(name, model, case.steps, device)) for name in drifting] + [
        told(UPDATE, name, delivered(name, model, case.updates)) for name in modes.of(case.dtype)
    ]


class Weights(torch.nn.Module):
    """n weights from N(0, SIGMA^2), and a forward pass that looks at them."""

    def __init__(self, n, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter((torch.randn(n, generator=torch.Generator().manual_seed(0)) * SIGMA).to(dtype))

    def forward(self):
        return self.weight.float().sum()


def drift(name, model, steps, device) -> dict:
    model = copy.deepcopy(model)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = PublishedMeZO(model, 0.0, EPS) if name == PUBLISHED else modes.mezo(name, model, 0.0, EPS)
    ids = torch.tensor([[1, 2]], device=device)
    closure = model if isinstance(model, Weights) else lambda: model(input_ids=ids, labels=ids).loss
    for _ in range(steps):
        optimizer.step(closure)
    after = [p.detach() for p in model.parameters()]
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(after, before)) / sum(b.numel() for b in before)
    return {"steps": steps, "eps": EPS, "drift_over_eps": math.sqrt(off) / EPS, "bit_equal": all(map(same_bits, after, before))}


def same_bits(a, b) -> bool:
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def delivered(name, model, updates) -> dict:
    """The part of updates SMALL z that reaches what the optimizer moves, along z, each from the same weights: 1 where nothing is lost; with
    its standard error. Rounded as the mode rounds by default."""
    along = whole = spread = 0.0
    for k in range(updates):
        key = zokern.NoiseKey(0, k)
        optimizer = modes.mezo(name, copy.deepcopy(model), SMALL, EPS)
        optimizer.param_groups[0]["step"] = k  # by which the update is rounded
        before = [p.detach().clone() for p in optimizer.layout.params]
        optimizer.apply(zokern.Estimate([(key, -1.0)]))
        for first, theta, old in zip(optimizer.layout.first, modes.theta(optimizer), before):
            z = zokern.ops.make_noise(key, first, old.numel(), old.device).double()
            moved = (theta.double() - old.double()).flatten() / SMALL
            along, whole = along + float(moved @ z), whole + float(z @ z)
            spread += float(((moved - z) * z).square().sum())
    found = {"delivered": along / whole, "delivered_se": math.sqrt(spread) / whole}
    return {"updates": updates, "size": SMALL, "rounding": optimizer.param_groups[0]["rounding"], **found}
