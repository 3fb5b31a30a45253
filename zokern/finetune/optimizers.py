"""From settings to an optimizer: its class, its options, and where the search for lr and eps begins."""

import inspect
from dataclasses import replace

import torch

from ..errors import BadInput, need
from ..layers import layers
from ..optim import optimizers
from . import hybrid
from .settings import CHOICES, OPTIMIZER, Settings, title

CLASSES = {name: cls for name, cls in optimizers().items() if not cls.takes_model}
# For a new head on a model as small as MiniLM: lr is 1e3 times that of a language model. After a probe the loss is steeper, and there
# is less to gain: a step that helps a new head would undo the probe.
NEW_HEAD, PROBED = 3e-2, 2e-3
STEP = {"zo-adam": 0.1, "zo-sign": 0.01, "zo-momentum": 0.1}  # lr in MeZO's, for adapters; of all parameters each class has its own


def with_rates(settings: Settings) -> Settings:
    """The settings with lr, eps, lr_full and fo_lr, where none were given."""
    points = need("zokern.hf").STARTING_POINTS
    method = settings.adapter[0] if settings.adapter[0] in points else "full"
    point = points[method]
    small = settings.task_type == "head" and method in ("lora", "dora", "head")
    lr = (PROBED if settings.head == "probe" else NEW_HEAD) if small else point.lr[1]
    if settings.optimizer == "hybrid":
        times = hybrid.NEW_HEAD if small and settings.head != "probe" else 1 if method == "full" else hybrid.ADAPTED
        settings = replace(settings, fo_lr=settings.fo_lr or times * hybrid.FO_LR[settings.fo])
    if settings.zeroth is None:
        return settings
    cls = CLASSES[settings.zeroth]
    usual = inspect.signature(cls).parameters["lr"].default if method == "full" else lr * STEP.get(settings.zeroth, 1)
    lr = settings.lr or usual
    full = settings.lr_full or (10 * lr if settings.optimizer == "mezo-svrg" else None)
    return replace(settings, lr=lr, eps=settings.eps or (None if settings.zeroth == "forward-gradient" else point.eps), lr_full=full)


def make(settings: Settings, model):
    """-> (class, its settings), of settings that have their rates.

    Raises:
        BadInput: an option that the optimizer does not have, or options that it does not take together.
    """
    made = None if settings.zeroth is None else _zeroth(settings, model)
    first = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if settings.optimizer == "hybrid":
        _layers(model, "--optimizer hybrid", "pass another optimizer")
    try:
        if settings.optimizer == "hybrid":
            made, first = hybrid.make(settings, model, made), model
        cls, options = made
        cls(first, **options)
    except ValueError as error:
        raise BadInput(f"--optimizer {settings.optimizer}: {error}") from None
    return cls, options


def _layers(model, option, cure):
    try:
        return layers(model)
    except ValueError as error:
        reason = str(error).partition(":")[0]
        raise BadInput(f"{option}: {reason}, and no option says which of them are its blocks: {cure}, or use zokern in Python") from None


def _zeroth(settings, model):
    """-> (class, its settings)."""
    cls = CLASSES[settings.zeroth]
    option, known = ("--zo", CHOICES["zo"]) if settings.optimizer == "hybrid" else ("--optimizer", CLASSES)
    takes = inspect.signature(cls).parameters
    given = {name: getattr(settings, name) for name in (*OPTIMIZER, "eps")}
    given = {name: value for name, value in given.items() if value is not None and value is not False and value != ()}
    for name in given:
        if name not in takes:
            having = [other for other, c in CLASSES.items() if other in known and name in inspect.signature(c).parameters]
            cure = ", or pass " + " or ".join(having) if having else ""
            raise BadInput(f"{title(name)} is no option of {option} {settings.zeroth}: leave it out{cure}")
    if "blocks" in given:
        given["blocks"] = _layers(model, "--blocks", "leave it out")
    if "state_dtype" in given:
        given["state_dtype"] = getattr(torch, given["state_dtype"])
    return cls, dict(given, lr=settings.lr, seed=settings.seed)
