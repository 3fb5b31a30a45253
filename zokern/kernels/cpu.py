"""The C++ backend for CPU memory (csrc/cpu): scalar, AVX2 or AVX-512, chosen at run time."""

import os
from collections.abc import Sequence

import torch

from ..noise import NoiseKey
from .passes import STORAGE, Rule
from .tables import State, Table

try:
    import zokern._cpu as _cpu
except ImportError as error:
    _cpu, _why = None, str(error)


def status() -> str:
    if _cpu is None:
        return f"not built ({_why}): install a C++ compiler, then pip install zokern again"
    return f"available: {_cpu.isa(_forced_isa())}" + ("" if _cpu.openmp else ", one thread (built without OpenMP)")


def devices() -> tuple[str, ...]:
    return ("cpu",)


def add_noise_(table: Table, keys: Sequence[NoiseKey], coefficients: torch.Tensor, decay: torch.Tensor | None) -> None:
    _cpu.add_noise_(
        STORAGE[table.dtype],
        table.rows.data_ptr(),
        len(table.rows),
        _words(keys),
        coefficients.data_ptr(),
        table.groups,
        0 if decay is None else decay.data_ptr(),
        torch.get_num_threads(),
        _forced_isa(),
    )


def replay_(table: Table, keys: Sequence[NoiseKey], instructions: torch.Tensor, values: torch.Tensor) -> None:
    _cpu.replay_(
        STORAGE[table.dtype],
        table.rows.data_ptr(),
        len(table.rows),
        _words(keys),
        instructions.data_ptr(),
        len(instructions),
        values.data_ptr(),
        table.groups,
        torch.get_num_threads(),
        _forced_isa(),
    )


def update_(
    table: Table,
    rule: Rule,
    keys: Sequence[NoiseKey],
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor | None,
    numbers: torch.Tensor,
    state: State,
    rounding: Sequence[NoiseKey] | None,
) -> None:
    _cpu.update_(
        STORAGE[table.dtype],
        table.rows.data_ptr(),
        len(table.rows),
        _words(keys),
        a.data_ptr(),
        b.data_ptr(),
        table.groups,
        0 if decay is None else decay.data_ptr(),
        rule.code,
        numbers.data_ptr(),
        len(rule.numbers),
        state.addresses.data_ptr(),
        len(rule.state),
        rounding is not None,
        _words(rounding or []),
        torch.get_num_threads(),
        _forced_isa(),
    )


def _words(keys: Sequence[NoiseKey]) -> list[tuple[int, int, int]]:
    return [(key.seed, key.step, key.stream) for key in keys]


def _forced_isa() -> str:
    """ZOKERN_CPU_ISA: scalar, avx2 or avx512, for tests and benchmarks; the best that the processor has where it is not set."""
    return os.environ.get("ZOKERN_CPU_ISA", "")
