"""The backends, by name: what each can do here, or why it is missing and what to do about it.

A backend is a module with ``status() -> str`` ("available..." or the reason and the cure), ``devices()`` (the kinds of device
whose memory it can reach), ``add_noise_(table, keys, coefficients, decay)``, ``replay_(table, keys, instructions, values)``:
uint8 [n] on the host, of the bits of ``passes``, with their values [n, groups], and the keys in the order in which they are used; and
``update_(table, rule, keys, a, b, decay, numbers, state, rounding)``: keys with their coefficients [keys, groups] in theta and in g, a
rule of ``ops.update`` with its numbers [count, groups] and ``State``, and one key a state to round it with, or None. All numbers are
float32 on the table's device; decay is [groups] or None. None is loaded before it is asked for.
"""

import logging
import os
from contextlib import contextmanager
from functools import cache
from importlib import import_module

NAMES = ("reference", "cpu", "cuda", "triton")
# What runs where nothing is forced, best first. (Triton's interpreter reaches CPU memory too, but nobody wants it by surprise.)
PREFERRED = {"cuda": ("cuda", "triton"), "cpu": ("cpu", "reference")}

_forced = None
_log = logging.getLogger("zokern")


def backends() -> dict[str, str]:
    """Every backend's name -> "available", with details, or the reason why it is missing and the cure."""
    return {name: _module(name).status() for name in NAMES}


@contextmanager
def use_backend(name: str):
    """Run everything inside on one backend. ``ZOKERN_BACKEND=name`` does the same for a whole process.

    Raises:
        ValueError: no such backend. RuntimeError: it is missing here; the message says why and what to do.
    """
    global _forced
    _available(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def backend_for(device):
    """The module that works on tensors of this device."""
    name = _forced or os.environ.get("ZOKERN_BACKEND")
    if not name:
        return _default(device.type)
    module = _available(name)
    if device.type not in module.devices():
        raise RuntimeError(
            f"backend {name!r} cannot reach parameters on {device}: move them to {' or '.join(module.devices())}, or do not force a backend"
        )
    return module


@cache
def _default(kind):
    for name in PREFERRED.get(kind, ()):
        module = _module(name)
        if module.status().startswith("available"):
            if name == "reference":
                _log.warning("zokern's compiled CPU backend is %s. Falling back to NumPy, which is slow.", _module("cpu").status())
            return module
    reasons = "; ".join(f"{name}: {status}" for name, status in backends().items())
    raise RuntimeError(f"no backend for parameters on {kind!r} ({reasons}): install one of them or move the parameters to the CPU")


def _available(name):
    status = _module(name).status()
    if not status.startswith("available"):
        raise RuntimeError(f"backend {name!r} is {status}")
    return _module(name)


def _module(name):
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is unknown: pass one of {', '.join(map(repr, NAMES))}")
    return import_module(f"{__name__}.{name}")
