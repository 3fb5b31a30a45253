"""The backends, by name: what each can do here, or why it is missing and what to do about it. None is loaded before it is asked for."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from ..noise import NoiseKey
from .passes import Keys, Rule
from .tables import State, Table

NAMES = ("reference", "cpu", "cuda", "triton")
# What runs where nothing is forced, best first. (Triton's interpreter reaches CPU memory too, but nobody wants it by surprise.)
PREFERRED = {"cuda": ("cuda", "triton"), "cpu": ("cpu", "reference")}

_forced: str | None = None
_log = logging.getLogger("zokern")


class Backend(Protocol):
    """What a module of ``zokern.kernels`` has, to be a backend.

    Its arguments have been checked. Tensors of numbers are float32, contiguous, with one column a coefficient group. They lie on the
    table's device, or in the host's memory where it knows the numbers.
    """

    def status(self) -> str:
        """Return a text that begins with "available", or with the reason why it is not, and says the cure."""

    def devices(self) -> tuple[str, ...]:
        """Return the kinds of device whose memory it can reach, such as "cuda"."""

    def add_noise_(self, table: Table, keys: Keys, coefficients: Tensor, decay: Tensor | None, rounding: NoiseKey | None = None) -> None:
        """out <- decay theta + sum_k c_k z(key_k).

        Args:
            table: the tensors of one dtype on one device, and where ``out`` is.
            keys: of the terms, all of one kind of noise.
            coefficients: [keys, groups].
            decay: [groups]; None: 1.
            rounding: by which key what is stored in 16 bits is rounded stochastically. Default None: to nearest.
        """

    def replay_(self, table: Table, keys: Keys, instructions: Tensor, values: Tensor) -> None:
        """Many passes of ``add_noise_`` in one read and one write, each rounded.

        Args:
            table: the tensors of one dtype on one device.
            keys: in the order of their use.
            instructions: uint8 [n] on the host, bits of ``kernels.passes``.
            values: [n, groups], one an instruction.
        """

    def update_(
        self, table: Table, rule: Rule, keys: Keys, a: Tensor, b: Tensor, decay: Tensor | None, numbers: Tensor,
        state: State, state_rounding: Keys | None, rounding: NoiseKey | None = None,
    ) -> None:  # fmt: skip
        """theta <- decay theta + sum_k a_k z(key_k), and then the rule, with g = sum_k b_k z(key_k).

        Args:
            table: the tensors of one dtype on one device.
            rule: what is done, and how many numbers and states it has.
            keys: of both sums.
            a: [keys, groups].
            b: [keys, groups]; of ``passes.WINDOWED_ADAM`` [4, keys, groups], by which g, m and v are summed.
            decay: [groups]; None: 1.
            numbers: [the rule's, groups].
            state: addresses of what the rule keeps, and its dtype.
            state_rounding: one key a state to round it with; None: it is float32.
            rounding: by which key theta in 16 bits is rounded stochastically. Default None: to nearest.
        """


if TYPE_CHECKING:
    from . import cpu, cuda, reference, triton

    _all: tuple[Backend, ...] = (reference, cpu, cuda, triton)


def backends() -> dict[str, str]:
    """Return every backend's name -> "available", with details, or the reason why it is missing and the cure."""
    return {name: _module(name).status() for name in NAMES}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run everything inside on one backend. ``ZOKERN_BACKEND=name`` does the same for a whole process.

    Args:
        name: "cpu", "cuda", "triton" or "reference".

    Raises:
        ValueError: no such backend.
        RuntimeError: it is missing here; the message says why and what to do.
    """
    global _forced
    _available(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def backend_for(device: torch.device) -> Backend:
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
def _default(kind: str) -> Backend:
    for name in PREFERRED.get(kind, ()):
        module = _module(name)
        if module.status().startswith("available"):
            if name == "reference":
                _log.warning("zokern's compiled CPU backend is %s. Falling back to NumPy, which is slow.", _module("cpu").status())
            return module
    reasons = "; ".join(f"{name}: {status}" for name, status in backends().items())
    raise RuntimeError(f"no backend for parameters on {kind!r} ({reasons}): install one of them or move the parameters to the CPU")


def _available(name: str) -> Backend:
    status = _module(name).status()
    if not status.startswith("available"):
        raise RuntimeError(f"backend {name!r} is {status}")
    return _module(name)


def _module(name: str) -> Backend:
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is unknown: pass one of {', '.join(map(repr, NAMES))}")
    return cast(Backend, import_module(f"{__name__}.{name}"))
