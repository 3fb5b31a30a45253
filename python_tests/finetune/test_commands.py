"""The commands around a run: a configuration file, judging, replaying, telling, and a run that was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")

from command_line import equal, zokern  # noqa: E402

from zokern import Trajectory  # noqa: E402
from zokern.optim import optimizers  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_a_configuration_file_is_read_and_the_command_line_goes_before_it(few, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "steps: 3\nbatch-size: 4\nlr: 1e-3\nadapter: [lora]\nbetas: [0.5, 0.25]\noptimizer: zo-adam\nblocks: true\n"
    )
    zokern("finetune", *few, "--config", tmp_path / "run.yaml")
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (settings["steps"], settings["batch_size"], settings["lr"], settings["betas"]) == (4, 8, 1e-3, [0.5, 0.25])
    assert (settings["adapter"], settings["optimizer"], settings["blocks"]) == (["lora"], "zo-adam", True)
    (tmp_path / "run.json").write_text(json.dumps({"model": str(tmp_path / "run"), "split": "train", "sample": 5}))
    assert "on 5 rows" in zokern("evaluate", "--config", tmp_path / "run.json", "--task", "sst2", "--data", tmp_path / "sst2")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.yaml", "stepz: 4", "'stepz' is no option of finetune (did you mean 'steps'?): remove or correct it"),
        ("a.yaml", "steps: [1", "line 1: not YAML"),
        ("a.json", '{"steps": 4,}', "line 1: not JSON"),
        ("a.json", "[1]", "holds no options"),
        ("a.yaml", "steps:\n  many: 4", "'steps' is a table: pass an integer"),
        ("a.toml", "steps = 4", "ends in '.toml': pass a .yaml, .yml or .json file"),
    ],
)
def test_a_configuration_file_that_cannot_be_used(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    error = zokern("finetune", "--config", name, code=2)
    assert error.startswith(f"error: --config {name}") and message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("optimizer", [name for name, cls in optimizers().items() if cls.replayable])
def test_every_optimizer_trains_and_is_replayed(few, tmp_path, optimizer):
    zokern("finetune", *few, "--optimizer", optimizer, "--lr", "1e-3")
    zokern("replay", tmp_path / "run", "--out", tmp_path / "again")
    assert equal(tmp_path / "run", tmp_path / "again")


@pytest.mark.parametrize("adapter", ["head", "lora", "dora", "prefix", "prompt", "*.query.*,classifier.*"])
def test_every_adapter_trains_is_judged_and_replayed(few, tmp_path, adapter):
    zokern("finetune", *few, "--adapter", adapter, "--lr", "1e-2")
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    zokern("evaluate", "--model", tmp_path / "run", "--metrics", tmp_path / "judged.json")
    judged = json.loads((tmp_path / "judged.json").read_text())
    assert judged["held_out"]["rows"] == 16 and judged["test"]["rows"] == 20
    for name, rows in (("held_out", found["after"]), ("test", found["test"])):
        assert judged[name]["accuracy"] == rows["accuracy"] and judged[name]["loss"] == pytest.approx(rows["loss"], abs=1e-5)
    zokern("replay", tmp_path / "run", "--out", tmp_path / "again")
    if adapter in ("prefix", "prompt"):
        name = "adapter/adapter_model.safetensors"
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    else:
        assert equal(tmp_path / "run", tmp_path / "again")


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("task_type, dtype", [("masked", "float32"), ("causal", "bfloat16")])
def test_a_prompted_model_is_trained_and_replayed(few, language_models, tmp_path, task_type, dtype, adapter):
    given = [
        *few,
        "--model",
        language_models[task_type],
        "--task-type",
        task_type,
        "--dtype",
        dtype,
        "--lr",
        "1e-3",
        "--objective",
        "accuracy" if task_type == "masked" else "option",
        "--adapter",
        adapter,
    ]
    zokern("finetune", *given)
    zokern("replay", tmp_path / "run", "--out", tmp_path / "again", "--passes-per-sweep", "5")
    assert equal(tmp_path / "run", tmp_path / "again")
    assert not equal(tmp_path / "run", language_models[task_type])


def test_any_step_is_made_again_and_a_wrong_base_is_refused(few, tmp_path, tiny, tokenizer):
    zokern("finetune", *few, "--lr", "1e-3", "--save-every", "2")
    zokern("replay", tmp_path / "run" / "trajectory.jsonl", "--step", "2", "--out", tmp_path / "middle")
    assert equal(tmp_path / "middle", tmp_path / "run" / "checkpoints" / "checkpoint-2")
    assert "the trajectory has 4 steps" in zokern("replay", tmp_path / "run", "--step", "5", "--out", tmp_path / "new", code=2)
    other = transformers.AutoModel.from_pretrained(tiny)
    other.pooler.dense.bias.data += 1e-7
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    error = zokern("replay", tmp_path / "run", "--model", tmp_path / "other", "--out", tmp_path / "new", code=2)
    assert "pooler.dense.bias" in error and not (tmp_path / "new").exists()
    moved = shutil.copytree(tiny, tmp_path / "moved")
    zokern("replay", tmp_path / "run", "--model", moved, "--out", tmp_path / "new")
    assert equal(tmp_path / "new", tmp_path / "run")
    assert "exists and is not empty" in zokern("replay", tmp_path / "run", "--out", tmp_path / "new", code=2)


def test_a_frozen_body_is_part_of_the_base(few, tmp_path, tiny, tokenizer):
    """LoRA trains nothing of it: an adapter on another body is another model."""
    zokern("finetune", *few, "--adapter", "lora")
    other = transformers.AutoModel.from_pretrained(tiny)
    other.embeddings.word_embeddings.weight.data[1000] += 1e-3
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    error = zokern("replay", tmp_path / "run", "--model", tmp_path / "other", "--out", tmp_path / "new", code=2)
    assert "word_embeddings.weight" in error and not (tmp_path / "new").exists()


def test_a_probe_on_a_known_head_is_where_the_run_begins(few, tmp_path):
    """The head that the model came with is not the one that training began with."""
    zokern("finetune", *few, "--out", tmp_path / "base")
    given = [*few, "--model", tmp_path / "base", "--head", "probe", "--adapter", "full", "--lr", "1e-3"]
    zokern("finetune", *given)
    zokern("replay", tmp_path / "run", "--out", tmp_path / "again")
    assert equal(tmp_path / "run", tmp_path / "again")
    log = (tmp_path / "run" / "trajectory.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "metrics.json").unlink()
    zokern("finetune", "--resume", tmp_path / "run")
    assert (tmp_path / "run" / "trajectory.jsonl").read_bytes() == log and equal(tmp_path / "run", tmp_path / "again")


def test_resume_refuses_other_rows_and_a_damaged_checkpoint(few, tmp_path):
    zokern("finetune", *few)
    (tmp_path / "run" / "metrics.json").unlink()
    rows = (tmp_path / "sst2" / "train.tsv").read_text()
    (tmp_path / "sst2" / "train.tsv").write_text(rows.replace("fine", "good"))
    assert "the rows are not those that the run began with" in zokern("finetune", "--resume", tmp_path / "run", code=2)
    (tmp_path / "sst2" / "train.tsv").write_text(rows)
    state = tmp_path / "run" / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:100])
    error = zokern("finetune", "--resume", tmp_path / "run", code=2)
    assert "checkpoint-4': optimizer.pt is damaged" in error and "move it elsewhere to go on from checkpoint-2" in error
    shutil.rmtree(state.parent)
    zokern("finetune", "--resume", tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "is damaged" in zokern("finetune", "--resume", tmp_path / "run", code=2)


def test_settings_of_every_group_reach_the_optimizer(few, tmp_path):
    def groups(*given):
        zokern("finetune", *few, "--overwrite", *given)
        return Trajectory.read(tmp_path / "run" / "trajectory.jsonl").header["groups"]

    (group,) = groups("--optimizer", "zo-momentum", "--momentum", "0")
    assert group["momentum"] == 0
    lora = ("--adapter", "lora", "--lr-ratio", "4", "--lr", "0.01", "--weight-decay", "0.5", "--optimizer", "mezo-svrg", "--lr-full", "0.1")
    found = groups(*lora, "--anchor", "copy")
    assert {(group["lr"], group["lr_full"]) for group in found} == {(0.01, 0.1), (0.04, 0.4)}
    assert {group["weight_decay"] for group in found} == {0.0, 0.5}  # peft leaves biases alone


def test_passes_are_counted_with_their_batches(few, tmp_path):
    zokern("finetune", *few, "--accumulate", "2")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["forwards"] == 4 * 2 * 2
    zokern("finetune", *few, "--overwrite", "--optimizer", "mezo-svrg", "--q", "2", "--accumulate", "2")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["forwards"] == 2 * 4 * 2 + 2 * 2  # 32 rows fit into one batch


def test_a_run_is_found_from_elsewhere(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zokern("finetune", *few, "--data", "sst2", "--out", "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    zokern("evaluate", "--model", "../run")
    zokern("replay", "../run", "--out", "again")
    assert equal("../run", "again")


def test_info_tells_the_run_and_an_edited_log_its_line(few, tmp_path):
    zokern("finetune", *few, "--lr", "1e-3")
    text = zokern("info", tmp_path / "run")
    assert "MeZO" in text and "4" in text
    assert json.loads(zokern("info", tmp_path / "run", "--json"))["steps"] == 4
    log = tmp_path / "run" / "trajectory.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:2], lines[2].replace("0.", "1.", 1), *lines[3:]]))
    assert "line 3" in zokern("info", log, code=2)
    assert "line 3" in zokern("replay", tmp_path / "run", "--out", tmp_path / "new", code=2)
    assert "is not there: pass the --out of" in zokern("info", tmp_path / "nowhere.jsonl", code=2)


def test_what_cannot_be_judged(few, tmp_path, tiny):
    assert "--task and --data are missing" in zokern("evaluate", "--model", tiny, code=2)
    given = ["--model", tiny, "--task", "sst2", "--data", tmp_path / "sst2", "--max-length", "32"]
    assert "has no head for the classes negative, positive" in zokern("evaluate", *given, code=2)
    assert "--model is missing" in zokern("evaluate", code=2)
    for more, message in (
        (["--sample", "0"], "--sample 0: pass an integer >= 1"),
        (["--sample", "21"], "--sample 21 is more than the 20 rows of --split validation"),
        (["--rows", "5"], "--rows 5: pass three integers, as to finetune, or --sample 5"),
        (["--rows", "32,0,20"], "--rows 32,0,20: pass three integers, the last one may be 0"),
        (["--rows", "32,16,20", "--sample", "5"], "--sample draws others: pass one of them"),
        (["--text", "sentence"], "--text sentence goes with --data without --task"),
        (["--metrics", tmp_path / "no" / "m.json"], "its folder does not exist"),
        (["--dtype", "int8"], "--dtype int8: pass one of float32"),
    ):
        assert message in zokern("evaluate", *given, *more, code=2)
    assert "--split test goes with --task" in zokern("evaluate", "--model", tiny, "--data", tmp_path / "x.csv", "--split", "test", code=2)
    (tmp_path / "sst2" / "test.tsv").write_text("sentence\tlabel\nunknown\t-1\n")
    assert "has no labels: pass --split validation" in zokern("evaluate", *given, "--split", "test", code=2)


@pytest.mark.parametrize(
    "given, message",
    [
        (["--task", "sst3"], "sst2"),
        (["--task-type", "masked"], "--task-type masked would use new, random weights: pass --task-type head"),
        (["--rows", "512,256,256"], "512 for train + 256 for validation"),
        (["--shots", "30"], "class 0 has 24 rows"),
        (["--rank", "4"], "--rank is of LoRA and DoRA"),
        (
            ["--resume", "nowhere", "--steps", "3"],
            "--resume nowhere goes on with that run's own settings, and takes --steps alone: leave out ",
        ),
        (["--rows", ""], "--rows : pass three integers"),
        (["--rows", "32,0,20"], "--rows 32,0,20: pass three integers"),
        (["--accumulate", "5"], "--accumulate 5 times --batch-size 8 is more than the 32 training rows"),
        (["--adapter", "lora", "--lr-ratio", "0.5"], "--lr-ratio 0.5: pass a number >= 1"),
        (["--adapter", "prompt", "--virtual-tokens", "40"], "--max-length 32 is more than the 24 positions of the model"),
        (["--optimizer", "forward-gradient", "--objective", "accuracy"], "--objective accuracy has no derivative"),
        (["--task-type", "masked", "--adapter", "prefix"], "--adapter prefix is not for masked models"),
        (["--betas", "a,b"], "--betas a,b: pass floats with commas between them"),
    ],
)
def test_refused_runs_write_nothing(few, tmp_path, given, message):
    before = sorted(os.listdir(tmp_path))
    error = zokern("finetune", *few, *given, code=2)
    assert message in error and error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_resume_needs_a_run(tmp_path):
    assert "holds no run of zokern finetune" in zokern("finetune", "--resume", tmp_path, code=2)


def started(arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "zokern", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def nobody_else_writes_there(process, new, run):
    """While a process has the folder of its run, however long it takes."""
    process.send_signal(signal.SIGSTOP)
    try:
        for given in (["finetune", "--resume", run], ["finetune", *new, "--overwrite"]):
            error = zokern(*given, code=2)
            assert error == f"error: another process writes into {str(run)!r}: wait until it is done, or pass another folder\n"
    finally:
        process.send_signal(signal.SIGCONT)


def logged(run):
    """What log.jsonl says of a run's steps, but for seconds."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: entry[name] for name in entry if name != "train_seconds"} for entry in entries if "train_runtime" not in entry]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(few, tmp_path):
    """The process itself is killed, or hears Ctrl-C, between two checkpoints."""
    few = [*few, "--steps", "100", "--lr", "1e-3", "--eval-every", "50", "--save-every", "10"]
    zokern("finetune", *few, "--out", tmp_path / "whole")
    whole = (tmp_path / "whole" / "trajectory.jsonl").read_bytes()
    for sign, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        run = tmp_path / sign.name
        log = run / "trajectory.jsonl"
        process = started(["finetune", *few, "--out", run], tmp_path)
        try:
            until = time.time() + 120
            while not (log.exists() and log.read_bytes().count(b"\n") > 25) and time.time() < until and process.poll() is None:
                time.sleep(0.01)
            if sign == signal.SIGKILL:
                nobody_else_writes_there(process, [*few, "--out", run], run)
            process.send_signal(sign)
            _, error = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == code, error
        steps = log.read_bytes().count(b"\n") - 1
        assert 20 < steps < 100 and not (run / "metrics.json").exists()
        assert f"{steps}" in zokern("info", log)
        with open(run / "log.jsonl", "a") as entries:
            entries.write('{"step": 99, "eval_loss": 0.0, "eval_accuracy": 1.0}\n{"step": 99, "eval_l')
        zokern("finetune", "--resume", run)
        assert equal(run, tmp_path / "whole") and log.read_bytes() == whole
        assert sign == signal.SIGINT or logged(run) == logged(tmp_path / "whole")  # which logs the step after which it stops
        assert not [name for name in os.listdir(run) if name.startswith(".")]
    zokern("replay", run, "--out", tmp_path / "again")
    assert equal(run, tmp_path / "again")
