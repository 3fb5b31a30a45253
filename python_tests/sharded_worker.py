"""One of several processes that hold a sharded model: python sharded_worker.py OUT, under torchrun's environment."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import zokern

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
STEPS = 10


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 10), nn.Linear(10, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """Odd sizes, of which processes hold unequal parts, or none; the head is the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block(8) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(3))
        self.deep = nn.Parameter(torch.randn(8, 5, 8) * 0.1)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        h = self.embedding(x)
        for block in self.blocks:
            h = block(h)
        h = torch.einsum("bti,ijk->btk", h, self.deep) * self.scale.mean()
        return self.head(h)


def make(dtype=torch.float32):
    torch.manual_seed(3)
    return Net().to(dtype)


def loss_of(model, rows=slice(None)):
    ids = torch.arange(60).reshape(6, 10)[rows] * 7 % 11
    logits = model(ids)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


TP = {f"blocks.{i}.{name}": plan() for i in range(2) for name, plan in (("up", ColwiseParallel), ("down", RowwiseParallel))}


def fsdp(model, mesh, **settings):
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **settings)
    fully_shard(model, mesh=mesh, **settings)


def columns(p):
    """By the last dimension where that can be cut evenly, as fully_shard wants it."""
    return Shard(p.dim() - 1 if p.shape[-1] % PROCESSES == 0 else 0)


def shard(model, how):
    """Lay a model out over all processes."""
    n = PROCESSES
    if how == "tp":
        parallelize_module(model, init_device_mesh("cpu", (n,), mesh_dim_names=("tp",)), TP)
    elif how == "hsdp":
        fsdp(model, init_device_mesh("cpu", (2, n // 2), mesh_dim_names=("replicas", "shards")))
    elif how == "2-d":
        mesh = init_device_mesh("cpu", (2, n // 2), mesh_dim_names=("shards", "tp"))
        parallelize_module(model, mesh["tp"], TP)
        fsdp(model, mesh["shards"])
    else:
        settings = {"columns": {"shard_placement_fn": columns}, "kept": {"reshard_after_forward": False}}.get(how, {})
        fsdp(model, init_device_mesh("cpu", (n,)), **settings)
    return model


PLACEMENTS = {1: [], 2: ["fsdp", "columns", "kept", "tp"], 4: ["fsdp", "columns", "hsdp", "2-d"]}[PROCESSES]

# name -> (optimizer, its settings, dtype of the model)
CASES = {
    "MeZO": ("mezo", {}, torch.float32),
    "MeZO, two directions": ("mezo", {"q": 2, "weight_decay": 0.1, "noise": "rademacher"}, torch.float32),
    "MeZO, deferred": ("mezo", {"defer": True, "estimator": "one-sided"}, torch.float32),
    "MeZO, sparse": ("mezo", {"sparsity": 0.6}, torch.float32),
    "MeZO, bfloat16": ("mezo", {"perturbation": zokern.Copied()}, torch.bfloat16),
    "MeZO, bfloat16, own": ("mezo", {"perturbation": zokern.Copied(dtype=None)}, torch.bfloat16),
    "MeZO-SVRG": ("mezo-svrg", {"q": 3, "lr_full": 2e-3}, torch.float32),
    "MeZO-SVRG, bfloat16": ("mezo-svrg", {"q": 3, "lr_full": 2e-3, "perturbation": zokern.Copied()}, torch.bfloat16),
    "ZO-Adam": ("zo-adam", {}, torch.float32),
    "ZO-Adam, bfloat16 state": ("zo-adam", {"state_dtype": torch.bfloat16, "amsgrad": True}, torch.float32),
    "ZO-momentum": ("zo-momentum", {}, torch.float32),
    "ZO-sign": ("zo-sign", {}, torch.float32),
    "ZO-conservative": ("zo-conservative", {}, torch.float32),
    "ES": ("es", {"population": 4, "sigma": 1e-2}, torch.float32),
    "FZOO": ("fzoo", {"q": 4}, torch.float32),
    "MEAZO": ("meazo", {}, torch.float32),
    "AdaMeZO": ("adamezo", {}, torch.float32),
}


def optimizer_of(model, name):
    cls, settings, _ = CASES[name]
    kind = zokern.optim.named(cls)
    if "eps" in kind.declared():
        settings = {"eps": 1e-2, **settings}
    named = list(model.named_parameters())
    groups = [{"params": named[:4]}, {"params": named[4:], "lr": 2e-3}]
    return kind(groups, lr=1e-3, seed=7, **settings)


def steps(model, optimizer, loss=loss_of):
    """-> the measurements of each step."""
    found = []
    for _ in range(STEPS):
        closures = [lambda: loss(model, slice(3))]
        if optimizer.full_batch_due:
            closures.append(lambda: loss(model))
        optimizer.step(*closures)
        found.append([float(x) for x in optimizer.measurements])
    optimizer.flush()
    return found


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


@torch.no_grad()
def state_of(model, optimizer):
    """What a run came to, gathered: weights by name, state by name and slot."""
    optimizer.layout.drop_gathered()
    names = {p: name for group in optimizer.param_groups for name, p in zip(group["param_names"], group["params"])}
    weights = {name: whole(p.detach()) for name, p in model.named_parameters()}
    state = {(names[p], slot): whole(t) for p in names for slot, t in optimizer.state.get(p, {}).items()}
    return weights, state


def main(out):
    distributed.init_process_group("gloo")
    found = {}
    for how in PLACEMENTS:
        for name, (_, _, dtype) in CASES.items():
            model = shard(make(dtype), how)
            optimizer = optimizer_of(model, name)
            measured = steps(model, optimizer)
            found[how, name] = measured, *state_of(model, optimizer), optimizer.layout.fingerprint()
    torch.save(found, out / f"{PROCESSES}-{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
