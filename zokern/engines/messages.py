"""What travels between a driver and engines: keys and numbers, as JSON has them. float64 survives it bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..errors import BadInput
from ..estimators.perturbation import Pass
from ..noise import SPEC_VERSION, NoiseKey
from ..ops.arguments import Number, Term
from ..version import __version__

Message = list[Any]  # of lists, texts and numbers


class Trained(NamedTuple):
    """A tensor of the Hugging Face checkpoint that is trained: the index of its first element, the share that noise reaches."""

    name: str
    shape: tuple[int, ...]
    first: int
    keep: float

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Plan:
    """What an engine has to know before the first update.

    Attributes:
        tensors: all that are trained, in the order of their indices.
        own_dtype: theta is kept in the dtype of the model's weights. False: in float32.
        run: a name that no other run has, by which an engine that was only out of reach is known again.
        version, noise_spec: of the driver's zokern, which the engine's have to be.
    """

    tensors: tuple[Trained, ...]
    own_dtype: bool = False
    run: str = ""
    version: str = __version__
    noise_spec: int = SPEC_VERSION

    def message(self) -> dict[str, Any]:
        return vars(self) | {"tensors": [list(tensor) for tensor in self.tensors]}

    @classmethod
    def of(cls, message: dict[str, Any]) -> "Plan":
        """
        Raises:
            BadInput: the driver's zokern is another.
        """
        theirs, ours = (message.get("version"), message.get("noise_spec")), (__version__, SPEC_VERSION)
        if theirs != ours:
            said = f"the driver has zokern {theirs[0]} (noise {theirs[1]}), the engine zokern {ours[0]} (noise {ours[1]})"
            raise BadInput(f"{said}: install the same version on both sides")
        tensors = tuple(Trained(name, tuple(shape), first, keep) for name, shape, first, keep in message["tensors"])
        return cls(tensors, message["own_dtype"], message["run"])


@dataclass(frozen=True)
class Updates:
    """Passes over theta, all that there are from number ``first`` on."""

    first: int
    passes: Sequence[Pass]

    def message(self) -> Message:
        return [self.first, [[terms_message(p.terms), number(p.decay), p.rounding and key_message(p.rounding)] for p in self.passes]]

    @classmethod
    def of(cls, message: Message) -> "Updates":
        first, passes = message
        return cls(first, [Pass(terms_of(terms), decay, rounding and key_of(rounding)) for terms, decay, rounding in passes])


def key_message(key: NoiseKey) -> Message:
    return [key.seed, key.step, key.stream]


def key_of(message: Message) -> NoiseKey:
    return NoiseKey(*message)


def terms_message(terms: Sequence[Term]) -> Message:
    return [[*key_message(key), number(c)] for key, c in terms]


def terms_of(message: Message) -> list[Term]:
    return [(key_of(key), c) for *key, c in message]


def number(value: Number) -> float:
    return float(value)


def plain(move: Pass) -> Pass:
    """The same, its coefficients as floats."""
    return Pass([(key, number(c)) for key, c in move.terms], number(move.decay), move.rounding)
