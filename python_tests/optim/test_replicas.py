"""Two processes in a plain loop: those that come apart say so at once, those that need not be told are not, and nobody waits."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import replicas_worker
import torch

from zokern.optim import replicas

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("replicas")
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, replicas_worker.__file__, out], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


def apart(one, other):
    return any(not torch.equal(a, b) for a, b in zip(one, other))


DIFFER = {
    "own batches": "losses",
    "wrapped": "losses",  # by DistributedDataParallel, which averages gradients alone
    "ForwardGradient": "losses",
    "other seeds": "seed, weights",
    "other weights": "weights",
}


@pytest.mark.parametrize("case", DIFFER)
def test_processes_that_come_apart(case, found):
    for rank, (_, said) in enumerate(each[case] for each in found):
        assert len(said) == 1 and "let step take zokern.DistributedClosure(closure)" in said[0]
        assert f"process {rank} and process {1 - rank} differ in their {DIFFER[case]} at step 0" in said[0]
    assert apart(found[0][case][0], found[1][case][0])


@pytest.mark.parametrize("case", ["averaged", "adam averaged", "the same batch"])
def test_processes_that_stay_together(case, found):
    (one, said), (other, heard) = (each[case] for each in found)
    assert not said and not heard and not apart(one, other)
    assert apart(one, list(replicas_worker.net().parameters()))


def test_one_process_may_train_and_replay_alone(found):
    assert not apart(*found[0]["replayed by one"])


@pytest.mark.parametrize("case", ["FSDP False", "FSDP True"])
def test_what_is_sharded_and_does_not_say_how_is_refused_by_name(case, found):
    for each in found:
        assert "shard of FullyShardedDataParallel" in each[case] and "torch.distributed.fsdp.fully_shard (FSDP2)" in each[case]


def test_a_note_of_an_earlier_attempt_is_none(monkeypatch):
    """torchrun starts processes again with the store that they had: what was left before this process began is not of its run."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(replicas, "_store", lambda: store)
    replicas.leave("one", {"step": 3})
    assert replicas.find("one") == {"step": 3} and replicas.find("other") is None
    yesterday = time.time() - 86400
    monkeypatch.setattr(replicas.time, "time", lambda: yesterday)
    replicas.leave("one", {"step": 2})
    assert replicas.find("one") is None
