"""What is wrong is not timed: results are compared with the NumPy oracle first, bit for bit."""

from functools import partial

import torch

import zokern
from zokern.noise import reference

SLICE = 1000  # elements compared at the beginning, in the middle and at the end of a tensor
EPS = 1e-3
CHECK = zokern.NoiseKey(seed=0x0123456789ABCDEF, step=7)


class Refused(Exception):
    """A case whose result is wrong; its times are worth nothing."""


def part(tensor, start):
    return tensor.detach().reshape(-1)[start : start + SLICE].cpu()


def expected(theta, first, terms, dtype=None):
    """theta + sum_k c_k z(key_k) by the oracle, rounded once to ``dtype``, by default theta's. ``theta``: elements first, first + 1, ... on
    the CPU."""
    acc = theta.float().numpy()
    for key, c in terms:
        acc = reference.fma(reference.F32(c), reference.noise(key, first, len(acc)), acc)
    return torch.from_numpy(acc).to(dtype or theta.dtype)


def check(theta, first, terms, call, out=None):
    """Run ``call`` once; it must have added the terms to ``theta``, whose first element has the index ``first``, and written the sum there,
    or to ``out``.

    Raises:
        Refused: it has done something else.
    """
    starts = sorted({max(0, start) for start in (0, theta.numel() // 2 - 7, theta.numel() - SLICE)})
    before = [part(theta, start).clone() for start in starts]
    call()
    for start, old in zip(starts, before):
        new = part(theta if out is None else out, start)
        right = expected(old, first + start, terms, new.dtype)
        if not torch.equal(new, right):
            wrong = int((new != right).sum())
            raise Refused(f"{wrong} of elements {start} to {start + len(old) - 1} differ from the oracle's")


def check_step(params, closure, lr, perturbation="in-place"):
    """An optimizer must bring the weights back after it has measured, and must move them by -lr g z(key) exactly.

    Raises:
        Refused: it does something else.
    """
    params = list(params)

    def made():
        return zokern.MeZO(params, lr=lr, eps=EPS, perturbation=perturbation, rounding="nearest")

    optimizer = made()
    layout = optimizer.layout
    check_returned(layout, lambda: optimizer.estimate(closure))
    for i, g in zip(looked_at(layout), (EPS / lr, -EPS / lr, EPS / lr)):
        estimate = zokern.Estimate([(CHECK, g)])
        # A new one each time: theta that is kept beside the weights begins as what they are.
        check(layout.params[i], layout.first[i], [(CHECK, -lr * g)], partial(made().apply, estimate))


def check_returned(layout, call, moved=lambda: 0.0):
    """After ``call`` the weights must be where they were, but for ``moved()`` times z at most.

    Raises:
        Refused: they are elsewhere.
    """
    before = [layout.params[i].detach().clone() for i in looked_at(layout)]
    call()
    for i, old in zip(looked_at(layout), before):
        theta = layout.params[i].detach()
        # Three moves, each rounded by half a unit in the last place of at most |theta| + 7 eps: no |z| reaches 7.
        bound = 1.5 * torch.finfo(theta.dtype).eps * (old.float().abs() + 7 * EPS) + 7 * moved()
        if not bool(((theta.float() - old.float()).abs() <= bound).all()):
            raise Refused("measuring the losses did not leave the weights as they were")


def looked_at(layout) -> list[int]:
    return sorted({0, len(layout.params) // 2, len(layout.params) - 1})
