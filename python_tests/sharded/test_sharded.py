"""A sharded model takes the steps of a whole one, bit for bit: every optimizer, over the ways to cut a model."""

import pytest
import sharded_worker as worker
import torch
from processes import run

PLACEMENTS = {2: ["fsdp", "columns", "kept", "tp"], 4: ["fsdp", "columns", "hsdp", "2-d"]}
EVERY = [(n, how, name) for n, of in PLACEMENTS.items() for how in of for name in worker.CASES]


@pytest.fixture(scope="module", params=[2, 4])
def runs(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("sharded")
    ended = run(worker.__file__, request.param, out)
    assert not any(code for code, _ in ended), "\n".join(log[-3000:] for _, log in ended)
    return request.param, [torch.load(out / f"{request.param}-{rank}.pt") for rank in range(request.param)]
