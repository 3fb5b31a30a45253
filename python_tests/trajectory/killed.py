"""Runs, each in a process of its own that saves its state at a step and is killed later: killed.py FOLDER SAVED KILLED OPTIMIZER DTYPE
[OPTIMIZER DTYPE ...]. Prints how each ended."""

import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from trajectory_cases import Net, optimizer_of, train  # noqa: E402

from zokern import record  # noqa: E402


def run(folder, name, dtype, saved, killed):
    net = Net(getattr(torch, dtype))
    optimizer = optimizer_of(name, net)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 12)
    record(optimizer, Path(folder) / "run.jsonl")

    def after(step):
        if step + 1 == int(saved):
            state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "net": net.state_dict()}
            torch.save(state, Path(folder) / "state.pt")
        if step + 1 == int(killed):
            os.kill(os.getpid(), signal.SIGKILL)

    train(optimizer, net, range(12), scheduler, after=after)


def main(folder, saved, killed, *cases):
    torch.set_num_threads(1)
    optimizer_of("MeZO", Net())  # torch imports much for its first optimizer: here, not in every child
    for name, dtype in zip(cases[::2], cases[1::2]):
        own = Path(folder, f"{name}-{dtype}")
        own.mkdir()
        if not os.fork():
            run(own, name, dtype, saved, killed)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
