"""torch.distributed.checkpoint saves a run, and another number of processes goes on with it, bit for bit."""

import checkpoint_worker as worker
import pytest
import torch
from processes import results

LOADS = {1: "whole", 2: "columns", 4: "fsdp"}


def found(out, processes, what, how):
    return results(worker.__file__, processes, out, what, how, name=f"{what}-{processes}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """-> (folder, what the run of two processes came to that was saved in its middle)."""
    out = tmp_path_factory.mktemp("checkpoints")
    return out, found(out, 2, "save", "fsdp")[0]


@pytest.fixture(scope="module", params=[*LOADS, "full"])
def gone_on(request, saved):
    out, expected = saved
    if request.param == "full":
        return expected, found(out, 2, "full", "fsdp")
    return expected, found(out, request.param, "load", LOADS[request.param])


@pytest.mark.parametrize("name", worker.CASES)
def test_other_processes_go_on_with_it(name, gone_on):
    expected, found = gone_on
    for each in found:
        for mine, theirs in zip(each[name], expected[name]):
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
