"""NoiseKey: which noise, of all the noise there is."""

from dataclasses import dataclass
from operator import index

from .spec import ANCHOR_SIGNS, SIGNS


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Names one noise vector: the same key gives the same bits on every device, for ever (docs/noise_spec.md).

    Args:
        seed: of the run; an integer in [0, 2**64).
        step: of the optimizer; an integer in [0, 2**32). Default 0.
        stream: purpose << 24 | probe, an integer in [0, 2**32); ``NoiseKey.of`` puts it together. Default 0.

    Raises:
        ValueError: a value outside its range.
        TypeError: a value that is no integer.
    """

    seed: int
    step: int = 0
    stream: int = 0

    def __post_init__(self) -> None:
        for name, bits in (("seed", 64), ("step", 32), ("stream", 32)):
            value = getattr(self, name)
            try:
                value = index(value)
            except TypeError:
                raise TypeError(f"{name}={value!r} is no integer: pass an int in [0, 2**{bits})") from None
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{name}={value} is outside [0, 2**{bits}): take it modulo 2**{bits}")
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, seed: int, step: int, purpose: int = 0, probe: int = 0) -> "NoiseKey":
        """The key of one direction of one step, for one purpose.

        Args:
            seed: of the run; an integer in [0, 2**64).
            step: of the optimizer; an integer in [0, 2**32).
            purpose: what the noise is for, in [0, 256), a constant of ``noise.spec``. Default 0: normals that perturb theta.
            probe: number of the direction, in [0, 2**24). Default 0.

        Raises:
            ValueError: a value outside its range.
            TypeError: a value that is no integer.
        """
        if not (0 <= probe < 1 << 24 and 0 <= purpose < 1 << 8):
            raise ValueError(f"purpose={purpose}, probe={probe}: pass a purpose in [0, 256) and a probe in [0, 2**24)")
        return cls(seed, step, purpose << 24 | probe)

    @property
    def noise(self) -> str:
        """The kind of its noise: "rademacher" (signs) or "gaussian" (normals)."""
        return "rademacher" if self.stream >> 24 in (SIGNS, ANCHOR_SIGNS) else "gaussian"

    def to(self, purpose: int) -> "NoiseKey":
        """The key of the same seed, step and probe for another ``purpose``."""
        return self.of(self.seed, self.step, purpose, self.stream & 0xFFFFFF)
