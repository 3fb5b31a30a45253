"""Evolution strategies: a population of perturbed models, and one pass along the better ones."""

import math
from collections.abc import Iterable, Sequence

import torch

from ..estimators import SHAPINGS, Estimator, population
from ..estimators.estimate import LARGEST
from .base import ZerothOrder
from .contract import register
from .settings import POSITIVE, Number, ParamsT, Perturbation, Setting, Settings, choice, flag


class Population(ZerothOrder):
    """What optimizers share whose members are dropped, with a count, where their loss is not finite.

    A step moves nothing, and counts in ``skipped``, where fewer than two members are left.
    """

    drops = True

    @property
    def dropped(self) -> int:
        """Members so far whose loss was not finite. Reading it waits for the device."""
        return int(self.param_groups[0]["dropped"])

    @classmethod
    def skipped_in(cls, steps: Iterable[Sequence[float]], settings: Settings) -> int:
        members = cls.members_in(settings)
        return sum(sum(abs(x) < LARGEST for x in step[members]) < 2 for step in steps)

    @classmethod
    def dropped_in(cls, steps: Iterable[Sequence[float]], settings: Settings) -> int:
        members = cls.members_in(settings)
        return sum(not abs(x) < LARGEST for step in steps for x in step[members])

    def losses_by_name(self) -> dict[str, torch.Tensor]:
        """Of the newest step, 0-dim tensors: "loss_best" and "loss_worst" of the members; with maximize=True "reward_best" and so on."""
        group = self.param_groups[0]
        losses = torch.stack(self.measurements[self.members_in(group)])
        finite, sign = torch.isfinite(losses), -1 if group["maximize"] else 1
        best, worst = (s * torch.where(finite, s * losses, torch.inf).min() for s in (sign, -sign))
        name = "reward" if group["maximize"] else "loss"
        return {f"{name}_best": best, f"{name}_worst": worst}


@register
class EvolutionStrategies(Population):
    """Evolution strategies: a step is one pass of the weights along N perturbations, each weighted by what it brought.

        R_n = reward at theta + sigma z_n,  s_n = the shaped R_n
        theta <- (1 - lr weight_decay) theta + (lr / N) sum_n s_n z_n

    Member n of step t has the noise of the key (seed, t, probe n); where they are mirrored, members 2n and 2n + 1 are theta + sigma z_n and
    theta - sigma z_n. Keys and coefficients are all that is kept: no state, and an update of any number of members reads and writes the
    weights once. Members whose number is not finite are left out of mean, spread, ranks and N, and counted in ``dropped``.

    Args:
        params: parameters, named parameters, or groups of them with their own lr, sigma, weight_decay.
        lr: the method's alpha: step in theta per unit of the shaped mean. Not divided by sigma. Default 5e-4, half of sigma.
        sigma: perturbation radius, in units of theta. Default 1e-3.
        population: N, members a step, >= 2; a step costs as many forward passes, or generations. Default 30.
        mirrored: pairs +z and -z share a direction, whose rewards are compared; N is then even. Default False.
        shaping: what s_n is. "z-score": (R_n - mean) / (std + 1e-8), of the population; "ranks": the centred rank, -1/2 to 1/2, which no
            outlier moves; "none": R_n - mean. Equal rewards move nothing. Default "z-score".
        maximize: True: the closure returns a reward. Default False: a loss, along which the step goes down.

    All other arguments are those of ``MeZO``.

    Raises:
        ValueError: population < 2, or odd where it is mirrored; a setting out of its range.

    Reference:
        Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", Algorithm 1; Qiu et al. 2025,
        "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning", Algorithm 2, whose settings the defaults are.
    """

    name = "es"
    radius = "sigma"
    lr_of_radius = 0.5
    settings = {
        "sigma": Setting(float, *POSITIVE, "Perturbation radius, in units of theta."),
        "population": Setting(int, "an integer >= 2, < 2**24", lambda x: 2 <= x < 1 << 24, "Members a step.", shared=True),
        "mirrored": flag("Members are pairs, at theta + sigma z and at theta - sigma z."),
        "shaping": choice("What a member weighs: its z-score, its rank, or its distance from the mean.", *SHAPINGS),
    }

    def __init__(
        self, params: ParamsT, lr: Number = 5e-4, sigma: Number = 1e-3, population: int = 30, mirrored: bool = False,
        shaping: str = "z-score", maximize: bool = False, weight_decay: Number = 0.0, seed: int = 0,
        sparsity: float | None = None, noise: str = "gaussian",
        perturbation: Perturbation = None, rounding: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {**self.given(locals()), "dropped": 0}, sparsity=sparsity)

    @classmethod
    def measurements_in(cls, settings: Settings, blocks: int = 1) -> int:
        return int(settings["population"])

    def update_size(self, group: Settings, slope: float) -> float:
        shaped = {"z-score": 1.0, "ranks": 12**-0.5, "none": float(group["sigma"]) * abs(slope)}[group["shaping"]]
        return self._largest_lr(group) * shaped / math.sqrt(group["population"])

    @classmethod
    def check_together(cls, settings: Settings) -> None:
        if settings["mirrored"] and settings["population"] % 2:
            raise ValueError(f"population={settings['population']} with mirrored=True, whose members are pairs: pass an even number")

    def _estimate(self) -> Estimator:
        self.check_together(group := self.param_groups[0])
        pairs = group["population"] // (2 if group["mirrored"] else 1)
        keys = [self._key(probe) for probe in range(pairs)]
        return population(self.weights, keys, self._setting("sigma"), group["mirrored"], group["shaping"])
