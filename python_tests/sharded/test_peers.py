"""What cannot work with a sharded model is an error in every process, with its cure, and nobody waits for ever."""

import peers_worker as worker
import pytest
from processes import results

REFUSED = {
    "after_a_forward": "is a copy that fully_shard gathered for a forward pass and that is gone with the next one: make the optimizer of",
    "unplaced": "theta[0] is a DTensor of shape (4, 6) placed as (Partial(sum),), which does not say which elements each process holds",
    "forward_gradient": "sharded parameters (DTensor) have no derivatives in forward mode: pass zokern.MeZO",
    "anchor": 'of MeZOSVRG pass anchor="replay", or perturbation=zokern.Copied()',
    "hybrid": "the model's parameters are sharded (DTensor), and Hybrid's two halves would be of copies of them that are gone",
    "streamed": "perturbation=zokern.Streamed(model) with sharded parameters (DTensor)",
    "spans": "spans is given with a DTensor, which says itself which elements it holds",
    "seed": "process 1 and process 0 hold shards of one model, and differ in param_groups[0] (seed=4 and 3): make it with the",
    "lr": "differ in param_groups[0] (lr=0.002 and 0.001)",
    "parameters": "process 1 and process 0 hold shards of one model, and differ in parameters, layout (",
    "optimizer": "differ in type (ZOSign and MeZO)",
    "batch": "differ in losses: let step take zokern.DistributedClosure(closure), which averages them, or let all see the same rows",
    "seed, averaged": "the optimizer of process 1 differs from that of process 0 in param_groups[0] (seed=4 and 3)",
    "whole": "process 1 has the parameters whole, of which other processes hold shards (DTensor), and its shard is missing",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("peers")
    return results(worker.__file__, 2, out)


@pytest.mark.parametrize("case", REFUSED)
def test_each_process_says_what_is_wrong(case, found):
    for each in found:
        assert REFUSED[case] in (each[case] or "nothing was refused")


def test_and_what_is_right_is_not_refused(found):
    assert [each["fine"] for each in found] == [None, None]
