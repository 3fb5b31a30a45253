"""From settings to an optimizer: its class, its arguments, and where the search for lr and eps begins."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..errors import BadInput, need
from ..estimators import Layers, Streamed, layers, perturbation_of
from ..optim import ClosureOptimizer, named, splits
from .options import title
from .settings import FIRST_ORDER, FO, Settings

FO_ADAPTED, FO_NEW_HEAD = 10, 100  # times --fo's own lr, for adapters, and with a new head on a model as small as MiniLM (found there)
# For a new head on a model as small as MiniLM: lr is 1e3 times that of a language model. After a probe the loss is steeper, and there
# is less to gain: a step that helps a new head would undo the probe.
NEW_HEAD, PROBED = 3e-2, 2e-3


def with_rates(settings: Settings) -> Settings:
    """The settings with lr, eps, fo_lr and other learning rates of the optimizer, where none were given."""
    points = need("zokern.hf").STARTING_POINTS
    method = settings.adapter[0] if settings.adapter[0] in points else "full"
    small = settings.task_type == "head" and method in ("lora", "dora", "head")
    if settings.halves and settings.fo:
        times = FO_NEW_HEAD if small and settings.head != "probe" else 1 if method == "full" else FO_ADAPTED
        settings = replace(settings, fo_lr=settings.fo_lr or times * FIRST_ORDER[settings.fo][1])
    cls = settings.zeroth_class
    if cls is None:
        return settings
    usual = (PROBED if settings.head == "probe" else NEW_HEAD) if small else None
    rates = starting_rates(cls, method, {"lr": settings.lr, "eps": settings.eps} | settings.optimizer_settings, usual)
    own = {name: rates.pop(name, None) for name in ("lr", "eps")}
    return replace(settings, **own, optimizer_settings=rates | settings.optimizer_settings)


def starting_rates(cls: type[ClosureOptimizer], method: str, given: dict[str, Any], usual: float | None = None) -> dict[str, Any]:
    """lr, the perturbation radius and other learning rates by name: those given, else where a search for them begins.

    Args:
        method: a name of ``zokern.hf.STARTING_POINTS``.
        usual: lr that suits MeZO. Default None: the method's.
    """
    takes, point = cls.declared(), need("zokern.hf").STARTING_POINTS[method]
    radius = (given.get(cls.radius) or point.eps) if cls.radius in takes else None
    own = takes["lr"].default if method == "full" else None  # of all parameters each optimizer has its own
    if radius is not None and cls.lr_of_radius is not None:
        own = radius * cls.lr_of_radius
    lr = given.get("lr") or own or (usual or point.lr[1]) * cls.lr_scale
    rates = {name: setting.times_lr * lr for name, setting in takes.items() if setting.times_lr}
    return {"lr": lr} | ({cls.radius: radius} if radius is not None else {}) | rates


def make(
    settings: Settings, model: torch.nn.Module, streamed: Streamed | None = None
) -> tuple[type[ClosureOptimizer], dict[str, Any]]:  # fmt: skip
    """-> (class, its arguments), of settings that have their rates. ``streamed``: the model, where its weights lie elsewhere."""
    cls, zeroth = named(settings.optimizer), settings.zeroth_class
    takes = cls.declared() | (zeroth.declared() if zeroth else {})
    rates = {name: getattr(settings, name) for name in ("lr", "eps", "seed") if zeroth and name in takes}
    given: dict[str, Any] = settings.optimizer_settings | {name: value for name, value in rates.items() if value is not None}
    given |= {name: getattr(torch, value) for name, value in given.items() if name in takes and takes[name].kind is torch.dtype}
    if zeroth and "perturbation" in takes:
        kind = streamed or perturbation_of(model, given.get("perturbation"), zeroth.derivative is None)
        cuts = (settings.split or "").startswith("intra")  # parameters, which are then none of the model's
        given["perturbation"] = "copied" if cuts and isinstance(kind, Streamed) else kind
    if "blocks" in given:
        given["blocks"] = layers_of(model, "--blocks", "leave it out")
    try:
        options = _halves(settings, model, given) if cls.divides else given
        trained: Any = model if cls.takes_model else [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        cls(trained, **options)
    except BadInput:
        raise
    except ValueError as error:
        asked = ((f'{name}="{value}": ', f"{title(name)} {value}: ") for name, value in settings.optimizer_settings.items())
        told = next((option + str(error).removeprefix(text) for text, option in asked if str(error).startswith(text)), None)
        raise BadInput(told or f"--optimizer {settings.optimizer}: {error}") from None
    return cls, options


def _halves(settings: Settings, model: torch.nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """What makes an optimizer of two: which parameters are in which half, and what moves each."""
    blocks = layers_of(model, f"--optimizer {settings.optimizer}", "pass another optimizer").params
    cls, zeroth = named(settings.optimizer), settings.zeroth_class
    own = {name: value for name, value in given.items() if name in cls.declared()}
    fo = partial(FIRST_ORDER[settings.fo or FO][0], lr=settings.fo_lr, weight_decay=given.get("weight_decay", 0.0))
    zo = zeroth and partial(zeroth, **{name: value for name, value in given.items() if name not in own})
    return dict(zo=zo, fo=fo, split=split_of(settings.split or f"depth:{len(blocks) // 2}", settings.seed), **own)


def split_of(text: str, seed: int) -> splits.Depth | splits.Inter | splits.LISA:
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


def layers_of(model: torch.nn.Module, option: str, cure: str) -> Layers:
    try:
        return layers(model)
    except ValueError as error:
        reason = str(error).partition(":")[0]
        raise BadInput(f"{option}: {reason}, and no option says which of them are its blocks: {cure}, or use zokern in Python") from None
