"""Whether the backends that are here make the noise and the passes that they must: the golden bits, and those of the reference."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .. import ops
from ..errors import first_line
from ..kernels import use_backend
from ..kernels.passes import RULES, WINDOWED_ADAM
from ..kernels.source import INSTALL
from ..layout import Layout
from ..noise import NoiseKey
from ..noise.golden import golden
from ..noise.spec import PERTURBATION, ROUNDING, SIGNS
from .finding import FAULT, OK, Finding
from .machine import available, interpreted

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = {4: torch.int32, 2: torch.int16}
NORMALS, OF_SIGNS = ([(NoiseKey.of(2**63 + k, 2**32 - 1 - k, of, k), 0.25 - k / 8) for k in range(3)] for of in (PERTURBATION, SIGNS))
NUMBERS = (-0.03, 0.9, 0.1, 0.99, 0.01, 1.5, 1e-8)  # of Adam; other rules take the first ones
WINDOW = ([NORMALS[:2], NORMALS[2:]], ([0.09, 0.1], [0.0099, 0.01]), [NUMBERS[0], *NUMBERS[5:]])
STEP = [([(NORMALS[0][0], c)], decay) for c, decay in ((1e-3, 1.0), (-2e-3, 1.0), (9e-4, 0.99))]
ROUNDED_BY = NoiseKey.of(5, 7, ROUNDING)

REFERENCE = "reference"
CURES = {
    REFERENCE: "pip install -U numpy",
    "cpu": f"train with ZOKERN_BACKEND=reference; {INSTALL}",
    "cuda": f"train with ZOKERN_BACKEND=triton; {INSTALL}",
    "triton": "train with ZOKERN_BACKEND=cuda; pip install -U torch, which brings another triton",
}

# Parameters by (elements, how many in a line, from one line to the next).
PARAMETERS = [(1, 1, 1), (3, 3, 3), (40003, 40003, 40003), (5 * 259, 259, 301)]
FEW = [(3, 3, 3), (1023, 1023, 1023)]  # in an interpreter


@dataclass
class Held:
    """What a pass works on: parameters in one piece of memory, which begin at odd places, and the states of its rule."""

    memory: Tensor
    layout: Layout
    state: list[list[Tensor]]

    @classmethod
    def of(cls, parameters: list[tuple[int, int, int]], dtype: torch.dtype, device: str, slots: int, of_state: torch.dtype) -> "Held":
        random = torch.Generator().manual_seed(0)
        memory = torch.randn(50000, generator=random).to(dtype).to(device)
        params, begin = [], 1
        for count, columns, pitch in parameters:
            params.append(memory[begin:].as_strided((count // columns, columns), (pitch, 1)))
            begin += count // columns * pitch + 3
        state = [[torch.rand(p.shape, generator=random).to(of_state).to(device) for p in params] for _ in range(slots)]
        return cls(memory, Layout(params, keep=[*[1.0] * (len(params) - 1), 0.4]), state)

    def tensors(self) -> list[Tensor]:
        return [self.memory, *(tensor for slot in self.state for tensor in slot)]


@dataclass(frozen=True)
class Case:
    """A pass and what is particular about it; ``slots``: states of its rule."""

    of: str
    about: str
    run: Callable[[Held], None]
    slots: int = 0
    of_state: torch.dtype = torch.float32


def _update(rule: str, key: NoiseKey | None, held: Held) -> None:
    numbers = NUMBERS[: len(RULES[rule].numbers)]
    ops.update_(held.layout, rule, NORMALS, numbers, held.state, pending=OF_PENDING, decay=0.999, state_rounding=key)


OF_PENDING = [(NoiseKey.of(3, 4), -1e-3)]
CASES = [
    Case("add_noise", "normals", lambda held: ops.add_noise_(held.layout, NORMALS)),
    Case("add_noise", "signs", lambda held: ops.add_noise_(held.layout, OF_SIGNS, 0.9, rounding="stochastic")),
    *(Case("update", rule, partial(_update, rule, None), len(RULES[rule].state)) for rule in RULES),
    Case("update", "adam with bfloat16 state", partial(_update, "adam", ROUNDED_BY), 2, torch.bfloat16),
    Case("windowed_adam", WINDOWED_ADAM.name, lambda held: ops.windowed_adam_(held.layout, *WINDOW)),
    Case("replay", "a step", lambda held: ops.replay_(held.layout, STEP)),
]


def exactness() -> Iterator[Finding]:
    """Every backend that is available here: the golden noise, and each pass in each dtype beside the reference's."""
    for name, module in available().items():
        device, parameters = module.devices()[0], FEW if interpreted(module) else PARAMETERS
        yield _judged(name, "noise", "the golden bits", _golden(name, device))
        for of in dict.fromkeys(case.of for case in CASES if name != REFERENCE):
            cases = (_pass(name, device, parameters, case, dtype) for case in CASES if case.of == of for dtype in DTYPES)
            yield _judged(name, of, "the bits of the reference", cases)


def _judged(name: str, what: str, wanted: str, wrong: Iterator[str]) -> Finding:
    """``wrong``: what is wrong in each comparison, or ""."""
    try:
        said = list(wrong)
    except Exception as error:
        said = [f"fails: {first_line(error)}"]
    title = f"{name} {what}"
    if faults := [line for line in said if line]:
        others = f", and in {len(faults) - 1} more of {len(said)} comparisons" if faults[1:] else ""
        return Finding(title, FAULT, f"not {wanted}: {faults[0]}{others}", CURES[name])
    return Finding(title, OK, f"{wanted}, in {len(said)} comparisons")


def _golden(name: str, device: str) -> Iterator[str]:
    for key, first, bits in golden():
        with use_backend(name):
            z = ops.make_noise(key, first, len(bits), device)
        wanted = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
        yield _difference(f"{key}, elements from {first}", z, wanted)


def _pass(name: str, device: str, parameters: list[tuple[int, int, int]], case: Case, dtype: torch.dtype) -> str:
    ours, theirs = (Held.of(parameters, dtype, on, case.slots, case.of_state) for on in (device, "cpu"))
    for backend, held in ((name, ours), (REFERENCE, theirs)):
        with use_backend(backend):
            case.run(held)
    about = f"{case.about} in {str(dtype).removeprefix('torch.')}"
    return next(filter(None, (_difference(about, *pair) for pair in zip(ours.tensors(), theirs.tensors()))), "")


def _difference(about: str, ours: Tensor, theirs: Tensor) -> str:
    kind = INTEGERS[theirs.itemsize]
    x, y = (tensor.detach().cpu().flatten().view(kind) for tensor in (ours, theirs))
    differ = (x != y).nonzero().flatten()
    if not len(differ):
        return ""
    at, mask = int(differ[0]), (1 << 8 * theirs.itemsize) - 1
    return f"{about}, {len(differ)} of {len(x)} differ, the first is {int(x[at]) & mask:#x} and not {int(y[at]) & mask:#x}"
