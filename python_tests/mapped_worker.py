"""Updates of mapped weights by a process of its own: mapped_worker.py PATH END. Says what it holds of memory that is its own, in KiB.

END is between (two updates), inside (the third), or closed."""

import os
import re
import signal
import sys
from pathlib import Path

import torch

import zokern
from zokern.mapped import MappedWeights


def own_memory():
    """KiB of memory that no file stands behind."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def update(layout, step):
    zokern.ops.add_noise_(layout, [(zokern.NoiseKey(7, step), 0.01)])


def main(path, end):
    torch.set_num_threads(1)
    weights = MappedWeights(path)
    layout = zokern.Layout(sorted(weights.tensors.items()))
    scratch = zokern.Layout([torch.zeros(8)])
    update(scratch, 0)  # whatever is loaded once
    before = own_memory()
    for step in range(2):
        with weights.writing():
            update(layout, step)
    print(own_memory() - before, flush=True)
    if end == "inside":
        with weights.writing():
            update(layout.only([0]), 2)
            os.kill(os.getpid(), signal.SIGKILL)
    if end == "between":
        os.kill(os.getpid(), signal.SIGKILL)
    weights.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
