"""Suite ``drift``: what rounding does to weights that are perturbed in place, in each dtype. Not a time: a distance."""

import torch

import zokern

from . import record
from .cases import Drift
from .models import DTYPES
from .oracle import CHECK, EPS, check
from .step import OURS, PUBLISHED, PublishedMeZO

SIGMA = 0.02  # of the weights, N(0, SIGMA^2): a language model's usual initialisation
SMALL = 1e-6  # lr * g of an update that a run with usual settings makes


def measure(case: Drift, device) -> list[dict]:
    """Steps with lr = 0 should leave the weights where they are: how far off are they, rms, in units of eps? -> records.

    Raises:
        Refused: the primitive is wrong.
    """
    start = (torch.randn(case.n, generator=torch.Generator().manual_seed(0)) * SIGMA).to(DTYPES[case.dtype]).to(device)
    checked = start.clone()
    check(checked, 0, [(CHECK, EPS)], lambda: zokern.ops.add_noise_(zokern.Layout([checked]), [(CHECK, EPS)]))
    described = []
    for name in (OURS, PUBLISHED):
        theta = torch.nn.ParameterList([torch.nn.Parameter(start.clone())])
        optimizer = zokern.MeZO(theta.parameters(), lr=0.0, eps=EPS) if name == OURS else PublishedMeZO(theta, 0.0, EPS)
        for _ in range(case.steps):
            optimizer.step(lambda: torch.zeros((), device=device))
        off = (theta[0].detach().double() - start.double()).square().mean().sqrt()
        described.append((name, {"drift_over_eps": float(off) / EPS, "update_kept": kept(start) if name == OURS else None}))
    common = {
        "suite": "drift",
        "op": "steps with lr = 0",
        "dtype": case.dtype,
        "n": case.n,
        "steps": case.steps,
        "eps": EPS,
        "sigma": SIGMA,
    }
    where = record.where(device)
    return [
        dict.fromkeys(record.FIELDS) | common | {"candidate": name} | record.backend(device, name == OURS) | measured | where
        for name, measured in described
    ]


def kept(start) -> float:
    """The part of an update SMALL z that reaches the weights, along z: 1 where nothing is lost to rounding."""
    key, theta = zokern.NoiseKey(1), start.clone()
    zokern.ops.add_noise_(zokern.Layout([theta]), [(key, SMALL)])
    z = zokern.ops.make_noise(key, 0, len(start), start.device).double()
    return float((theta.double() - start.double()) @ z / (SMALL * (z @ z)))
