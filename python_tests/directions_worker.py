"""One of several processes that share out the points of a step: python directions_worker.py OUT, under torchrun's environment."""

import os
import sys
from pathlib import Path

import torch
from sharded_worker import make, shard, state_of
from torch import distributed

import zokern

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
STEPS = 6

# name -> (optimizer, its settings, dtype of the model)
CASES = {
    "MeZO": ("mezo", {}, torch.float32),
    "MeZO, 4 directions": ("mezo", {"q": 4, "weight_decay": 0.1}, torch.float32),
    "MeZO, 3 directions, one-sided": ("mezo", {"q": 3, "estimator": "one-sided", "noise": "rademacher"}, torch.float32),
    "MeZO, deferred": ("mezo", {"q": 3, "defer": True}, torch.float32),
    "MeZO, blocks, sparse": ("mezo", {"blocks": True, "sparsity": 0.5}, torch.float32),
    "MeZO, bfloat16, in place": ("mezo", {"q": 2, "perturbation": "in-place"}, torch.bfloat16),
    "MeZO, bfloat16, copied": ("mezo", {"q": 3, "perturbation": "copied"}, torch.bfloat16),
    "MeZO, bfloat16, streamed": ("mezo", {"q": 3, "perturbation": "streamed"}, torch.bfloat16),
    "MeZO-SVRG": ("mezo-svrg", {"q": 3, "lr_full": 2e-3}, torch.float32),
    "MeZO-SVRG, copied anchor": ("mezo-svrg", {"q": 3, "lr_full": 2e-3, "anchor": "copy"}, torch.float32),
    "ZO-Adam": ("zo-adam", {"q": 2}, torch.float32),
    "ZO-conservative": ("zo-conservative", {}, torch.float32),
    "ES": ("es", {"population": 5, "sigma": 1e-2}, torch.float32),
    "ES, mirrored": ("es", {"population": 8, "sigma": 1e-2, "mirrored": True, "shaping": "ranks"}, torch.float32),
    "FZOO": ("fzoo", {"q": 4}, torch.float32),
    "AdaMeZO": ("adamezo", {"q": 2}, torch.float32),
}


def rows_of(rank, ranks):
    ids = torch.arange(80).reshape(8, 10) * 7 % 11
    return ids[rank::ranks]


def loss_of(model, ids, full=False):
    ids = ids if full else ids[: len(ids) // 2]
    logits = model(ids)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def optimizer_of(model, name, **more):
    cls, settings, _ = CASES[name]
    settings, kind = {**settings, **more}, zokern.optim.named(cls)
    if settings.get("perturbation") == "streamed":
        settings["perturbation"] = zokern.Streamed(model)
    if settings.get("blocks"):
        settings["blocks"] = [list(model.blocks.parameters()), [model.embedding.weight, model.scale, model.deep]]
    if "eps" in kind.declared():
        settings = {"eps": 1e-2, **settings}
    return kind(model.named_parameters(), **{"lr": 1e-3, "seed": 7, **settings})


def run(model, optimizer, closure=lambda f: f, ids=None):
    """-> (the measurements of each step, how often each of its two losses was evaluated)."""
    ids, measured, calls = rows_of(0, 1) if ids is None else ids, [], [0, 0]

    def count(full):
        calls[full] += 1
        return loss_of(model, ids, full)

    for _ in range(STEPS):
        closures = [closure(lambda: count(False))]
        if optimizer.full_batch_due:
            closures.append(closure(lambda: count(True)))
        optimizer.step(*closures)
        measured.append([float(x) for x in optimizer.measurements])
    optimizer.flush()
    return measured, calls


class Counted:
    """Counts the collectives of this package."""

    def __enter__(self):
        self.gather, self.numbers = distributed.all_gather, []
        distributed.all_gather = lambda every, mine: (self.numbers.append(mine.numel()), self.gather(every, mine))
        return self

    def __exit__(self, *error):
        distributed.all_gather = self.gather


def refused(act):
    try:
        act()
    except (ValueError, RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def main(out):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = {}
    for name, (_, _, dtype) in CASES.items():
        model = make(dtype)
        optimizer = optimizer_of(model, name)
        with Counted() as counted:
            measured, calls = run(model, optimizer, lambda f: zokern.DistributedClosure(f, directions=PROCESSES))
        found[name] = dict(measured=measured, calls=calls, state=state_of(model, optimizer), collectives=counted.numbers)
    if PROCESSES == 4:
        for name in ("MeZO, 4 directions", "ES"):
            model, ids = make(), rows_of(RANK % 2, 2)
            optimizer = optimizer_of(model, name)
            both = lambda f: zokern.DistributedClosure(lambda: (f(), 5.0), directions=2)  # noqa: E731
            measured, calls = run(model, optimizer, both, ids)
            found[name, "mixed"] = dict(measured=measured, calls=calls, state=state_of(model, optimizer))
        model = shard(make(), "hsdp")
        optimizer = optimizer_of(model, "MeZO, 4 directions")
        measured, calls = run(model, optimizer, lambda f: zokern.DistributedClosure(f, directions=2))
        found["hsdp"] = dict(measured=measured, calls=calls, state=state_of(model, optimizer))
    model = make()
    log = out / f"{PROCESSES}-{RANK}.jsonl"
    with zokern.record(optimizer := optimizer_of(model, "MeZO, 4 directions"), log):
        run(model, optimizer, lambda f: zokern.DistributedClosure(f, directions=PROCESSES))
    found["recorded"] = dict(state=state_of(model, optimizer))

    model, whole = make(), lambda f: zokern.DistributedClosure(f, directions=PROCESSES)
    found["refused"] = {
        "number": refused(lambda: zokern.DistributedClosure(lambda: 0.0, directions=3)),
        "derivatives": refused(lambda: run(model, zokern.ForwardGradient(model.named_parameters()), whole)),
        "seed": refused(lambda: run(model, optimizer_of(model, "MeZO", seed=RANK), whole)),
        "q": refused(lambda: run(model, optimizer_of(model, "MeZO", q=1 + RANK), whole)),
        "lr": refused(lambda: run(model, optimizer_of(model, "MeZO", lr=1e-3 * (1 + RANK)), whole)),
        "directions": refused(
            lambda: run(
                model, optimizer_of(model, "MeZO"), lambda f: zokern.DistributedClosure(f, directions=1 if RANK == 1 else PROCESSES)
            )
        ),
        "layout": refused(lambda: run(model, zokern.MeZO(list(model.parameters())[RANK:]), whole)),
        "cut": refused(lambda: run(cut := shard(make(), "fsdp"), optimizer_of(cut, "MeZO"), whole)),
    }
    torch.save(found, out / f"{PROCESSES}-{RANK}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
