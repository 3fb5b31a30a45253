"""Processes of which one is killed are begun again by torchrun, and come from their log to what one comes to that is left alone."""

import os
import subprocess
import sys

import pytest
import restart_worker as worker
import torch
from processes import ROOT, run
from sharded_worker import make, state_of

import zokern


def torchrun(out, name):
    """Two processes, and again, until none is killed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else an attempt may meet the addresses of the one before
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2", worker.__file__, out, name]
    with open(out / "said", "w") as said:
        agent = subprocess.Popen([sys.executable, *command], env=environment, stdout=said, stderr=said)
    try:
        agent.wait(timeout=200)
    finally:
        agent.terminate()  # which ends its workers, too
        agent.wait()
    said = (out / "said").read_text()
    assert agent.returncode == 0, said[-6000:]
    assert said.count("exitcode: -9") == 2 and "Warning" not in said


def alone(out, name):
    """-> (log, weights and state) of one process that is left alone."""
    log, model = out / "alone.jsonl", make()
    with zokern.record(optimizer := worker.optimizer_of(model, worker.CASES[name][0]), log):
        worker.train(model, optimizer)
    return log, state_of(model, optimizer)


@pytest.fixture(scope="module", params=worker.CASES)
def case(request, tmp_path_factory):
    """-> (folder of two processes that were killed twice, and what one comes to that is left alone: its log, its weights and state)."""
    out = tmp_path_factory.mktemp("restart")
    torchrun(out, request.param)
    return out, *alone(out, request.param)


def came_to(out, expected):
    """Whether both processes have the expected weights and state."""
    for rank in (0, 1):
        for mine, theirs in zip(torch.load(out / f"{rank}.pt"), expected):
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_they_come_to_the_bits_of_one_that_is_left_alone(case):
    out, _, expected = case
    came_to(out, expected)


def test_their_log_is_that_of_one_that_is_left_alone(case):
    out, log, _ = case
    mine, theirs = zokern.Trajectory.read(out / "log.jsonl"), zokern.Trajectory.read(log)
    assert list(mine.steps) == list(theirs.steps) and (out / "log.jsonl").read_bytes() == log.read_bytes()
    assert len({tuple(measurements) for measurements, _ in mine.steps}) == worker.STEPS


def test_each_attempt_goes_on_where_the_log_ends(case):
    out, *_ = case
    begun = [[int((out / f"begun-{attempt}-{rank}").read_text()) for rank in (0, 1)] for attempt in range(3)]
    assert begun == [[0, 0], [7, 7], [12, 12]]


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
    log, expected = alone(tmp_path, "MeZO")
    lines = log.read_bytes().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_bytes(b"".join(lines[:16]) + lines[16][: len(lines[16]) // 2])
    ended = run(worker.__file__, 2, tmp_path, "MeZO")
    assert not any(code for code, _ in ended), "\n".join(said[-3000:] for _, said in ended)
    assert [(tmp_path / f"begun-0-{rank}").read_text() for rank in (0, 1)] == ["15", "15"]
    came_to(tmp_path, expected)
    assert (tmp_path / "log.jsonl").read_bytes() == log.read_bytes()
