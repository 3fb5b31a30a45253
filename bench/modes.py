"""MeZO by where its perturbed weights are and how its updates are rounded: the candidates of several suites."""

import torch

import zokern

OURS, STREAMED, COPIED, OWN = "zokern.MeZO", "zokern.MeZO, streamed", "zokern.MeZO, copied", "zokern.MeZO, copied own"
# "zokern.MeZO" perturbs in place; "copied own" keeps the copy in the weights' dtype, which in float32 "copied" does.
MODES = {
    OURS: lambda model: "in-place",
    STREAMED: zokern.Streamed,
    COPIED: lambda model: zokern.Copied(),
    OWN: lambda model: zokern.Copied(dtype=None),
}


def of(dtype) -> list[str]:
    """The modes that differ for weights of a dtype."""
    return [name for name in MODES if name != OWN or dtype != "fp32"]


def mezo(mode, model, lr, eps, **settings):
    """The optimizer of a model's parameters."""
    return zokern.MeZO(model.parameters(), lr=lr, eps=eps, perturbation=MODES[mode](model), **settings)


def theta(optimizer) -> list[torch.Tensor]:
    """What the optimizer moves: the model's parameters, or their copies."""
    return [optimizer.state.get(p, {}).get("theta", p).detach() for p in optimizer.layout.params]
