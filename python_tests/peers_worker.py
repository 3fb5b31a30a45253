"""One of two processes that should hold shards of one model, where something is wrong: python peers_worker.py OUT, as torchrun would."""

import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from directions_worker import refused
from sharded_worker import loss_of, make, shard, steps
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial

import zokern

RANK = int(os.environ.get("RANK", "0"))


def mezo(params, **settings):
    return zokern.MeZO(params, **{"lr": 1e-3, "eps": 1e-2, **settings})


def step(optimizer, model, rows=slice(None)):
    return refused(lambda: optimizer.step(lambda: loss_of(model, rows)))


def sharded():
    return shard(make(), "fsdp")


def after_a_forward():
    model = sharded()
    with torch.no_grad():
        loss_of(model)
    return mezo(model.parameters())


def unplaced():
    mesh = init_device_mesh("cpu", (2,))
    return mezo([torch.nn.Parameter(DTensor.from_local(torch.ones(4, 6), mesh, [Partial()]))])


def forward_gradient():
    return zokern.ForwardGradient(sharded().parameters())


def anchor():
    model = sharded()
    steps(model, zokern.MeZOSVRG(model.named_parameters(), lr=1e-3, eps=1e-2, anchor="copy"))


def hybrid():
    model = sharded()
    fo = partial(torch.optim.SGD, lr=1e-3)
    zokern.Hybrid(zokern.layers(model), zo=partial(zokern.MeZO, lr=1e-3), fo=fo, split=zokern.splits.Depth(1))


def streamed():
    model = sharded()
    mezo(model.parameters(), perturbation=zokern.Streamed(model))


def spans():
    zokern.Layout(sharded().parameters(), spans=[(0,)] * 17)


def elsewhere_too():
    """Process 1 has the model whole."""
    model = make() if RANK else sharded()
    optimizer = mezo(model.parameters())
    if not RANK:
        return refused(lambda: optimizer.step(lambda: loss_of(model)))
    until = time.monotonic() + 60
    while time.monotonic() < until:  # as training would, which takes longer than a loss of this model does
        if error := step(optimizer, model):
            return error
        time.sleep(0.5)


def main(out):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    distributed.init_process_group("gloo")
    found = {}
    for make_it in (after_a_forward, unplaced, forward_gradient, anchor, hybrid, streamed, spans):
        found[make_it.__name__] = refused(make_it)
    model = sharded()
    found["seed"] = step(mezo(model.parameters(), seed=3 + RANK), model)
    found["lr"] = step(mezo(model.parameters(), lr=1e-3 * (1 + RANK)), model)
    found["parameters"] = step(mezo(list(model.parameters())[RANK:]), model)
    found["optimizer"] = step((zokern.ZOSign if RANK else zokern.MeZO)(model.parameters(), lr=1e-3), model)
    found["batch"] = step(mezo(model.parameters()), model, slice(RANK, 3 + RANK))
    found["seed, averaged"] = refused(
        lambda: mezo(model.parameters(), seed=3 + RANK).step(zokern.DistributedClosure(lambda: loss_of(model)))
    )
    found["fine"] = step(mezo(model.parameters()), model)
    found["whole"] = elsewhere_too()
    torch.save(found, out / f"{distributed.get_world_size()}-{RANK}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
