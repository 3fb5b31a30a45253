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


ENDS = ("limit:0", "limit:100", "killed:0", "tmpfs:8", "tmpfs:60")  # KiB: nothing; no model; no step; no optimizer.pt
ALONE = ("unshare", "--map-root-user", "--mount")


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory, tiny, sentences):
    """end -> what cut_short.py found of it, of those that this machine can make, and of "whole:0"."""
    folder = tmp_path_factory.mktemp("ends")
    table = folder / "80.csv"
    table.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in sentences(80))]) + "\n")
    given = [
        "--model",
        tiny,
        "--data",
        table,
        "--batch-size",
        4,
        "--accumulate",
        2,
        "--steps",
        25,
        "--save-every",
        5,
    ]  # 8 of 64 rows a step
    given += ["--adapter", "lora", "--optimizer", "zo-adam", "--lr", "1e-2", "--max-length", 32, "--device", "cpu", "--eval-every", 10]
    alone = ALONE if not subprocess.run([*ALONE, "mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode else ()
    ends = [end for end in ("whole:0", *ENDS) if alone or not end.startswith("tmpfs")]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [*alone, sys.executable, Path(__file__).with_name("cut_short.py"), folder, *ends, "--", *given]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert [of["end"] for of in found] == ends, done.stderr
    return folder, {of["end"]: of for of in found}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_is_cut_short_tells_and_goes_on_as_if_it_had_not_been(end, cut_short):
    """A full disk is one line; where all 25 steps are done, in the middle of an epoch, none is made."""
    folder, ends = cut_short
    if end not in ends:
        pytest.skip(f"no tmpfs of its own for this process: {' '.join(ALONE)} mount is refused")
    whole, found, run = ends["whole:0"], ends[end], folder / end.replace(":", "-") / "run"
    (code, error), (again, told) = found["runs"]
    assert again == 0, told
    assert found["found"] == whole["found"] and len(whole["runs"]) == 1 and len(whole["found"]) == 2
    if end == "killed:0":
        assert code == -signal.SIGKILL and "metrics.json" not in found["left"]
        return
    assert code == 2 and re.fullmatch(rf"error: '{run}\S*' cannot be written \(.+; [\d.]+ MiB are free there\): make room there.*", error)
    if end in ("limit:0", "tmpfs:8"):
        assert found["left"] is None and error.endswith("make room there")
    else:
        assert {"run.json", "initial.safetensors"} <= set(found["left"]) and error.endswith(f", then zokern finetune --resume {run}")


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


def test_a_run_that_is_interrupted_as_its_folder_is_filled_can_begin_again(few, tmp_path, monkeypatch):
    """After a Ctrl-C behind each of the first moves the same command does what it would have done, also in this process."""
    plain, moves, last = Path.replace, 0, -1

    def interrupted(self, target):
        nonlocal moves
        moves += Path(target).parent.name == "new"
        plain(self, target)
        if moves == last:
            moves = 10
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Path, "replace", interrupted)
    run = tmp_path / "run"
    zokern("finetune", *few)
    for given, most in (["finetune", *few, "--out", tmp_path / "new"], 2), (["replay", run, "--out", tmp_path / "new"], 3):
        for at in range(1, most + 1):
            moves, last = 0, at
            zokern(*given, code=130)
            again = ["finetune", "--resume", tmp_path / "new"] if (tmp_path / "new" / "run.json").exists() else given
            zokern(*again)
            assert equal(run, tmp_path / "new") and not list((tmp_path / "new").glob(".*"))
            shutil.rmtree(tmp_path / "new")


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
