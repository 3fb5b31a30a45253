"""How often a step goes over the weights: docs/optimizers has the same of default settings (test_pages.py)."""

import pytest
import torch

from zokern import AdaMeZO, MeZO, MeZOSVRG, ZOAdam, ZOConservative, ZOMomentum, ZOSign
from zokern.kernels import backend_for

PASSES = {
    "MeZO": (lambda p: MeZO(p), 3),
    "MeZO, weight decay": (lambda p: MeZO(p, weight_decay=0.1), 3),
    "MeZO, q=3": (lambda p: MeZO(p, q=3), 7),
    "MeZO, defer": (lambda p: MeZO(p, defer=True), 2),
    "MeZO, one-sided": (lambda p: MeZO(p, estimator="one-sided"), 2),
    "MeZO, sparse": (lambda p: MeZO(p, sparsity=0.5), 3),
    "MeZO, 2 blocks": (lambda p: MeZO(p, blocks=[[p[0]], [p[1]]]), 2 * 4 - 1),  # each of half the weights
    "ZOSign": (lambda p: ZOSign(p), 3),
    "ZOSign, scalar": (lambda p: ZOSign(p, form="scalar"), 3),
    "ZOMomentum": (lambda p: ZOMomentum(p), 3),
    "ZOAdam": (lambda p: ZOAdam(p, weight_decay=0.1), 3),
    "AdaMeZO": (lambda p: AdaMeZO(p, weight_decay=0.1, history=2), 3),
    "ZOConservative": (lambda p: ZOConservative(p), 6),
    "MeZOSVRG, replay": (lambda p: MeZOSVRG(p, q=100, anchor="replay"), 5),
    "MeZOSVRG, copy": (lambda p: MeZOSVRG(p, q=100, anchor="copy"), 5),
}
# At an anchor the copy is one more.
AT_ANCHORS = {
    "MeZOSVRG, replay": (lambda p: MeZOSVRG(p, q=1, anchor="replay"), 3),
    "MeZOSVRG, copy": (lambda p: MeZOSVRG(p, q=1, anchor="copy"), 4),
}
PASSES |= {f"{name}, anchor": case for name, case in AT_ANCHORS.items()}


@pytest.mark.parametrize("name", PASSES)
def test_passes_of_a_step(name, monkeypatch):
    make, wanted = PASSES[name]
    params = [torch.nn.Parameter(torch.randn(50)), torch.nn.Parameter(torch.randn(40))]
    optimizer, done = make(params), []
    closure = lambda: (params[0] ** 2).sum() + params[1].sum()  # noqa: E731
    full = [closure] if isinstance(optimizer, MeZOSVRG) else []
    for _ in range(2):
        optimizer.step(closure, *full)
    backend = backend_for(torch.device("cpu"))
    for kernel in ("add_noise_", "update_"):
        right = getattr(backend, kernel)
        monkeypatch.setattr(backend, kernel, lambda *a, right=right: done.append(1) or right(*a))
    for _ in range(3):
        done.clear()
        optimizer.step(closure, *full)
        assert len(done) == wanted
