"""A run that is recorded, with its weights after every step."""

import copy

import pytest
import torch
from trajectory_cases import Net, optimizer_of, train, weights

from zokern import record


@pytest.fixture
def recorded(tmp_path):
    """(name, dtype, steps, ...) -> (path of the log, the weights after each step, the optimizer)."""

    def run(name="MeZO", dtype=torch.float32, steps=12, groups=2, nan_at=None, every=1, after=None, **settings):
        net = Net(dtype)
        optimizer = optimizer_of(name, net, groups, **settings)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        path = tmp_path / "run.jsonl"
        before = weights(net)
        with record(optimizer, path, {"by": "a test"}, every=every) as recorder:
            taken = train(optimizer, net, range(steps), scheduler, nan_at, after and (lambda step: after(step, optimizer, net, recorder)))
        return path, [before, *taken], optimizer

    return run


@pytest.fixture
def states_equal():
    """Whether two optimizers hold the same state and counts, bit for bit."""

    def equal(a, b):
        a, b = (copy.deepcopy(o.state_dict()) for o in (a, b))
        for group in (*a["param_groups"], *b["param_groups"]):
            group.pop("initial_lr", None)
            group.pop("lr")  # a scheduler's, which is past the last step
        return _alike(a, b)

    return equal


def _alike(a, b):
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        return torch.equal(torch.nan_to_num(a.double()), torch.nan_to_num(b.double()))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return a == b
