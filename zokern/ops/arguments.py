"""What the operations accept, and how they refuse the rest."""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TypeAlias

import torch

from ..kernels.passes import Rule
from ..noise import NoiseKey
from ..noise.spec import ROUNDING, WEIGHTS

Number: TypeAlias = float | torch.Tensor  # a tensor of one value, or of one for each coefficient group
Term: TypeAlias = tuple[NoiseKey, Number]  # c z(key) as (key, c)


def check_terms(name: str, terms: Iterable[Term], groups: int) -> list[Term]:
    """Refuse terms that are not (NoiseKey, coefficient). -> list of them."""
    terms = list(terms)
    for k, (key, c) in enumerate(terms):
        if not isinstance(key, NoiseKey):
            raise TypeError(f"{name}[{k}] has the key {key!r}: pass a zokern.NoiseKey")
        check_number(f"coefficient of {name}[{k}]", c, groups)
    check_kind(name, [key for key, _ in terms])
    return terms


def check_kind(name: str, keys: Sequence[NoiseKey]) -> None:
    """Refuse keys of both kinds of noise: one pass makes one kind."""
    for k, key in enumerate(keys):
        if key.noise != keys[0].noise:
            raise ValueError(
                f"{name}[{k}] has a key of {key.noise} noise, {name}[0] one of {keys[0].noise} noise: pass those of one kind, and the "
                "others in another pass"
            )


def check_number(name: str, value: Number, groups: int) -> Number:
    """Refuse what is no number, 0-dim tensor, or tensor with one value a group. -> value."""
    if isinstance(value, torch.Tensor):
        if value.dim() and value.shape != (groups,):
            raise ValueError(f"{name} has shape {tuple(value.shape)}: pass a number, a 0-dim tensor, or one value per group, [{groups}]")
    elif not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}: pass a number, a 0-dim tensor, or one value per group, [{groups}]")
    return value


def check_numbers(rule: Rule, numbers: Iterable[Number], groups: int) -> list[Number]:
    """Refuse what are not the numbers of a rule. -> list of them."""
    numbers = list(numbers)
    if len(numbers) != len(rule.numbers):
        raise ValueError(f"numbers has {len(numbers)} values: pass the {len(rule.numbers)} of {rule.name!r}: {', '.join(rule.numbers)}")
    for n, value in enumerate(numbers):
        check_number(f"numbers[{n}] ({rule.numbers[n]})", value, groups)
    return numbers


def merged(terms: Iterable[Term]) -> dict[NoiseKey, Number]:
    """One coefficient a key."""
    coefficients: dict[NoiseKey, Number] = {}
    for key, c in terms:
        coefficients[key] = coefficients[key] + c if key in coefficients else c
    return coefficients


def check_decay(decay: Number, groups: int, name: str = "decay") -> Number | None:
    """-> None where nothing is to be multiplied, else decay."""
    return None if isinstance(decay, Real) and decay == 1 else check_number(name, decay, groups)


def check_passes(passes: Iterable[tuple[Iterable[Term], Number]], groups: int) -> list[tuple[list[Term], Number | None]]:
    """Refuse passes that are not (terms, decay). -> list of them."""
    checked = []
    for p, entry in enumerate(passes):
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], Iterable):
            raise TypeError(f"passes[{p}] is {entry!r}: pass (terms, decay), with a sequence of (NoiseKey, coefficient) for terms")
        checked.append((check_terms(f"passes[{p}][0]", entry[0], groups), check_decay(entry[1], groups, f"decay of passes[{p}]")))
    return checked


def rounding_key(rounding: str | NoiseKey, keys: Sequence[NoiseKey]) -> NoiseKey | None:
    """-> by which key weights are rounded: None where it is to nearest. ``keys``: of the terms."""
    if rounding == "nearest":
        return None
    if isinstance(rounding, NoiseKey) and rounding.stream >> 24 == ROUNDING:
        return rounding
    if rounding != "stochastic":
        raise ValueError(
            f"rounding={rounding!r}: pass 'nearest', 'stochastic' or a key, zokern.NoiseKey.of(seed, step, {ROUNDING}, {WEIGHTS})"
        )
    if not keys:
        raise ValueError(f"rounding='stochastic' without a term, whose seed and step say by which bits: pass a key of purpose {ROUNDING}")
    return NoiseKey.of(keys[0].seed, keys[0].step, ROUNDING, WEIGHTS)
