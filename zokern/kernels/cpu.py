"""The C++ backend for CPU memory (csrc/cpu): scalar, AVX2 or AVX-512, chosen at run time."""

import os

import torch
from torch import Tensor

from ..noise import NoiseKey
from .passes import STORAGE, Keys, Rule, check_interface, words
from .source import not_built
from .tables import State, Table

try:
    import zokern._cpu as _cpu

    check_interface(_cpu)
except ImportError as error:
    _cpu, _why = None, str(error)


def status() -> str:
    if _cpu is None:
        return not_built(_why, "install a C++ compiler")
    return f"available: {_cpu.isa(_forced_isa())}" + ("" if _cpu.openmp else ", one thread (built without OpenMP)")


def devices() -> tuple[str, ...]:
    return ("cpu",)


def add_noise_(table: Table, keys: Keys, coefficients: Tensor, decay: Tensor | None, rounding: NoiseKey | None = None) -> None:
    _cpu.add_noise_(
        *_memory_and_keys(table, keys),
        STORAGE[table.stored],
        coefficients.data_ptr(),
        table.groups,
        0 if decay is None else decay.data_ptr(),
        _rounding_words(table, rounding),
        torch.get_num_threads(),
        _forced_isa(),
    )


def replay_(table: Table, keys: Keys, instructions: Tensor, values: Tensor) -> None:
    _cpu.replay_(
        *_memory_and_keys(table, keys),
        instructions.data_ptr(),
        len(instructions),
        values.data_ptr(),
        table.groups,
        torch.get_num_threads(),
        _forced_isa(),
    )


def update_(
    table: Table, rule: Rule, keys: Keys, a: Tensor, b: Tensor, decay: Tensor | None, numbers: Tensor,
    state: State, state_rounding: Keys | None, rounding: NoiseKey | None = None,
) -> None:  # fmt: skip
    _cpu.update_(
        *_memory_and_keys(table, keys),
        a.data_ptr(),
        b.data_ptr(),
        rule.of_key,
        table.groups,
        0 if decay is None else decay.data_ptr(),
        rule.code,
        numbers.data_ptr(),
        len(rule.numbers),
        state.addresses.data_ptr(),
        len(rule.state),
        words(state_rounding or []),
        _rounding_words(table, rounding),
        torch.get_num_threads(),
        _forced_isa(),
    )


def _memory_and_keys(table: Table, keys: Keys) -> tuple[int, int, int, list[tuple[int, int, int]]]:
    return STORAGE[table.dtype], table.rows.data_ptr(), len(table.rows), words(keys)


def _rounding_words(table: Table, rounding: NoiseKey | None) -> list[tuple[int, int, int]]:
    return words([] if rounding is None or table.stored == torch.float32 else [rounding])


def _forced_isa() -> str:
    """ZOKERN_CPU_ISA: scalar, avx2 or avx512, for tests and benchmarks; the best that the processor has where it is not set."""
    return os.environ.get("ZOKERN_CPU_ISA", "")
