"""One of two processes that are both begun again when one is killed: restart_worker.py OUT CASE, by torchrun.

In the first attempt process 1 kills itself in the middle of step 7, in the second one process 0 does so in step 12.
"""

import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from directions_worker import loss_of, optimizer_of, rows_of
from sharded_worker import make, shard, state_of
from torch import distributed

import zokern

STEPS = 20
RANK = int(os.environ.get("RANK", "0"))
ATTEMPT = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

# name -> the optimizers, by their names in directions_worker, each of which trains a model of its own
CASES = {"whole": ["MeZO, 4 directions", "ZO-Adam"], "sharded": ["ZO-Adam"]}


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def half(file, line, write=os.write):
    write(file, line[: len(line) // 2])
    killed()


def losses(model, step, dies=False):
    """The closure of a step, in whose second evaluation the process may die."""

    def closure():
        nonlocal calls
        calls += 1
        if dies and calls == 2:
            killed()
        return loss_of(model, rows_of(step % 4, 4), full=True)

    calls = 0
    return closure


def train(model, optimizer):
    """One process, which is left alone."""
    for step in range(STEPS):
        optimizer.step(losses(model, step))


def main(out, case):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    sharded, names, begun = case == "sharded", CASES[case], []
    logs, models = [out / f"{name}.jsonl" for name in names], [shard(make(), "fsdp") if sharded else make() for _ in names]
    optimizers = []
    for name, model, log in zip(names, models, logs):
        trajectory = zokern.Trajectory.read(log) if log.exists() else None
        optimizers.append(optimizer_of(model, name) if trajectory is None else trajectory.replay(model))
        begun.append([optimizers[-1].param_groups[0]["step"], trajectory is not None and trajectory.torn])
    (out / f"begun-{ATTEMPT}-{RANK}").write_text(json.dumps(begun))
    distributed.barrier()  # process 0 goes on with logs that all have read
    with ExitStack() as recorded:
        for optimizer, log in zip(optimizers, logs):
            if sharded or RANK == 0:
                recorded.enter_context(zokern.record(optimizer, log, resume=True))
        for step in range(STEPS):
            for model, optimizer in zip(models, optimizers):
                if optimizer.param_groups[0]["step"] > step:
                    continue  # replayed
                if (ATTEMPT, RANK, step) == (1, 0, 12):
                    if sharded:  # all is measured, and nothing has moved
                        optimizer._update = killed
                    else:  # all has moved, and half of the line is written
                        os.write = half
                dies = (ATTEMPT, RANK, step) == (0, 1, 7) and optimizer is optimizers[-1]
                optimizer.step(zokern.DistributedClosure(losses(model, step, dies), directions=1 if sharded else 2))
    torch.save([state_of(*each) for each in zip(models, optimizers)], out / f"{RANK}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
