"""examples/evolve_vllm.py, as a user runs it, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm_cases import load  # noqa: E402

import zokern  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_the_example(folder_of, tmp_path):
    folder = folder_of("Llama")
    command = [sys.executable, str(ROOT / "examples" / "evolve_vllm.py"), "--model", folder, "--population", "4", "--steps", "2"]
    done = subprocess.run(
        [*command, "--rows", "4", "--out", "evolved"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "iteration 2: reward 0." in done.stdout
    model = load(folder)
    zokern.Trajectory.read(tmp_path / "evolved" / "trajectory.jsonl").replay(model)
    assert all(map(torch.equal, model.parameters(), load(tmp_path / "evolved").parameters()))
