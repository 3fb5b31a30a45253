"""The optimizers that the contract is held to, each made by one call (params, **settings)."""

import inspect
from functools import partial

import own_optimizer  # noqa: F401  registers an optimizer from outside
import torch

from zokern import FZOO, MEAZO, AdaMeZO, Copied, EvolutionStrategies, MeZO, MeZOSVRG, ZOAdam, ZOConservative, ZOMomentum, ZOSign
from zokern.estimators import Closure, finite_difference
from zokern.optim import optimizers


class SVRG(MeZOSVRG):
    """Where one closure stands for the minibatch and for the full batch."""

    def step(self, closure=None, full_closure=None):
        # Where a MeZOSVRG has been made, torch has put its hooks around that step too.
        return inspect.unwrap(MeZOSVRG.step)(self, closure, full_closure or closure)

    def measure(self, closure, full_closure=None):
        return super().measure(closure, full_closure or closure)

    def estimate(self, closure, full_closure=None):
        return super().estimate(closure, full_closure or closure)


class Replayed(SVRG):
    """Without weight decay, which anchor="replay" refuses."""

    def __init__(self, params, **settings):
        super().__init__(params, **{**settings, "weight_decay": 0.0, "anchor": "replay"})


class Half(Closure):
    """What one of two processes sees of the loss, where the other one sees as much."""

    def __init__(self, closure):
        super().__init__(lambda: closure() / 2)
        self.asked = []

    def combine(self, numbers):
        self.asked.append(len(numbers))
        return [2 * number for number in numbers]


def answered(weights, closure, keys, eps):
    """The estimate that follows when a closure answers what ``finite_difference`` asks for."""
    asking = finite_difference(weights, keys, eps)
    numbers = Closure(closure).answer(next(asking))
    try:
        asking.send(numbers)
    except StopIteration as done:
        return done.value


def block_by_block(params, make=MeZO, **settings):
    """Every trainable parameter a block."""
    params = list(params)
    tensors = [p for entry in params for p in (entry["params"] if isinstance(entry, dict) else [entry])]
    tensors = [t[1] if isinstance(t, tuple) else t for t in tensors]
    return make(params, blocks=[[t] for t in tensors] or None, **settings)


def evolution(params, eps=1e-3, **settings):
    """Whose radius has another name."""
    return EvolutionStrategies(params, sigma=eps, **settings)


def count_of(optimizer):
    """What a loss that is not finite, of several, adds to."""
    return optimizer.dropped if optimizer.drops else optimizer.skipped


OPTIMIZERS = {
    "MeZO": MeZO,
    "MeZO q=2": partial(MeZO, q=2),
    "MeZO one-sided": partial(MeZO, q=2, estimator="one-sided"),
    "MeZO sparse": partial(MeZO, sparsity=0.3),
    "MeZO signs": partial(MeZO, q=2, sparsity=0.3, noise="rademacher"),
    "MeZO blocks": block_by_block,
    "ZOConservative": ZOConservative,
    "ZOSign": ZOSign,
    "ZOSign scalar": partial(ZOSign, form="scalar"),
    "ZOMomentum": ZOMomentum,
    "ZOMomentum bfloat16": partial(ZOMomentum, state_dtype=torch.bfloat16),
    "ZOAdam": ZOAdam,
    "ZOAdam signs": partial(ZOAdam, noise="rademacher"),
    "ZOAdam amsgrad bfloat16": partial(ZOAdam, amsgrad=True, state_dtype=torch.bfloat16),
    "EvolutionStrategies": partial(evolution, population=4),
    "EvolutionStrategies mirrored": partial(evolution, population=4, mirrored=True, shaping="none", sparsity=0.3),
    "EvolutionStrategies rewards": partial(evolution, population=3, shaping="ranks", noise="rademacher", maximize=True),
    "FZOO": partial(FZOO, q=3),
    "MEAZO q=2": partial(MEAZO, q=2),
    "MEAZO blocks": partial(block_by_block, make=MEAZO),
    "AdaMeZO": partial(AdaMeZO, history=2),
    "AdaMeZO q=2": partial(AdaMeZO, history=3, q=2, sparsity=0.3, noise="rademacher"),
    "AdaMeZO copied": partial(AdaMeZO, perturbation="copied"),
    "MeZOSVRG copy": partial(SVRG, anchor="copy"),
    "MeZOSVRG replay": Replayed,
    "MeZOSVRG signs": partial(Replayed, noise="rademacher"),
    # The kinds of perturbation, whatever the dtype. Streamed weights want a model: streamed_cases.py.
    "MeZO in place": partial(MeZO, perturbation="in-place"),
    "MeZO copied": partial(MeZO, perturbation=Copied(), q=2),
    "MeZO copied own": partial(MeZO, perturbation="copied-own", estimator="one-sided"),
    "MeZO copied blocks": partial(block_by_block, perturbation="copied"),
    "ZOAdam in place": partial(ZOAdam, perturbation="in-place"),
    "ZOAdam copied": partial(ZOAdam, perturbation="copied"),
    "MeZOSVRG copy in place": partial(SVRG, anchor="copy", perturbation="in-place"),
    "MeZOSVRG copy copied": partial(SVRG, anchor="copy", perturbation="copied"),
    "MeZOSVRG replay copied": partial(Replayed, perturbation="copied"),
    "MeZOSVRG copy copied own": partial(SVRG, anchor="copy", perturbation="copied-own"),
}
# And all others that are registered and take a closure and parameters.
PLAIN = [cls for cls in optimizers().values() if not (cls.takes_model or cls.full_batch or cls.derivative)]
OPTIMIZERS |= {cls.__name__: cls for cls in PLAIN if cls.__name__ not in OPTIMIZERS}
