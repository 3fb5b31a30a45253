"""From settings to an optimizer: its class, its arguments, and where the search for lr and eps begins."""

from dataclasses import replace
from functools import partial

import torch

from ..errors import BadInput, need
from ..estimators import layers
from ..optim import named, splits
from .settings import Settings

FIRST = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
FO_LR = {"adamw": 1e-5, "sgd": 2e-5}  # LoHO's, on RoBERTa-large
FO_ADAPTED, FO_NEW_HEAD = 10, 100  # so many times that for adapters, and with a new head on a model as small as MiniLM, where it was found
# For a new head on a model as small as MiniLM: lr is 1e3 times that of a language model. After a probe the loss is steeper, and there
# is less to gain: a step that helps a new head would undo the probe.
NEW_HEAD, PROBED = 3e-2, 2e-3
ANCHORS = 10  # lr_full over lr


def with_rates(settings: Settings) -> Settings:
    """The settings with lr, eps, lr_full and fo_lr, where none were given."""
    points = need("zokern.hf").STARTING_POINTS
    method = settings.adapter[0] if settings.adapter[0] in points else "full"
    small = settings.task_type == "head" and method in ("lora", "dora", "head")
    if settings.halves:
        times = FO_NEW_HEAD if small and settings.head != "probe" else 1 if method == "full" else FO_ADAPTED
        settings = replace(settings, fo_lr=settings.fo_lr or times * FO_LR[settings.fo])
    if settings.zeroth is None:
        return settings
    cls, takes = settings.zeroth_class, settings.zeroth_class.declared()
    usual = (PROBED if settings.head == "probe" else NEW_HEAD) if small else points[method].lr[1]
    own = takes["lr"].default if method == "full" else None  # of all parameters each optimizer has its own
    lr = settings.lr or own or usual * cls.lr_scale
    full = {"lr_full": ANCHORS * lr} if "lr_full" in takes else {}
    eps = settings.eps or (points[method].eps if "eps" in takes else None)
    return replace(settings, lr=lr, eps=eps, optimizer_settings=full | settings.optimizer_settings)


def make(settings: Settings, model) -> tuple[type, dict]:
    """-> (class, its arguments), of settings that have their rates.

    Raises:
        BadInput: what the optimizer does not take, of this model or together.
    """
    cls, given = named(settings.optimizer), dict(settings.optimizer_settings)
    if "blocks" in given:
        given["blocks"] = _layers(model, "--blocks", "leave it out")
    if "state_dtype" in given:
        given["state_dtype"] = getattr(torch, given["state_dtype"])
    zeroth = settings.zeroth_class
    if zeroth is not None:
        rates = {name: getattr(settings, name) for name in ("lr", "eps", "seed")}
        given |= {name: value for name, value in rates.items() if value is not None and name in zeroth.declared()}
    try:
        options = _halves(settings, model, zeroth, given) if settings.halves else given
        cls(model if cls.takes_model else [(name, p) for name, p in model.named_parameters() if p.requires_grad], **options)
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"--optimizer {settings.optimizer}: {error}") from None
    return cls, options


def _halves(settings, model, zeroth, given):
    """What makes an optimizer of two: which parameters are in which half, and what moves each."""
    blocks = _layers(model, f"--optimizer {settings.optimizer}", "pass another optimizer").params
    own = named(settings.optimizer).declared()
    fo = partial(FIRST[settings.fo], lr=settings.fo_lr, weight_decay=given.get("weight_decay", 0.0))
    zo = zeroth and partial(zeroth, **{name: value for name, value in given.items() if name not in own})
    split = split_of(settings.split or f"depth:{len(blocks) // 2}", settings.seed)
    return dict(zo=zo, fo=fo, split=split, **{name: value for name, value in given.items() if name in own})


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


def _layers(model, option, cure):
    try:
        return layers(model)
    except ValueError as error:
        reason = str(error).partition(":")[0]
        raise BadInput(f"{option}: {reason}, and no option says which of them are its blocks: {cure}, or use zokern in Python") from None
