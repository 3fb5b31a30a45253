"""What the operations accept, and how they refuse the rest."""

import torch

from ..noise import NoiseKey


def check_terms(name, terms, groups):
    """Refuse terms that are not (NoiseKey, coefficient). -> list of them."""
    terms = list(terms)
    for k, (key, c) in enumerate(terms):
        if not isinstance(key, NoiseKey):
            raise TypeError(f"{name}[{k}] has the key {key!r}: pass a zokern.NoiseKey")
        check_number(f"coefficient of {name}[{k}]", c, groups)
    return terms


def check_number(name, value, groups):
    """Refuse what is no number, 0-dim tensor, or tensor with one value a group. -> value."""
    if isinstance(value, torch.Tensor):
        if value.dim() and value.shape != (groups,):
            raise ValueError(f"{name} has shape {tuple(value.shape)}: pass a number, a 0-dim tensor, or one value per group, [{groups}]")
    elif not isinstance(value, float | int):
        raise TypeError(f"{name} is {value!r}: pass a number, a 0-dim tensor, or one value per group, [{groups}]")
    return value


def check_decay(decay, groups):
    """-> None where nothing is to be multiplied, else decay."""
    return None if isinstance(decay, float | int) and decay == 1 else check_number("decay", decay, groups)
