"""One of two processes of a plain loop: python replicas_worker.py OUT, under torchrun's environment. Saves what each case came to."""

import os
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import zokern

STEPS = 6
RANK = int(os.environ.get("RANK", "0"))


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).eval()


def batch(rank):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(rank))
    return x, x.sum(1, keepdim=True)


def run(model, optimizer, mean=False, part=RANK):
    """-> (the weights, the warnings) of some steps on a process's own batch."""
    x, y = batch(part)

    def closure():
        loss = torch.nn.functional.mse_loss(model(x), y)
        if mean:
            distributed.all_reduce(loss)
            loss = loss / distributed.get_world_size()
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        for _ in range(STEPS):
            optimizer.step(closure)
            distributed.barrier()  # so that notes have been left
    return [p.detach().clone() for p in model.parameters()], [str(w.message) for w in caught if w.category is RuntimeWarning]


def mezo(model, **settings):
    return zokern.MeZO(model.named_parameters(), **{"lr": 1e-2, "eps": 1e-3, **settings})


def refused(make):
    try:
        make()
    except TypeError as error:
        return str(error)


def main(out):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found, model = {}, net()
    found["own batches"] = run(model, mezo(model))
    found["wrapped"] = run(wrapped := DistributedDataParallel(net()), mezo(wrapped))
    found["averaged"] = run(model := net(), mezo(model), mean=True)
    found["adam averaged"] = run(model := net(), zokern.ZOAdam(model.parameters(), lr=1e-3), mean=True)
    found["the same batch"] = run(model := net(), mezo(model), part=0)
    found["other seeds"] = run(model := net(), mezo(model, seed=RANK), mean=True)
    found["other weights"] = run(model := net(RANK), mezo(model), mean=True)
    found["ForwardGradient"] = run(model := net(), zokern.ForwardGradient(model.parameters(), lr=1e-2))
    log = out / f"{RANK}.jsonl"
    with zokern.record(optimizer := mezo(model := net()), log):
        run(model, optimizer, mean=True)
    if RANK == 0:  # alone: nobody waits for the others
        again = net()
        zokern.Trajectory.read(log).replay(again)
        found["replayed by one"] = [p.detach() for p in again.parameters()], [p.detach() for p in model.parameters()]
        lone = mezo(net())
        for _ in range(STEPS):
            lone.step(lambda: 1.0 + RANK)
    for original in (False, True):
        sharded = FullyShardedDataParallel(net(), use_orig_params=original, device_id=torch.device("cpu"))
        found[f"FSDP {original}"] = refused(lambda: zokern.MeZO(sharded.parameters()))  # noqa: B023
    torch.save(found, out / f"{RANK}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
