"""Many passes of ``add_noise_`` in one read and one write of theta, with every rounding kept."""

import torch

from ..kernels import backend_for
from ..kernels.passes import DECAY, FRESH, ROUND
from ..layout import Layout
from .checks import check_passes
from .handover import each_table, place


@torch.no_grad()
def retrace_(layout: Layout, passes) -> None:
    """``for terms, decay in passes: add_noise_(layout, terms, decay)``, bit for bit, in one read and one write of theta.

    Training perturbs in place: a step of MeZO is three passes, and theta is rounded to its dtype after each. To come to the same bits, a
    replay must round as often. Here an element stays in a register from the first pass to the last, and z of a key is made once for all
    uses of it that follow each other: once a step, for the three passes of one. Never waits for the device.

    Args:
        layout: the parameters, their element indices, and which share of their elements the noise reaches.
        passes: sequence of (terms, decay), any number of them, each as ``add_noise_`` takes them. Applied in order.
    Raises:
        TypeError, ValueError: a pass that is no (terms, decay), a key that is no NoiseKey, or a number of another shape; nothing has
            changed then.
    """
    keys, uses, values = _flat(check_passes(passes, layout.groups))
    if not len(uses):
        return
    placed = {}
    for table in each_table(layout):
        if table.device not in placed:
            placed[table.device] = place(values, table.groups, table.device)
        backend_for(table.device).retrace_(table, keys, uses, placed[table.device])


def _flat(passes):
    """-> the keys in the order of their runs, what each use does (``kernels.passes``), and its value."""
    keys, uses, values = [], [], []
    for terms, decay in passes:
        if decay is not None:
            uses.append(DECAY)
            values.append(decay)
        for key, c in terms:
            fresh = not keys or key != keys[-1]
            if fresh:
                keys.append(key)
            uses.append(FRESH if fresh else 0)
            values.append(c)
        if terms or decay is not None:
            uses[-1] |= ROUND
    return keys, torch.tensor(uses, dtype=torch.uint8), values
