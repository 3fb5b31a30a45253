"""One of several processes that hold a sharded model: python sharded_worker.py OUT, under torchrun's environment."""

import math
import os
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

import zokern
from zokern.shards import like, lines_of, local, whole

try:
    from torch.distributed.tensor.placement_types import _StridedShard
except ImportError:
    from torch.distributed.tensor import _StridedShard

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
        settings = {
            "columns": {"shard_placement_fn": columns},
            "kept": {"reshard_after_forward": False},
            "mixed": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)},
        }.get(how, {})
        fsdp(model, init_device_mesh("cpu", (n,)), **settings)
    return model


PLACEMENTS = {1: [], 2: ["fsdp", "columns", "kept", "tp", "mixed"], 4: ["fsdp", "hsdp", "2-d"]}[PROCESSES]

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


def cases(how):
    """Names of those that are run: all of them in two processes, some of each kind in four."""
    if how == "mixed":
        return ["MeZO"]
    return (
        [*CASES] if PROCESSES == 2 else ["MeZO", "MeZO, sparse", "MeZO, bfloat16", "MeZO-SVRG", "ZO-Adam, bfloat16 state", "ES", "AdaMeZO"]
    )


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


@torch.no_grad()
def state_of(model, optimizer):
    """What a run came to, gathered: weights by name, state by name and slot."""
    optimizer.layout.drop_gathered()
    names = {p: name for group in optimizer.param_groups for name, p in zip(group["param_names"], group["params"])}
    weights = {name: whole(p.detach()).clone() for name, p in model.named_parameters()}
    state = {(names[p], slot): whole(t) for p in names for slot, t in optimizer.state.get(p, {}).items()}
    return weights, state


class Collectives(TorchDispatchMode):
    """Counts the collectives inside it by their names."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in ("c10d", "_c10d_functional", "_dtensor") and "wait" not in function.name():
            self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


def traffic(how):
    """-> the collectives of a step of MeZO, and those of two forward passes."""
    model = shard(make(), how)
    optimizer = zokern.MeZO(model.named_parameters(), lr=1e-3, eps=1e-2)
    closure = zokern.DistributedClosure(lambda: loss_of(model))
    optimizer.step(closure)  # in which processes compare what they are to do
    with Collectives() as step:
        optimizer.step(closure)
    with Collectives() as forward, torch.no_grad():
        for _ in range(2):
            optimizer.layout.drop_gathered()
            loss_of(model)
    optimizer.layout.drop_gathered()
    return dict(step.counts), dict(forward.counts)


def places():
    """What is wrong with the numbers of the elements of tensors that hold their own."""
    wrong = []
    line = init_device_mesh("cpu", (PROCESSES,))
    square = init_device_mesh("cpu", (2, PROCESSES // 2))
    for shape in [(7,), (1,), (5, 3), (3, 8), (2, 3, 5), (4, 8, 12), (6, 1, 8), (1, 8, 4, 2)]:
        whole = torch.arange(math.prod(shape)).reshape(shape)
        for mesh in (line, square):
            for placed in product([Replicate(), *map(Shard, range(len(shape)))], repeat=mesh.ndim):
                wrong += differs(distribute_tensor(whole, mesh, placed))
    for dim in (1, 2):  # a fused weight, of each half of which a process holds a part
        whole = torch.arange(2 * 8 * 16).reshape(2, 8, 16)
        parts = [half.chunk(PROCESSES, dim)[distributed.get_rank()] for half in whole.chunk(2, dim)]
        fused = torch.cat(parts, dim).contiguous()
        placed = [_StridedShard(dim, split_factor=2)]
        wrong += differs(DTensor.from_local(fused, line, placed, shape=whole.shape, stride=whole.stride()))
    return wrong


def differs(tensor):
    copied = torch.equal(local(like(whole(tensor), tensor)), local(tensor))  # of which all take part
    try:
        offset, columns, step = lines_of(tensor, "theta")
    except ValueError as error:
        inner = [placement.dim for placement in tensor.placements if placement.is_shard() and placement.dim > 0]
        return [] if copied and len(set(inner)) > 1 and "far apart" in str(error) else [str(error)]
    held = local(tensor).flatten()
    j = torch.arange(len(held))
    right = torch.equal(held, offset + j // columns * step + j % columns)
    return [] if right and copied else [f"{tuple(tensor.shape)} {tensor.placements}"]


def recorded(out, name):
    """A log that all processes make and one writes, and what it ends with; gone on with in the middle by other shards."""
    path = out / f"{PROCESSES}-{name}.jsonl"
    model = shard(make(), PLACEMENTS[0])
    with zokern.record(optimizer := optimizer_of(model, name), path, model=model):
        steps(model, optimizer)
    distributed.barrier()
    again = shard(make(), PLACEMENTS[1])
    optimizer = zokern.Trajectory.read(path).replay(again)
    distributed.barrier()
    with zokern.record(optimizer, path, resume=True, model=again):
        steps(again, optimizer)
    return state_of(again, optimizer)


def main(out):
    distributed.init_process_group("gloo")
    found = {}
    for how in PLACEMENTS:
        for name in cases(how):
            dtype = CASES[name][2]
            model = shard(make(dtype), how)
            optimizer = optimizer_of(model, name)
            measured = steps(model, optimizer)
            found[how, name] = measured, *state_of(model, optimizer), optimizer.layout.fingerprint()
        found[how] = traffic(how)
    found["places"] = places()
    for name in ("MeZO", "MeZO-SVRG", "ZO-Adam"):
        found["log", name] = recorded(out, name)
    torch.save(found, out / f"{PROCESSES}-{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
