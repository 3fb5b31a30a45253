"""One of several processes: python checkpoint_worker.py OUT save|load|full HOW. Saves a run by torch.distributed.checkpoint, or goes on.

HOW: a placement of ``sharded_worker.shard``, or "whole".
"""

import sys
from pathlib import Path

import torch
from sharded_worker import CASES as ALL
from sharded_worker import STEPS, make, optimizer_of, shard, state_of, steps
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

# Each kind of state: none, theta, moments, a trail, a window, numbers of groups.
NAMES = ["MeZO", "MeZO, deferred", "MeZO, bfloat16", "MeZO-SVRG", "MeZO-SVRG, bfloat16", "ZO-Adam, bfloat16 state", "MEAZO", "AdaMeZO"]
CASES = {name: ALL[name] for name in NAMES}
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
TO_ALL = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def begun(name, how, spoil=False):
    model = make(CASES[name][2])
    if spoil:
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
    if how != "whole":
        shard(model, how)
    return model, optimizer_of(model, name)


def save(folder, name, how):
    """-> what the run comes to that goes on."""
    model, optimizer = begun(name, how)
    steps(model, optimizer)
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder / name)
    steps(model, optimizer)
    return state_of(model, optimizer)


def load(folder, name, how):
    model, optimizer = begun(name, how, spoil=True)
    weights, state = get_state_dict(model, optimizer)
    held = {"model": weights, "optimizer": state}
    checkpoint.load(held, checkpoint_id=folder / name)
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    assert optimizer.param_groups[0]["step"] == STEPS
    steps(model, optimizer)
    return state_of(model, optimizer)


def full(folder, name, how):
    """Everything in rank 0's memory, and from there to all again."""
    model, optimizer = begun(name, how)
    steps(model, optimizer)
    weights, state = get_state_dict(model, optimizer, options=FULL)
    model, optimizer = begun(name, how, spoil=True)
    set_model_state_dict(model, weights, options=TO_ALL)  # set_state_dict would take the empty one of other ranks for none
    set_optimizer_state_dict(model, optimizer, state, options=TO_ALL)
    steps(model, optimizer)
    return state_of(model, optimizer)


def main(out, what, how):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = {name: {"save": save, "load": load, "full": full}[what](out / "checkpoints", name, how) for name in CASES}
    torch.save(found, out / f"{what}-{distributed.get_world_size()}-{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
