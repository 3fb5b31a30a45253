"""zokern finetune in several processes, as torchrun and accelerate launch start them: one folder, one log, the run of one process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import equal, zokern
from processes import run

COMMAND = ["-m", "zokern", "finetune"]


@pytest.fixture
def given(tiny, csv_of):
    options = ["--model", tiny, "--data", csv_of(60), "--eval-data", csv_of(20), "--adapter", "full", "--steps", 6, "--eval-every", 3]
    options += [
        "--save-every",
        2,
        "--lr",
        "1e-3",
        "--eps",
        "1e-2",
        "--max-length",
        16,
        "--device",
        "cpu",
        "--schedule",
        "constant",
        "--q",
        2,
    ]
    return list(map(str, options))


def together(tmp_path, *arguments, code=0):
    """-> what each of two processes says."""
    ended = run([*COMMAND, *map(str, arguments)], 2, tmp_path)
    assert [ended for ended, _ in ended] == [code, code], "\n".join(log[-3000:] for _, log in ended)
    return [log for _, log in ended]


def losses(folder):
    return [entry["loss"] for entry in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in entry]


def test_each_measures_its_share_of_the_directions(given, tmp_path):
    """The folder is that of one process: model, log, trajectory; the first one speaks."""
    one, two = tmp_path / "one", tmp_path / "two"
    zokern("finetune", *given, "--batch-size", 8, "--out", one)
    first, second = together(tmp_path, *given, "--batch-size", 8, "--directions", 2, "--out", two)
    assert "loss" in first and "load with" in first and "load with" not in second
    assert equal(one, two) and losses(one) == losses(two)
    assert (one / "trajectory.jsonl").read_bytes().splitlines()[1:] == (two / "trajectory.jsonl").read_bytes().splitlines()[1:]
    assert json.loads((two / "run.json").read_text())["settings"]["directions"] == 2
    zokern("replay", two, "--step", 6, "--out", tmp_path / "again")  # in one process
    assert equal(two, tmp_path / "again")


def test_each_has_its_part_of_the_batch_and_the_run_is_gone_on_with(given, tmp_path):
    """As one process does with as many rows a step; and a longer run is that of so many steps from the beginning."""
    one, two, long = tmp_path / "one", tmp_path / "two", tmp_path / "long"
    zokern("finetune", *given, "--batch-size", 8, "--out", one)
    together(tmp_path, *given, "--batch-size", 4, "--out", two)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    together(tmp_path, "--resume", two, "--steps", 9)
    together(tmp_path, *given, "--batch-size", 4, "--steps", 9, "--out", long)
    assert equal(two, long)


REFUSED = {
    "number": (["--directions", "3"], "--directions 3 of 2 processes (torchrun's): pass a number that divides them"),
    "folder": ([], "exists and is not empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_one_refuses_all_do(case, given, tmp_path):
    options, said = REFUSED[case]
    out = tmp_path / "out"
    if case == "folder":
        out.mkdir()
        (out / "mine").touch()
    for log in together(tmp_path, *given, *options, "--out", out, code=2):
        assert said in log
    assert sorted(tmp_path.glob("out/*")) == ([out / "mine"] if case == "folder" else [])


def test_directions_are_not_of_derivatives_nor_of_one_process(given, tmp_path):
    given = [*given[: given.index("--q")], "--out", tmp_path / "out"]
    assert "--directions 2 of 1 processes" in zokern("finetune", *given, "--directions", 2, code=2)
    plain = given[: given.index("--eps")] + given[given.index("--eps") + 2 :]
    said = zokern("finetune", *plain, "--directions", 2, "--optimizer", "forward-gradient", code=2)
    assert "--directions 2 with --optimizer forward-gradient, which takes derivatives" in said


def test_one_that_is_interrupted_stops_all_after_the_same_step(given, tmp_path):
    """And the run is gone on with to the bits of one that was not."""
    one, two = tmp_path / "one", tmp_path / "two"
    zokern("finetune", *given, "--batch-size", 8, "--steps", 300, "--out", one)
    environment = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    command = [sys.executable, *COMMAND, *given, "--batch-size", "8", "--directions", "2", "--steps", "300", "--out", str(two)]
    begun = [
        subprocess.Popen(command, env={**environment, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        for rank in "01"
    ]
    try:
        log = two / "trajectory.jsonl"
        while not (log.exists() and log.read_bytes().count(b"\n") > 4):
            assert begun[0].poll() is None
            time.sleep(0.01)
        begun[1].send_signal(signal.SIGINT)
        assert [process.wait(timeout=120) for process in begun] == [130, 130]
    finally:
        for process in begun:
            process.kill()
    assert log.read_bytes().count(b"\n") < 300
    together(tmp_path, "--resume", two)
    assert equal(one, two)
