"""One of two processes that are both begun again when one is killed: restart_worker.py OUT CASE, by torchrun.

In the first attempt process 1 kills itself in the middle of step 7, in the second one process 0 does so in step 12.
"""

import os
import signal
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import torch
from directions_worker import loss_of, optimizer_of, rows_of
from sharded_worker import make, shard, state_of
from torch import distributed

import zokern

STEPS = 20
RANK = int(os.environ.get("RANK", "0"))
ATTEMPT = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

# name -> (optimizer, by its name in directions_worker; whether the model is sharded; what is replaced to kill process 0)
CASES = {
    "MeZO": ("MeZO, 4 directions", False, "writing"),
    "ZO-Adam": ("ZO-Adam", False, "moving"),
    "sharded": ("ZO-Adam", True, "writing"),
}


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def half(file, line, write=os.write):
    """Writes half of a line."""
    write(file, line[: len(line) // 2])
    killed()


def train(model, optimizer, closure=lambda f: f, where=""):
    """From the step that the optimizer is at to the last."""
    calls = Counter()

    def loss():
        calls[step] += 1
        if (ATTEMPT, RANK, step, calls[step]) == (0, 1, 7, 2):
            killed()
        return loss_of(model, rows_of(step % 4, 4), full=True)

    for step in range(optimizer.param_groups[0]["step"], STEPS):
        if (ATTEMPT, RANK, step) == (1, 0, 12):
            if where == "moving":  # all is measured, and nothing has moved
                optimizer._update = killed
            else:  # all has moved, and the line is begun
                os.write = half
        optimizer.step(closure(loss))


def main(out, name):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    (which, sharded, where), log = CASES[name], out / "log.jsonl"
    model = shard(make(), "fsdp") if sharded else make()
    optimizer = zokern.Trajectory.read(log).replay(model) if log.exists() else optimizer_of(model, which)
    (out / f"begun-{ATTEMPT}-{RANK}").write_text(str(optimizer.param_groups[0]["step"]))
    distributed.barrier()  # process 0 goes on with a log that all have read
    closure = lambda f: zokern.DistributedClosure(f, directions=1 if sharded else 2)  # noqa: E731
    with zokern.record(optimizer, log, resume=True) if sharded or RANK == 0 else nullcontext():
        train(model, optimizer, closure, where)
    torch.save(state_of(model, optimizer), out / f"{RANK}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
