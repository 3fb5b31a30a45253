"""A run's record as a configuration, more steps for a run that is done, and the best of its steps."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

from command_line import equal, zokern  # noqa: E402

from zokern import Trajectory  # noqa: E402
from zokern.tasks import HeadReader  # noqa: E402

CONSTANT = ["--schedule", "constant"]


def contents(folder):
    """{path: bytes} of all files."""
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def of(run, name="metrics.json"):
    return json.loads((run / name).read_text())


def rates(run):
    """The learning rate of every step."""
    trajectory = Trajectory.read(run / "trajectory.jsonl")
    found, lr = [], trajectory.header["groups"][0]["lr"]
    for step in trajectory.steps:
        lr = step.changes.get("lr", lr)
        found.append(lr)
    return found


def test_the_record_of_a_run_is_a_configuration(few, tmp_path, monkeypatch):
    run = tmp_path / "run"
    more = ["--adapter", "lora", "--lr", "1e-3", "--optimizer", "zo-adam", "--betas", "0.5,0.25", "--amsgrad"]
    zokern("finetune", *few, *more)
    before = contents(run)
    zokern("finetune", "--config", run / "run.json", "--out", tmp_path / "again")
    assert equal(run, tmp_path / "again") and contents(run) == before
    first, second = (of(folder, "run.json")["settings"] for folder in (run, tmp_path / "again"))
    assert {name for name in first if first[name] != second[name]} == {"out"}
    monkeypatch.chdir(tmp_path)
    zokern("finetune", "--config", "run/run.json", "--steps", "1")
    assert of(tmp_path / "zokern-finetune")["steps"] == 1 and contents(run) == before
    message = f"--config {run / 'run.json'} is the record of a run, for finetune: pass the run's folder, {run}, as --model"
    assert message in zokern("evaluate", "--config", run / "run.json", code=2)


@pytest.mark.parametrize(
    "given, steps",
    [
        (["--adapter", "lora", "--lr", "1e-2"], (5, 9)),  # the second epoch ends after eight
        (["--optimizer", "zo-adam", "--lr", "1e-3", "--save-every", "3"], (4, 7)),
        (["--optimizer", "mezo-svrg", "--lr", "1e-3", "--q", "3"], (4, 7)),
        (["--defer", "--dtype", "bfloat16", "--adapter", "head", "--head", "probe", "--lr", "1e-2"], (4, 6)),
        (["--optimizer", "hybrid", "--split", "intra:1:0.5", "--lr", "1e-3", "--fo-lr", "1e-3"], (4, 7)),
    ],
)
def test_a_longer_run_is_the_run_of_so_many_steps(few, tmp_path, given, steps):
    """The same weights and the same log, where the schedule is constant."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    zokern("finetune", *few, *given, *CONSTANT, "--steps", steps[0])
    said = zokern("finetune", "--resume", run, "--steps", steps[1])
    assert "learning rate is that of" not in said
    zokern("finetune", *few, *given, *CONSTANT, "--steps", steps[1], "--out", whole)
    assert equal(run, whole)
    if "hybrid" not in given:
        assert (run / "trajectory.jsonl").read_bytes() == (whole / "trajectory.jsonl").read_bytes()
    found, expected = of(run), of(whole)
    for name in ("steps", "forwards", "backwards", "before", "after", "test", "skipped"):
        assert found[name] == expected[name]
    record = of(run, "run.json")
    assert record["settings"]["steps"] == steps[1] and record["extended"] == [steps[0]]
    zokern("evaluate", "--model", run)


@pytest.mark.parametrize("optimizer", ["mezo", "mezo-svrg"])
def test_with_another_schedule_the_rest_is_that_of_all_steps(few, tmp_path, optimizer):
    """Linear over four steps, and then as it is over eight from the fifth on."""
    run = tmp_path / "run"
    zokern("finetune", *few, "--lr", "0.008", "--optimizer", optimizer)
    said = zokern("finetune", "--resume", run, "--steps", "8")
    assert "from step 5 on the learning rate is that of --schedule linear over 8 steps; up to there it was as over 4" in said
    assert rates(run) == pytest.approx([0.008, 0.006, 0.004, 0.002, 0.004, 0.003, 0.002, 0.001])
    zokern("replay", run, "--out", tmp_path / "again")
    assert equal(run, tmp_path / "again")


def test_a_schedule_scales_both_halves_of_a_longer_hybrid(few, tmp_path):
    given = ["--optimizer", "hybrid", "--split", "depth:0", "--zo", "none", "--fo-lr", "0.008", "--fo", "sgd"]
    zokern("finetune", *few, *given, "--eval-every", "1")
    zokern("finetune", "--resume", tmp_path / "run", "--steps", "8")
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = {entry["step"]: entry["learning_rate"] for entry in entries if "learning_rate" in entry}
    assert logged[5] == pytest.approx(0.004) and logged[8] == pytest.approx(0.001)


def test_an_extension_that_is_refused_changes_nothing(few, tmp_path):
    run = tmp_path / "run"
    zokern("finetune", *few)
    state = run / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:100])
    before = contents(run)
    for given, message in (
        (["--steps", "3"], "--steps 3 with --resume"),
        (["--steps", "4"], "that run is done (metrics.json is there): pass a larger --steps, or begin another"),
        ([], "that run is done"),
        (["--steps", "6", "--lr", "1e-3"], "takes --steps alone: leave out --lr"),
        (["--steps", "0"], "--steps 0 with --resume"),
        (["--steps", "6"], "checkpoint-4': optimizer.pt is damaged"),
    ):
        error = zokern("finetune", "--resume", run, *given, code=2)
        assert message in error and error.rstrip().rpartition("\n")[2].startswith("error: ")
        assert contents(run) == before


def test_an_extension_that_is_stopped_goes_on(few, tmp_path, monkeypatch):
    run, whole = tmp_path / "run", tmp_path / "whole"
    few = [*few, *CONSTANT, "--lr", "1e-3"]
    zokern("finetune", *few)
    calls, plain = [], HeadReader.loss

    def counted(self, model, batch):
        calls.append(batch)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(HeadReader, "loss", counted)
        zokern("finetune", "--resume", run, "--steps", "9", code=130)
    assert not (run / "metrics.json").exists() and len(Trajectory.read(run / "trajectory.jsonl")) == 5
    zokern("finetune", "--resume", run)
    zokern("finetune", *few, "--steps", "9", "--out", whole)
    assert equal(run, whole) and of(run)["after"] == of(whole)["after"]


def test_a_run_without_checkpoints_begins_again(few, tmp_path):
    run = tmp_path / "run"
    zokern("finetune", *few, *CONSTANT, "--lr", "1e-3")
    shutil.rmtree(run / "checkpoints")
    assert "no checkpoint is left in" in zokern("finetune", "--resume", run, "--steps", "6")
    zokern("finetune", *few, *CONSTANT, "--lr", "1e-3", "--steps", "6", "--out", tmp_path / "whole")
    assert equal(run, tmp_path / "whole")


def judged(run):
    """step -> (accuracy, -loss) of the evaluations after a step or more, read from the log."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: (entry["eval_accuracy"], -entry["eval_loss"]) for entry in entries if "eval_loss" in entry and entry["step"]}


@pytest.mark.parametrize("adapter", ["full", "lora", "prefix"])
def test_the_best_step_is_told_replayed_and_kept(few, tmp_path, adapter):
    """In a run that goes too far; the oracle is every step's own evaluation."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    given = [*few, *CONSTANT, "--adapter", adapter, "--lr", "0.3", "--eps", "0.1", "--steps", "12", "--eval-every", "1"]
    said = zokern("finetune", *given)
    found = judged(run)
    best = max(found, key=lambda step: (found[step], -step))
    assert 0 < best < 12 and len(found) == 12
    assert of(run)["best"] == {"step": best, "accuracy": found[best][0], "loss": -found[best][1]}
    assert f"after step {best}: zokern replay {run} --step best --out FOLDER" in said
    said = zokern("replay", run, "--step", "best", "--out", tmp_path / "replayed")
    assert f"the model after step {best} of" in said
    zokern("finetune", *given, "--keep", "best", "--out", kept)
    result = of(kept)
    assert result["after"] == {"accuracy": found[best][0], "loss": pytest.approx(-found[best][1], abs=1e-5)}
    assert result["best"]["step"] == best and (kept / "checkpoints" / f"checkpoint-{best}").is_dir()
    if adapter == "prefix":
        name = "adapter/adapter_model.safetensors"
        assert (kept / name).read_bytes() == (tmp_path / "replayed" / name).read_bytes() != (run / name).read_bytes()
    else:
        assert equal(kept, tmp_path / "replayed") and not equal(kept, run)


def test_the_best_of_a_hybrid_is_kept(few, tmp_path):
    given = [*few, *CONSTANT, "--optimizer", "hybrid", "--split", "depth:0", "--zo", "none", "--fo-lr", "1", "--fo", "sgd"]
    said = zokern("finetune", *given, "--steps", "12", "--eval-every", "1", "--save-every", "12", "--keep", "best")
    run = tmp_path / "run"
    found = judged(run)
    best = max(found, key=lambda step: (found[step], -step))
    assert 0 < best < 12 and f"after step {best}, which is saved" in said
    assert of(run)["after"] == {"accuracy": found[best][0], "loss": pytest.approx(-found[best][1], abs=1e-5)}


def test_what_replay_cannot_find(few, tmp_path):
    run = tmp_path / "run"
    zokern("finetune", *few, "--steps", "1")
    assert "--step last: pass a number of steps, or best" in zokern("replay", run, "--step", "last", "--out", tmp_path / "new", code=2)
    (run / "log.jsonl").write_text("")
    assert "holds no evaluation after a step" in zokern("replay", run, "--step", "best", "--out", tmp_path / "new", code=2)
    (run / "log.jsonl").unlink()
    assert "log.jsonl' cannot be read" in zokern("replay", run, "--step", "best", "--out", tmp_path / "new", code=2)
    assert not (tmp_path / "new").exists()
