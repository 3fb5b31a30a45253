"""Suite ``memory``, on a CPU: what a step has resident at most, as Linux counts it (VmHWM), each mode in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import zokern

from . import memory, modes, record
from .cases import Resident
from .models import build, loss_of
from .step import FORWARDS

OP, PROCESS = "VmHWM", Path("/proc/self")
# glibc gives memory of this many bytes and more back when it is freed. Unless told so it raises the limit with what is freed, and its heap
# keeps activations that are gone: resident is then more than what a step holds, and with one mode by more than with another.
GIVEN_BACK = 128 << 10


def measure(case: Resident, device) -> list[dict]:
    """-> records, one a mode, beside the two forwards that its process makes before the step."""
    records, environment = [], {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(GIVEN_BACK)}
    for name in modes.of(case.dtype):
        command = [sys.executable, "-m", __name__, name, case.model, case.dtype, str(case.batch), str(case.tokens)]
        done = subprocess.run(command, cwd=record.ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        forwards, most = found.pop("forwards_bytes"), found.pop("peak_bytes")
        common = {"suite": "memory", "op": OP, "dtype": case.dtype, "model": case.model, "batch": case.batch, "tokens": case.tokens}
        common["malloc_mmap_threshold"] = GIVEN_BACK
        for candidate, peak in ((FORWARDS, forwards), (name, most))[bool(records) :]:  # the forwards of the first process
            records.append(
                dict.fromkeys(record.FIELDS)
                | common
                | {"candidate": candidate, **record.backend(device, candidate != FORWARDS), "reported_gb": None}
                | {"peak_bytes": peak, "peak_over_forwards_bytes": peak - forwards}
                | found
                | record.where(device)
            )
    return records


def main(name, model, dtype, batch, tokens) -> dict:
    """Two forwards and then a step, each for the second time."""
    model = build(model, dtype, "cpu")
    closure = loss_of(model, int(batch), int(tokens))
    forwards, step = (memory.method(which, model, closure, None) for which in (FORWARDS, name))

    def size(params):
        return sum(p.numel() * p.element_size() for p in params)

    return {
        "forwards_bytes": resident(forwards),
        "peak_bytes": resident(step),
        "weights_bytes": size(model.parameters()),
        "largest_part_bytes": max(size(part.params) for part in zokern.Streamed(model).parts),
        "n": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    }


def resident(call) -> int:
    """Most bytes resident at once during a call that has been made before: what it keeps for the next one is among them."""
    call()
    (PROCESS / "clear_refs").write_text("5")  # sets VmHWM back
    call()
    status = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
