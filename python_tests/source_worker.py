"""A training of weights in a file by a process that is killed: source_worker.py PATH LOG STEPS END.

END is between (two steps), measuring (a part computes in the next one), or inside (its update, when one block of several is written)."""

import os
import signal
import sys

import torch
from conftest import Transformer

import zokern


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def main(path, log, steps, end):
    torch.set_num_threads(1)
    model = Transformer().eval()
    tokens = torch.randint(0, 37, (4, 9), generator=torch.Generator().manual_seed(1))
    streamed = zokern.Streamed(model, source=path)
    blocks = [[model.embed.weight], [*model.blocks.parameters()]]
    optimizer = zokern.MeZO(model.named_parameters(), lr=1e-3, blocks=blocks, perturbation=streamed)
    with zokern.record(optimizer, log):
        for _ in range(int(steps)):
            optimizer.step(lambda: model(tokens))
        if end == "measuring":
            model.blocks.layers[1].register_forward_hook(kill)
        if end == "inside":
            optimizer.weights._moved = kill
        if end == "between":
            kill()
        optimizer.step(lambda: model(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])
