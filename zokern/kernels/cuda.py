"""The CUDA C++ backend for NVIDIA GPUs (csrc/cuda)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..noise import NoiseKey
from .passes import STORAGE, Keys, Rule, check_interface, signs, words
from .source import not_built
from .spans import BLOCK, pack, spans, state_spans
from .tables import State, Table, to_device

try:
    import zokern._cuda as _cuda

    check_interface(_cuda)
except ImportError as error:
    _cuda, _why = None, str(error)

OLDEST = (8, 0)  # compute capability

_clock: Tensor | None = None


def status() -> str:
    if _cuda is None:
        return not_built(_why, "install nvcc or set CUDA_HOME, and ZOKERN_CUDA=1, which shows what is wrong")
    assert _cuda.tile == BLOCK
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "no NVIDIA GPU: torch.cuda.is_available() is False" if torch.version.hip is None else "not for AMD GPUs: triton is"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return f"not able to run on compute capability {capability[0]}.{capability[1]}, it needs 8.0: use triton"
    return f"available: {_cuda.architectures}, CUDA {_cuda.version}"


def devices() -> tuple[str, ...]:
    return ("cuda",)


@contextmanager
def clock(tensor: Tensor | None) -> Iterator[None]:
    """Every launch inside adds this int32 of the device's memory, as it then is, to the step of each key: a launch that is captured in
    a CUDA graph makes other noise each time the graph is replayed."""
    global _clock
    before, _clock = _clock, tensor
    try:
        yield
    finally:
        _clock = before


def add_noise_(table: Table, keys: Keys, coefficients: Tensor, decay: Tensor | None, rounding: NoiseKey | None = None) -> None:
    if not len(keys) and decay is None and table.out_dtype is None:
        return
    all_keys, c, d = _there(table, keys), _numbers(table, coefficients), _numbers(table, decay)
    _cuda.add_noise_(
        _common(table, keys, all_keys),
        STORAGE[table.stored],
        _told(c),
        _told(d),
        _rounding_words(table, rounding),
    )


def replay_(table: Table, keys: Keys, instructions: Tensor, values: Tensor) -> None:
    all_keys, instructions, values = _there(table, keys), to_device(instructions, table.device), to_device(values, table.device)
    _cuda.replay_(_common(table, keys, all_keys), instructions.data_ptr(), len(instructions), values.data_ptr())


def update_(
    table: Table, rule: Rule, keys: Keys, a: Tensor, b: Tensor, decay: Tensor | None, numbers: Tensor,
    state: State, state_rounding: Keys | None, rounding: NoiseKey | None = None,
) -> None:  # fmt: skip
    all_keys, values = _there(table, keys), [_numbers(table, value) for value in (a, b, decay, numbers)]
    _cuda.update_(
        _common(table, keys, all_keys),
        rule.code,
        STORAGE[state.dtype],
        state_spans(table, state).data_ptr(),
        *map(_told, values),
        words(state_rounding or ()),
        _rounding_words(table, rounding),
    )


def _common(table: Table, keys: Keys, all_keys: Tensor | None) -> tuple[Any, ...]:
    """What every pass is told: of memory, of keys, and where to launch."""
    memory = table.cached(_memory, lambda: _memory(table))
    keys_and_groups = signs(keys), words(keys[: _cuda.carried]), len(keys), _address(all_keys), table.groups
    return *memory, *keys_and_groups, _address(_clock), *_device_and_stream(table.device)


def _memory(table: Table) -> tuple[int, int, int, bool, bool]:
    pieces = spans(table)
    return STORAGE[table.dtype], pieces.data_ptr(), len(pieces), table.masked, table.pitched


def _there(table: Table, keys: Keys) -> Tensor | None:
    """All keys in the device's memory, where they are too many to go along with a launch."""
    return to_device(pack(keys), table.device) if len(keys) > _cuda.carried else None


def _numbers(table: Table, values: Tensor | None) -> Tensor | list[float] | None:
    """Numbers in the device's memory; or themselves, to go along with the launch, where they are few and the host knows them."""
    if values is None:
        return None
    few = values.is_cpu and values.numel() <= _cuda.carried
    return values.view(-1).tolist() if few else to_device(values, table.device)


def _told(numbers: Tensor | list[float] | None) -> tuple[int, list[float]] | None:
    """As compiled code takes them: an address, or numbers."""
    return None if numbers is None else (0, numbers) if isinstance(numbers, list) else (numbers.data_ptr(), [])


def _rounding_words(table: Table, rounding: NoiseKey | None) -> tuple[int, int, int] | None:
    return words([rounding])[0] if rounding and table.stored.itemsize == 2 else None


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else int(tensor.data_ptr())


def _device_and_stream(device: torch.device) -> tuple[int | None, int]:
    return device.index, torch.cuda.current_stream(device).cuda_stream
