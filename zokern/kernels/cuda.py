"""The CUDA C++ backend for NVIDIA GPUs (csrc/cuda)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .passes import STORAGE, Keys, Rule, check_interface, words
from .spans import BLOCK, pack, spans, state_spans, to_device
from .tables import State, Table

try:
    import zokern._cuda as _cuda

    check_interface(_cuda)
except ImportError as error:
    _cuda, _why = None, str(error)

OLDEST = (8, 0)  # compute capability

_clock: Tensor | None = None


def status() -> str:
    if _cuda is None:
        return f"not built ({_why}): install nvcc or set CUDA_HOME, then pip install zokern again (ZOKERN_CUDA=1 shows what is wrong)"
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


def add_noise_(table: Table, keys: Keys, coefficients: Tensor, decay: Tensor | None) -> None:
    if not len(keys) and decay is None:
        return
    all_keys = to_device(pack(keys), table.device) if len(keys) > _cuda.unrolled else None
    _cuda.add_noise_(
        *_memory(table),
        words(keys[: _cuda.unrolled]),
        len(keys),
        _address(all_keys),
        coefficients.data_ptr(),
        table.groups,
        _address(decay),
        *_launch(table),
    )


def replay_(table: Table, keys: Keys, instructions: Tensor, values: Tensor) -> None:
    all_keys, instructions = to_device(pack(keys), table.device), to_device(instructions, table.device)
    _cuda.replay_(
        *_memory(table),
        all_keys.data_ptr(),
        instructions.data_ptr(),
        len(instructions),
        values.data_ptr(),
        table.groups,
        *_launch(table),
    )


def update_(
    table: Table, rule: Rule, keys: Keys, a: Tensor, b: Tensor, decay: Tensor | None, numbers: Tensor, state: State, rounding: Keys | None
) -> None:
    all_keys = to_device(pack(keys), table.device) if len(keys) > _cuda.carried else None
    storage, *memory = _memory(table)
    _cuda.update_(
        rule.code,
        storage,
        STORAGE[state.dtype],
        *memory,
        state_spans(table, state).data_ptr(),
        words(keys[: _cuda.carried]),
        len(keys),
        _address(all_keys),
        a.data_ptr(),
        b.data_ptr(),
        table.groups,
        _address(decay),
        numbers.data_ptr(),
        words(rounding or ()),
        *_launch(table),
    )


def _memory(table: Table) -> tuple[int, int, int, bool]:
    """The storage type, the address of the spans and how many there are, and whether some are masked."""
    rows = spans(table)
    return STORAGE[table.dtype], rows.data_ptr(), len(rows), table.masked


def _launch(table: Table) -> tuple[int, int | None, int]:
    """The address of the clock, the device and the stream."""
    return _address(_clock), *_device_and_stream(table.device)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else int(tensor.data_ptr())


def _device_and_stream(device: torch.device) -> tuple[int | None, int]:
    return device.index, torch.cuda.current_stream(device).cuda_stream
