"""The folder of a run, whatever happens to the process or the disk: nothing that is good goes, and each fault is one line."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

from command_line import equal, zokern  # noqa: E402

from zokern.finetune import output  # noqa: E402
from zokern.tasks import HeadReader  # noqa: E402

ROOT = Path(__file__).parents[2]


def contents(folder):
    """{path: bytes} of all files."""
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def python(*arguments, before=()):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    given = [*before, sys.executable, *map(str, arguments)]
    return subprocess.run(given, env=environment, capture_output=True, text=True, timeout=300)


# It is killed when it is about to save the model, the last checkpoint being there.
KILLED = """
import os, signal, sys
from zokern.cli import app
from zokern.finetune import output
output.whole = lambda path, begin=output.whole: os.kill(os.getpid(), signal.SIGKILL) if (path / "log.jsonl").exists() else begin(path)
app(sys.argv[1:])
"""


def test_a_run_killed_after_its_last_checkpoint_makes_no_step_more(tiny, csv_of, tmp_path):
    """25 steps of 8 of 64 rows: in the middle of an epoch."""
    given = ["--model", tiny, "--data", csv_of(80), "--batch-size", 4, "--accumulate", 2, "--steps", 25, "--save-every", 5]
    given += ["--max-length", 32, "--device", "cpu", "--lr", "1e-2", "--schedule", "constant", "--eval-every", 10]
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert python("-c", KILLED, "finetune", *given, "--out", run).returncode == -signal.SIGKILL
    assert (run / "checkpoints" / "checkpoint-25" / "SHA256SUMS").exists() and not (run / "metrics.json").exists()
    zokern("finetune", "--resume", run)
    zokern("finetune", *given, "--out", whole)
    assert equal(run, whole) and (run / "trajectory.jsonl").read_bytes() == (whole / "trajectory.jsonl").read_bytes()
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (run, whole))
    timed = {"train_seconds", "seconds", "steps_per_second", "peak_mib", "out", "load"}
    assert {name: found[name] for name in found if name not in timed} == {name: expected[name] for name in found if name not in timed}
    assert found["steps"] == 25 and 0 < found["train_seconds"]


SIZES = {"tmpfs": (8, 60), "limit": (0, 100)}  # KiB: before the first step; a checkpoint's torch.save, and the model at the end


@pytest.mark.parametrize("kind", SIZES)
def test_on_a_disk_that_is_full_a_run_is_one_line_and_goes_on_with_room(kind, few, tmp_path):
    """A real disk that is too small, where a process may make one; everywhere, files that may not grow."""
    alone = ["unshare", "--map-root-user", "--mount"] if kind == "tmpfs" else []
    if alone and subprocess.run([*alone, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("this process may not mount a tmpfs in a namespace of its own (unshare --map-root-user --mount)")
    given = [*few[:-2], "--adapter", "lora", "--optimizer", "zo-adam", "--lr", "1e-2", "--save-every", "2"]
    (tmp_path / "disks").mkdir()
    done = python(Path(__file__).with_name("full_disk.py"), kind, tmp_path / "disks", *SIZES[kind], "--", *given, before=alone)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert [of["size"] for of in found] == list(SIZES[kind]), done.stderr
    begun = 0
    for of in found:
        (code, error), *others = of["runs"]
        run = tmp_path / "disks" / str(of["size"]) / "run"
        assert code == 2 and re.fullmatch(
            rf"error: '{run}\S*' cannot be written \(.+; [\d.]+ MiB are free there\): make room there.*", error
        )
        assert [code for code, _ in others] == [0], others
        if of["left"] is None:
            assert error.endswith("make room there")
        else:
            begun += 1
            assert {"run.json", "initial.safetensors"} <= set(of["left"]) and error.endswith(f", then zokern finetune --resume {run}")
    zokern("finetune", *given, "--out", tmp_path / "run")
    assert 0 < begun < len(found) and {of["model"] for of in found} == {output._sha256(tmp_path / "run" / "model.safetensors")}


@contextmanager
def no_file_grows():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_there_stays_where_nothing_can_be_written(few, tmp_path):
    """An earlier run that was to be replaced, and a run that was to go on: no checkpoint is blamed for the disk."""
    run = tmp_path / "run"
    zokern("finetune", *few, "--lr", "1e-3", "--save-every", "3")
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    before = contents(run)
    steps = {Path("trajectory.jsonl"): before[Path("trajectory.jsonl")]}
    for given in (["--resume", run], [*few, "--overwrite"], [*few, "--out", tmp_path / "new" / "run"], ["--resume", run, "--steps", "6"]):
        with no_file_grows():
            error = zokern("finetune", *given, code=2).rpartition("\r")[2].splitlines()[-1]
        assert error.startswith("error: '") and "cannot be written (File too large; " in error and "checkpoint-" not in error
        assert contents(run) | steps == before and not (tmp_path / "new").exists()  # what follows checkpoint-3 is made again
    model = before[Path("model.safetensors")]
    zokern("finetune", "--resume", run)
    assert (run / "model.safetensors").read_bytes() == model


def test_a_folder_is_one_process_s_alone(few, tmp_path):
    """A new one, too; what a process that was killed has left is nobody's."""
    run, new = tmp_path / "run", tmp_path / "new"
    zokern("finetune", *few)
    given = [["finetune", *few, "--out", new], ["replay", run, "--out", new]]
    with output.locked(new):
        for command in given:
            assert f"error: another process writes into {str(new)!r}: wait" in zokern(*command, code=2)
    assert not new.exists()
    new.mkdir()
    (new / ".zokern-lock").touch()
    (new / ".zokern-draft.4711").mkdir()
    (new / ".zokern-draft.4711" / "model.safetensors").write_text("torn")
    (new / ".zokern-draft.run.json.4711").touch()
    zokern(*given[1])
    assert equal(new, run) and not [name for name in os.listdir(new) if name.startswith(".")]
    assert zokern(*given[1], code=2).endswith(f"error: --out {str(new)!r} exists and is not empty: pass another folder\n")


def test_a_run_begins_with_its_own_parameters(few, tmp_path):
    """Others, as a process leaves them that is killed while it replaces an earlier run, are refused."""
    run = tmp_path / "run"
    zokern("finetune", *few)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.json").unlink()
    initial = run / "initial.safetensors"
    held = initial.read_bytes()
    initial.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    before = contents(run)
    for command in (["finetune", "--resume", run], ["replay", run, "--out", tmp_path / "new"]):
        assert f"{str(initial)!r} is not the file that the run began with: restore it" in zokern(*command, code=2)
        assert contents(run) == before and not (tmp_path / "new").exists()
    initial.unlink()
    assert "cannot be read" in zokern("finetune", "--resume", run, code=2)
    initial.write_bytes(held)
    assert "no checkpoint is left in" in zokern("finetune", "--resume", run)


def test_the_log_grows_and_other_checkpoints_are_left_alone(few, tmp_path, monkeypatch):
    run, files, plain = tmp_path / "run", set(), HeadReader.loss

    def seen(self, model, batch):
        if (run / "log.jsonl").exists():
            files.add((run / "log.jsonl").stat().st_ino)
        return plain(self, model, batch)

    monkeypatch.setattr(HeadReader, "loss", seen)
    zokern("finetune", *few, "--steps", "8", "--eval-every", "1", "--save-every", "3")
    assert len(files) == 1
    shutil.copytree(run / "checkpoints" / "checkpoint-8", run / "checkpoints" / "checkpoint-best")
    os.utime(run / "checkpoints" / "checkpoint-best", (0, 0))
    zokern("finetune", "--resume", run, "--steps", "12")
    assert {"checkpoint-12", "checkpoint-best"} < set(os.listdir(run / "checkpoints"))
