"""Suite ``forms``: the pass with signs, with another tensor that is written, and on columns of a larger weight, against the plain pass."""

import torch

import zokern
from zokern.noise import spec

from . import record
from .cases import Form
from .models import DTYPES
from .oracle import CHECK, EPS, check
from .timing import Device, Wall, interleave

OURS, PLAIN = "zokern", "zokern, plain"  # plain: in place, normals, one piece of memory; as many elements
TORCH = {"signs": "bernoulli_ + add_", "out": "torch.normal + add + copy_", "columns": "torch.normal + add_"}
FLOOR, PLAIN_FLOOR = "floor", "floor, plain"


def measure(case: Form, device) -> list[dict]:
    """Check, then time. -> records, one a candidate.

    Raises:
        Refused: the check failed.
    """
    torch.set_num_threads(case.threads)
    purpose = spec.SIGNS if case.what == "signs" else spec.PERTURBATION
    keys = [zokern.NoiseKey.of(CHECK.seed, step, purpose) for step in range(case.terms)]
    terms = [(key, EPS * (1 + step / 4)) for step, key in enumerate(keys)]
    plain = torch.randn(case.n, dtype=DTYPES[case.dtype], device=device).mul_(0.02)
    theta = (
        torch.randn(case.side, case.side, dtype=plain.dtype, device=device).mul_(0.02)[:, : case.columns] if case.columns else plain.clone()
    )
    out = [torch.empty_like(theta, dtype=torch.bfloat16)] if case.what == "out" else None
    written = out[0] if out else theta
    ours, normals = zokern.Layout([theta]), zokern.Layout([plain])
    calls = {
        OURS: lambda: zokern.ops.add_noise_(ours, terms, out=out),
        PLAIN: lambda: zokern.ops.add_noise_(normals, [(key.to(spec.PERTURBATION), c) for key, c in terms]),
        TORCH[case.what]: lambda: by_torch(case.what, theta, written, terms),
        FLOOR: (lambda: written.copy_(theta)) if out else lambda: theta.mul_(1.0),
        PLAIN_FLOOR: lambda: plain.mul_(1.0),
    }
    check(theta, 0, terms, calls[OURS], written)
    for call in calls.values():
        call()
    timer = Device() if device.type == "cuda" else Wall(device)
    samples = interleave(calls, timer, case.budget)
    read, write = theta.element_size(), written.element_size()

    def describe(name):
        seconds = samples[name].median
        return {
            "suite": "forms",
            "op": f"{case.what} {case.columns} of {case.side}" if case.columns else case.what,
            **record.backend(device, name in (OURS, PLAIN)),
            "dtype": case.dtype,
            "n": case.n,
            "terms": case.terms,
            "threads": case.threads,
            "timer": timer.name,
            "ns_per_element": seconds / case.n * 1e9,
            "gb_per_s": case.n * (read + write) / seconds * 1e-9 if name in (OURS, FLOOR) else None,
            "over_plain": seconds / samples[PLAIN].median,
            "plain_share_of_floor": samples[PLAIN_FLOOR].median / samples[PLAIN].median,
        }

    return record.lines(device, samples, FLOOR, TORCH[case.what], describe)


def by_torch(what, theta, written, terms):
    for _, c in terms:
        if what == "signs":
            theta.add_(torch.empty_like(theta).bernoulli_().mul_(2).sub_(1), alpha=c)
        elif what == "out":
            written.copy_(theta.add(torch.normal(0.0, 1.0, theta.shape, device=theta.device), alpha=c))
        else:
            theta.add_(torch.normal(0.0, 1.0, theta.shape, dtype=theta.dtype, device=theta.device), alpha=c)
