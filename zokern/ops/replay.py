"""Many passes of ``add_noise_`` in one read and one write of theta, with every rounding kept."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch

from ..kernels import backend_for
from ..kernels.passes import DECAY, NEXT_KEY, ROUND
from ..layout import Layout
from ..noise import NoiseKey
from .arguments import Number, Term, check_passes
from .staging import each_table, stage

Pass: TypeAlias = tuple[list[Term], Number | None]


@torch.no_grad()
def replay_(layout: Layout, passes: Iterable[tuple[Iterable[Term], Number]]) -> None:
    """Many passes of ``add_noise_``, bit for bit, in one read and one write of theta.

        for terms, decay in passes:
            add_noise_(layout, terms, decay)

    Training perturbs in place: a step of MeZO is three passes, and theta is rounded to its dtype after each. To come to the same bits, a
    replay must round as often. Here an element stays in a register from the first pass to the last, and z of a key is made once for all
    uses of it that follow each other: once a step, for the three passes of one. Never waits for the device.

    Args:
        layout: the parameters, their element indices, and which share of their elements the noise reaches.
        passes: sequence of (terms, decay), any number of them, each as ``add_noise_`` takes them. Applied in order.

    Raises:
        TypeError: a pass that is no (terms, decay), a key that is no NoiseKey, a coefficient that is no number.
        ValueError: keys of both kinds of noise in one pass, or a number of another shape. Nothing has changed then.
    """
    checked = check_passes(passes, len(layout.coefficient_groups))
    for run in _of_one_kind(checked):
        _replay(layout, *_flat(run))


def _replay(layout: Layout, keys: list[NoiseKey], instructions: torch.Tensor, values: list[Number]) -> None:
    if not len(instructions):
        return
    staged: dict[torch.device, torch.Tensor] = {}
    for table in each_table(layout):
        if table.device not in staged:
            staged[table.device] = stage(values, table.groups, table.device)
        backend_for(table.device).replay_(table, keys, instructions, staged[table.device])


def _of_one_kind(passes: Iterable[Pass]) -> Iterator[list[Pass]]:
    """The passes in order, parted where the kind of noise changes: kernels make one kind at a time."""
    run: list[Pass] = []
    kind = ""
    for terms, decay in passes:
        own = terms[0][0].noise if terms else kind
        if kind and own != kind:
            yield run
            run = []
        run.append((terms, decay))
        kind = own
    yield run


def _flat(passes: Iterable[Pass]) -> tuple[list[NoiseKey], torch.Tensor, list[Number]]:
    """-> the keys in the order of their runs, the instructions (``kernels.passes``), and the value of each."""
    keys: list[NoiseKey] = []
    instructions: list[int] = []
    values: list[Number] = []
    for terms, decay in passes:
        if decay is not None:
            instructions.append(DECAY)
            values.append(decay)
        for key, c in terms:
            new = not keys or key != keys[-1]
            if new:
                keys.append(key)
            instructions.append(NEXT_KEY if new else 0)
            values.append(c)
        if terms or decay is not None:
            instructions[-1] |= ROUND
    return keys, torch.tensor(instructions, dtype=torch.uint8), values
