"""Before a run: is the closure what a step needs, is eps where differences say something, is an update more than rounding?"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy
import torch

from ..estimators import Driver, LossClosure, Losses, Point
from ..estimators.forward_ad import Derivatives
from ..estimators.losses import driver_of
from ..noise import NoiseKey
from ..noise.spec import CHECK
from ..ops import make_noise
from .watch import BITS, bits_of
from .watch import warn as say

if TYPE_CHECKING:
    from .base import ZerothOrder

SCALES = (1 / 3, 1.0, 3.0)  # of eps
DIRECTIONS = 3  # at most: one may be nearly across the gradient, and its slope then be small by chance; three hardly are
WOBBLE = 0.05  # of what a step measures: how far the loss may differ from itself
CLEAR = 4  # spacings of the loss: a difference of fewer is wrong by 10 % and more
AGREE, DIFFER = 0.25, 0.5  # relative: slopes at eps and at a neighbour of it do; from here on they do not
LEARNT = 1e-5  # a loss below: of a cross-entropy, rounding of numbers of size 1, from a batch that has nothing more to say
LOST = 0.5  # share of 16-bit weights that an update may leave where they are
SAMPLE = 1 << 17  # elements of a tensor that are looked at


@dataclass(frozen=True)
class Check:
    """What ``optimizer.check(closure)`` found. ``print`` it.

    Attributes:
        losses: of two calls at theta; in units of the loss, as all differences.
        dtype: of the losses that the closure returned, "float32" for one; "number" of a number.
        bits: significant bits that they have: 24 of float32, 8 of bfloat16; fewer where they were rounded before, or are counted.
        difference: what a step measures, L(theta + eps z) - L(theta - eps z), or - L(theta) where the estimator is one-sided: the root mean
            square over directions and blocks. None of ForwardGradient, and where the loss at theta was not finite.
        eps: perturbation radius in units of theta, of the first group; None of ForwardGradient, which has none.
        radius: the name of that setting.
        slopes: one tuple for each direction and block: the central differences at eps / 3, eps and 3 eps, loss per unit of theta; of
            ForwardGradient the derivative alone. Divided by the first group's eps, where groups differ.
        update: size of an element's update, root mean square over elements, in units of theta, at the largest lr that is scheduled.
        lost: the share in [0, 1] of the elements in 16 bits that such an update leaves where they are, by rounding. None: there are none.
        smooth: whether slopes were compared.
    """

    losses: tuple[float, ...]
    dtype: str
    bits: int
    difference: float | None = None
    eps: float | None = None
    radius: str = "eps"
    slopes: list[tuple[float, ...]] = field(default_factory=list)
    update: float = 0.0
    lost: float | None = None
    smooth: bool = True

    @property
    def wobble(self) -> float:
        """How far the losses at theta are apart."""
        return max(self.losses) - min(self.losses)

    @property
    def rounding(self) -> float:
        """The spacing of numbers of so many bits at the losses: less is no difference."""
        size = max(map(abs, self.losses))
        return 2.0 ** (math.frexp(size)[1] - self.bits) if 0 < size < math.inf else 0.0

    @property
    def problems(self) -> list[str]:
        """Sentences, each with a cause and its cure. Empty where all is well."""
        if not _finite(self.losses):
            shown = " and ".join(f"{loss:g}" for loss in self.losses)
            return [f"the loss at theta is {shown}: a step whose loss is not finite moves nothing; look at the weights and the batch"]
        found = []
        if self.wobble > max(WOBBLE * (self.difference or 0.0), CLEAR * self.rounding if self.smooth else 0.0):  # not where it is NaN
            one, other = (f"{loss:.9g}" for loss in self.losses)
            measures = f" where a step measures {self.difference:.2g}" if self.difference is not None else ""
            found.append(
                f"the closure gave {one} and {other} at the same weights, which is {self.wobble:.2g} apart{measures}: call model.eval(), "
                "so that there is no dropout, and let all calls of a step see one batch"
            )
        elif self.smooth and self.difference is not None and max(map(abs, self.losses)) >= LEARNT:
            found += self._of_differences(self.difference)
        if self.lost is not None and self.lost > LOST:
            found.append(
                f"an update of {self.update:.2g} an element leaves {self.lost:.0%} of the weights in 16 bits where they are, since it is "
                'below half their spacing: pass rounding="stochastic", perturbation=zokern.Copied(), which keeps theta in float32, or a '
                "larger lr"
            )
        return found

    def _of_differences(self, difference: float) -> list[str]:
        """What is wrong with the differences that a step measures: one sentence at most."""
        name = self.radius
        spaced = f"a step measures a difference of {difference:.2g}, and losses of {self.bits} bits are {self.rounding:.2g} apart"
        if difference == 0 or difference < CLEAR * self.rounding:
            if self.dtype in ("bfloat16", "float16"):
                return [f"{spaced}: compute the loss in float32, as in cross_entropy(logits.float(), labels), not in {self.dtype}"]
            if difference == 0:
                return [
                    f"the loss is the same, bit for bit, at theta + {name} z and theta - {name} z with {name}={self.eps:g}: it does not "
                    "depend on the parameters given, was rounded to 16 bits on its way, or is counted, as an accuracy is; pass the "
                    f"parameters that the closure reads, compute the loss in float32, or pass a larger {name}"
                ]
            if self.bits <= BITS[torch.float16]:
                return [
                    f"{spaced}: they were rounded to 16 bits on their way, or are counted; compute them in float32, or pass smooth=False"
                ]
            return [f"{spaced}, so that it is mostly rounding: pass a larger {name}, or compute the loss in float64"]
        below, here, above = zip(*self.slopes)
        if not _finite([*below, *here]):
            return [f"the loss at theta + {name} z is not finite, where it is finite at theta: pass a smaller {name} than {self.eps:g}"]
        down, up = self._apart
        if min(down, up) <= DIFFER:
            return []
        rms = ", ".join(f"{_rms(slopes):.3g} at {name}" for name, slopes in zip(self._scales, (below, here, above)))
        return [
            f"slopes along the same noise do not agree about {name}={self.eps:g} ({rms}; {down:.0%} and {up:.0%} apart): a step "
            f"follows something else than the gradient; pass a smaller {name} or, where the model computes in 16 bits, a larger one"
        ]

    @property
    def _clear(self) -> bool:
        """Whether more directions would say the same. It follows from losses that all processes agree on, so that all go on or none."""
        if not self.smooth or self.difference is None:
            return True
        return self.wobble <= WOBBLE * self.difference and max(self._apart) <= AGREE

    @property
    def _scales(self) -> tuple[str, str, str]:
        return f"{self.radius} / 3", self.radius, f"3 {self.radius}"

    @property
    def _apart(self) -> tuple[float, float]:
        """How far the slopes at eps are from those at eps / 3 and at 3 eps, relative to the larger; NaN where there is no number."""
        below, here, above = zip(*self.slopes)
        down, up = (_rms([a - b for a, b in zip(here, other)]) / (max(_rms(here), _rms(other)) or math.nan) for other in (below, above))
        return down, up

    def __str__(self) -> str:
        same = "the same bits" if self.wobble == 0 else f"{self.wobble:.2g} apart"
        lines = [f"loss        {self.losses[0]:.9g}, and again: {same}; {self.dtype} of {self.bits} bits, spaced {self.rounding:.2g}"]
        if self.difference is not None:
            lines.append(f"difference  {self.difference:.3g} in a step")
        for slopes in self.slopes[:DIRECTIONS]:
            if len(slopes) == 1:
                lines.append(f"slope       {slopes[-1]:.6g}")
            else:
                below, here, above = slopes
                less, same, more = self._scales
                lines.append(f"slope       {here:.6g} at {same} = {self.eps:g}; {below:.6g} at {less}, {above:.6g} at {more}")
        if self.slopes:
            lost = "" if self.lost is None else f", lost to rounding in {self.lost:.0%} of the weights in 16 bits"
            lines.append(f"update      {self.update:.2g} an element{lost}")
        return "\n".join([*lines, *(f"problem     {problem}" for problem in self.problems or ["none"])])


def check(optimizer: "ZerothOrder", closure: LossClosure | Driver, smooth: bool = True, warn: bool = False) -> Check:
    """See ``ZerothOrder.check``."""
    with torch.no_grad(), _undisturbed(optimizer) as theta:
        given: list[Any] = []  # losses as the closure returned them
        driver = driver_of(closure, given.append)
        (driver if driver.compares else optimizer._replicas).begin(optimizer)
        losses = tuple(map(float, driver.answer(Losses(optimizer.weights, [Point([])] * 2))))
        dtype = str(given[0].dtype).removeprefix("torch.") if isinstance(given[0], torch.Tensor) else "number"
        group, differences, moves = optimizer.param_groups[0], [], []
        radius = optimizer.radius
        eps = float(group[radius]) if radius in group else None
        found = Check(losses, dtype, _bits(given), eps=eps, radius=radius, smooth=smooth)
        for direction in range(DIRECTIONS if _finite(losses) else 0):
            key = NoiseKey.of(group["seed"], group["step"], CHECK, direction)
            if eps is None:
                params = [p for group in optimizer.param_groups for p in group["params"]]
                slopes: list[tuple[float, ...]] = [(float(driver.answer(Derivatives(optimizer.weights, params, [key]))[1]),)]
            else:
                slopes, measured = _slopes(optimizer, driver, key, eps, SCALES if smooth else (1.0,), losses[0])
                differences += measured
            moves.append(_moved(optimizer, theta, key, [slope[len(slope) // 2] for slope in slopes]))
            updates, lost = zip(*moves)
            found = replace(
                found,
                bits=_bits(given),
                difference=_rms(differences) if differences else None,
                slopes=[*found.slopes, *slopes],
                update=_rms(updates),
                lost=None if None in lost else sum(lost) / len(lost),
            )
            if found._clear:
                break
    if warn:
        for problem in found.problems:
            say(f"{type(optimizer).__name__}: {problem}")
    return found


def _slopes(
    optimizer: "ZerothOrder", driver: Driver, key: NoiseKey, eps: float, scales: Sequence[float], base: float
) -> tuple[list[tuple[float, ...]], list[float]]:
    """-> (for each block the slopes along z(key), one a scale of eps; for each block the difference that a step would measure)."""
    weights, radius = optimizer.weights, optimizer._setting(optimizer.radius)
    parts = range(len(weights.parts))
    points = [Point([(key, side * scale * radius)], part) for part in parts for scale in scales for side in (1, -1)]
    losses = iter(map(float, driver.answer(Losses(weights, points))))
    one_sided = optimizer.param_groups[0].get("estimator") == "one-sided"
    pairs = [{scale: (next(losses), next(losses)) for scale in scales} for _ in parts]
    slopes = [tuple((plus - minus) / (2 * scale * eps) for scale, (plus, minus) in of.items()) for of in pairs]
    return slopes, [of[1.0][0] - (base if one_sided else of[1.0][1]) for of in pairs]


def _moved(optimizer: "ZerothOrder", theta: list[list[torch.Tensor]], key: NoiseKey, slopes: Sequence[float]) -> tuple[float, float | None]:
    """-> (an element's update along z(key), root mean square; of what this process holds, the share of elements in 16 bits that it leaves
    where they are, or None)."""
    eps, rounded = optimizer.param_groups[0].get(optimizer.radius), optimizer.param_groups[0].get("rounding") != "stochastic"
    slope_of = dict(zip(optimizer.layout.blocks, slopes))
    squares = moving = still = sixteen = 0.0
    for part, i, p in [(part, i, p) for part, held in zip(optimizer.weights.parts, theta) for i, p in enumerate(held)]:
        group = optimizer.param_groups[part.coefficient_groups[part.group[i]][0]]
        slope = slope_of[part.block[i]]
        size = optimizer.update_size(group, slope if eps is None else slope * float(eps) / float(group[optimizer.radius]))
        count = part.params[i].numel() * part.keep[i]
        squares, moving = squares + count * size**2, moving + count
        if rounded and p.element_size() == 2 and p.numel() and size and math.isfinite(size):
            seen = p.detach().reshape(-1)[: min(SAMPLE, part.held[i].columns)]  # whose indices follow each other
            moved = (seen.float() + size * make_noise(key, part.held[i].first, seen.numel())).to(p.dtype)
            still, sixteen = still + count * float((moved == seen).double().mean()), sixteen + count
    return math.sqrt(squares / moving), still / sixteen if sixteen else None


def _bits(given: list[Any]) -> int:
    """The fewest, of a format, that hold every loss that was given."""
    most = max(map(bits_of, given))
    mantissas = [math.frexp(loss)[0] for loss in given if math.isfinite(loss)]
    return next(bits for bits in sorted(BITS.values()) if bits >= most or all((x * 2**bits).is_integer() for x in mantissas))


def _finite(numbers: Iterable[float]) -> bool:
    return all(map(math.isfinite, numbers))


def _rms(numbers: Sequence[float]) -> float:
    return math.sqrt(sum(x * x for x in numbers) / len(numbers))


@contextmanager
def _undisturbed(optimizer: "ZerothOrder") -> Iterator[list[list[torch.Tensor]]]:
    """-> theta, part by part. Afterwards weights, pending terms, counts and random states are as before, bit for bit."""
    optimizer._check_unchanged()
    params = optimizer.layout.tensors
    python, arrays = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(sorted({p.device.index for p in params if p.is_cuda})), optimizer.weights.undisturbed() as theta:
            yield theta
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        optimizer._versions = [p._version for p in params]
