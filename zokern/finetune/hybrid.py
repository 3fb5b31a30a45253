"""From settings to a Hybrid: who is in which half, and what moves it."""

from functools import partial

import torch

from ..estimators import layers
from ..optim import Hybrid, splits
from .settings import Settings

FIRST = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
FO_LR = {"adamw": 1e-5, "sgd": 2e-5}  # LoHO's, on RoBERTa-large
# So many times that for adapters, and with a new head on a model as small as MiniLM, where it was found.
ADAPTED, NEW_HEAD = 10, 100


def make(settings: Settings, model, zo):
    """-> (Hybrid, its settings).

    Args:
        settings: with their rates.
        zo: (class, its settings) of the zeroth-order half; None: it is frozen.
    Raises:
        ValueError: the model's blocks are not found.
    """
    cls, options = zo or (None, {})
    fo = partial(FIRST[settings.fo], lr=settings.fo_lr, weight_decay=settings.weight_decay or 0.0)
    split = split_of(settings.split or f"depth:{len(layers(model).params) // 2}", settings.seed)
    return Hybrid, dict(zo=cls and partial(cls, **options), fo=fo, split=split, share_forward=settings.share_forward)


def split_of(text: str, seed: int):
    """The split that a text of the form ``settings.SPLIT`` names; ``seed`` is of LISA's draws.

    Raises:
        ValueError: a number that no model allows.
    """
    kind, *numbers = text.split(":")
    if kind == "depth":
        return splits.Depth(int(numbers[0]))
    if kind == "lisa":
        return splits.LISA(int(numbers[0]), int(numbers[1]), seed)
    blocks = tuple(map(int, numbers[0].strip("+").split("+"))) if "+" in numbers[0] else int(numbers[0])
    return splits.Inter(blocks) if kind == "inter" else splits.Intra(blocks, *map(float, numbers[1:]))
