"""Standard output that is full, or that nobody reads: one line at most, an exit code, and files that are whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

from command_line import equal  # noqa: E402
from command_line import zokern as within  # noqa: E402

from zokern.cli.streams import fail, tell  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
FULL = "error: standard output cannot be written (No space left on device): send it elsewhere; files are whole\n"


# One process imports what takes long; each of its children runs the command on other streams, and ends as Python ends.
ON_STREAMS = """
import json, os, sys, warnings
import torch, transformers, accelerate, peft, sklearn.metrics, matplotlib.figure
from zokern.__main__ import main
from zokern.finetune import report
report.draw = lambda *given: given[-1].touch()  # which would take half of the time
warnings.filterwarnings("ignore", ".*multi-threaded, use of fork")  # from python 3.12 on
read, unread = os.pipe()
os.close(read)
full = os.open("/dev/full", os.O_WRONLY)
for case, (fd, place, error, given) in enumerate(json.loads(sys.argv[1])):
    if not os.fork():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(error, os.O_WRONLY | os.O_CREAT), 2)
        if place == "closed":
            os.close(fd)
            setattr(sys, {1: "stdout", 2: "stderr"}[fd], None)  # as Python begins then
        else:
            os.dup2({"full": full, "unread": unread}[place], fd)
        sys.argv = ["zokern", *given]
        main()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_an_interrupt_before_the_command_has_begun_is_one_as_ever(monkeypatch, capsys):
    def making(**given):  # typer makes the command of its parameters first
        raise KeyboardInterrupt

    monkeypatch.setattr("zokern.cli.app", making)
    with pytest.raises(SystemExit) as end:
        from zokern.__main__ import main

        main()
    assert end.value.code == 130 and "Traceback" not in capsys.readouterr().err


def test_what_cannot_be_printed_ends_nothing(few, tmp_path):
    """Runs go on to their end, and all else that there is to do is done; the exit code tells."""
    within("finetune", *few, "--lr", "1e-2", "--out", tmp_path / "whole")
    log = tmp_path / "whole" / "trajectory.jsonl"
    run = [*few, "--lr", "1e-2", "--out"]
    cases = [  # descriptor, where it leads, command, exit code, what is said on standard error
        (1, "full", ["finetune", *run, tmp_path / "a"], 2, FULL),
        (1, "unread", ["finetune", *run, tmp_path / "b"], 141, ""),
        (2, "full", ["finetune", *run, tmp_path / "c"], 0, ""),
        (1, "closed", ["info", log], 0, ""),
        (2, "closed", ["info", tmp_path / "nowhere.jsonl"], 2, ""),
        (1, "full", ["info", log], 2, FULL),
        (1, "unread", ["info", log], 141, ""),
        (1, "unread", ["--help"], 141, ""),
        (1, "full", ["--version"], 2, FULL),
        (1, "full", ["info", tmp_path / "nowhere.jsonl"], 2, f"error: '{tmp_path / 'nowhere.jsonl'}' is not there: pass"),
    ]
    given = [(fd, place, str(tmp_path / f"{i}.err"), list(map(str, given))) for i, (fd, place, given, *_) in enumerate(cases)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", ON_STREAMS, json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(code) for *_, code, _ in cases], done.stderr
    for i, (fd, place, what, _, message) in enumerate(cases):
        said = (tmp_path / f"{i}.err").read_text()
        assert "Traceback" not in said and "ignored" not in said, said
        last = said.replace("\r", "\n").splitlines()[-1:]
        assert fd == 2 or (last[0].startswith(message.strip()) if message else what[0] == "finetune" or not last), (what, place, said)
    for name in "abc":
        assert equal(tmp_path / name, tmp_path / "whole")
        assert json.loads((tmp_path / name / "metrics.json").read_text())["steps"] == 4


def test_a_terminal_obeys_nothing_that_a_file_says(capsys):
    tell("a\x1b[2Jb\nc\ud800 é")
    assert capsys.readouterr().out == "a\\x1b[2Jb\nc\\ud800 é\n"
    with pytest.raises(Exception) as end:
        fail("a\nb\x07")
    assert end.value.exit_code == 2 and capsys.readouterr().err == "error: a\\nb\\x07\n"


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "x/" * 3000])
@pytest.mark.parametrize("option", ["--model", "--data", "--out", "--resume", "--config"])
def test_names_that_no_file_can_have(tmp_path, monkeypatch, option, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = within("finetune", option, f"./{name}.json" if option == "--config" else name, code=2)
    assert error.startswith("error: ") and error.count("\n") == 1 and os.listdir() == []
