"""Processes of which one is killed are begun again by torchrun, and come from their log to what one comes to that is left alone."""

import json
import os
import subprocess
import sys

import pytest
import restart_worker as worker
import torch
from processes import ROOT
from sharded_worker import make, state_of

import zokern

# what each attempt found in the logs: steps, and whether half of a line came after them
BEGUN = {
    "whole": [[[0, False], [0, False]], [[8, False], [7, False]], [[12, True], [12, False]]],
    "sharded": [[[0, False]], [[7, False]], [[12, False]]],
}


def torchrun(out, case):
    """Two processes, and again, until none is killed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else an attempt may meet the addresses of the one before
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2", worker.__file__, out, case]
    with open(out / "said", "w") as said:
        agent = subprocess.Popen([sys.executable, *command], env=environment, stdout=said, stderr=said)
    try:
        agent.wait(timeout=200)
    finally:
        agent.terminate()  # which ends its workers, too
        agent.wait()
    said = (out / "said").read_text()
    assert agent.returncode == 0, said[-6000:]
    assert "RuntimeWarning" not in said


def alone(out, name):
    """-> (log, weights and state) of one process that is left alone."""
    log, model = out / f"{name}-alone.jsonl", make()
    with zokern.record(optimizer := worker.optimizer_of(model, name), log):
        worker.train(model, optimizer)
    return log, state_of(model, optimizer)


@pytest.fixture(scope="module", params=worker.CASES)
def case(request, tmp_path_factory):
    """-> (name, folder of two processes that were killed twice, [(log, weights and state) that each optimizer comes to if left alone])."""
    out = tmp_path_factory.mktemp("restart")
    torchrun(out, request.param)
    return request.param, out, [alone(out, name) for name in worker.CASES[request.param]]


def test_they_come_to_the_bits_of_one_that_is_left_alone(case):
    _, out, expected = case
    for rank in (0, 1):
        for found, (_, left) in zip(torch.load(out / f"{rank}.pt"), expected, strict=True):
            for mine, theirs in zip(found, left):
                assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_their_logs_are_those_of_one_that_is_left_alone(case):
    name, out, expected = case
    for optimizer, (log, _) in zip(worker.CASES[name], expected):
        mine, theirs = zokern.Trajectory.read(out / f"{optimizer}.jsonl"), zokern.Trajectory.read(log)
        assert list(mine.steps) == list(theirs.steps) and mine.path.read_bytes() == log.read_bytes()
        assert len({tuple(measurements) for measurements, _ in mine.steps}) == worker.STEPS


def test_each_attempt_goes_on_where_the_logs_end(case):
    """Half of a line, as a kill in a write leaves it, is measured again."""
    name, out, _ = case
    begun = [[json.loads((out / f"begun-{attempt}-{rank}").read_text()) for rank in (0, 1)] for attempt in range(3)]
    assert begun == [[each, each] for each in BEGUN[name]]
