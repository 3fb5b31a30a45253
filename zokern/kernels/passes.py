"""What kernels are told of passes in numbers: csrc/noise/passes.hpp and rules.hpp have them too."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TypeAlias

import torch

from ..noise import NoiseKey

Keys: TypeAlias = Sequence[NoiseKey]

INTERFACE = 5  # of compiled code: raised when what it is handed changes its form
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# A run of passes is a list of instructions, each with a value v for every group. What one does is any of these, in this order:
NEXT_KEY = 1  # z is made of the next key; without it, z stays as it is
DECAY = 2  # x = v x; without it, x = fma(v, z, x)
ROUND = 4  # x is rounded to the storage type: a pass ends


def check_interface(module: ModuleType) -> None:
    """
    Raises:
        ImportError: compiled code of other sources, which would misread what it is handed.
    """
    if getattr(module, "interface", 1) != INTERFACE:
        raise ImportError(f"{module.__name__} was compiled from other sources than these")


def words(keys: Keys) -> list[tuple[int, int, int]]:
    """Keys as compiled code takes them."""
    return [(key.seed, key.step, key.stream) for key in keys]


def signs(keys: Keys) -> bool:
    """Whether the noise of a pass, all of one kind, is signs."""
    return bool(keys) and keys[0].noise == "rademacher"


@dataclass(frozen=True)
class Rule:
    """A rule by its name, the small integer by which kernels know it, and what it calls its numbers and its states. ``of_key``: how many
    numbers a key has beside that in theta: its coefficient in g, and where there are more, those by which g goes into other sums."""

    name: str
    code: int
    numbers: tuple[str, ...]
    state: tuple[str, ...]
    of_key: int = 1


_ADAM = ("-lr / bc1", "b1", "1 - b1", "b2", "1 - b2", "1 / sqrt(bc2)", "delta")
RULES = {
    rule.name: rule
    for rule in (
        Rule("sign", 0, ("-lr",), ()),
        Rule("momentum", 1, ("-lr", "beta"), ("m",)),
        Rule("adam", 2, _ADAM, ("m", "v")),
        Rule("amsgrad", 3, _ADAM, ("m", "v", "w")),
    )
}
# Adam without state: m and v are summed of the g of several steps, whose keys follow each other. A key has its coefficient in g; what it
# keeps of g so far, 0 where a step begins; the weights of g in m and of g^2 in v, 0 where a step does not end.
WINDOWED_ADAM = Rule("windowed-adam", 4, ("-lr / bc1", "1 / sqrt(bc2)", "delta"), (), 4)
