"""Suite ``offload``: a tiny model ends with the same weights wherever they lie."""

import json
import mmap
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

pytest.importorskip("transformers")

from bench import offload  # noqa: E402
from bench.__main__ import main  # noqa: E402
from bench.oracle import Refused  # noqa: E402

CASE = offload.cases(quick=True)[0]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def test_a_tiny_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "records.jsonl"
    assert main(["--suite", "offload", "--quick", "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["candidate"] for r in records] == ["from a file", "from host memory", "in memory"]
    assert len({r["digest"] for r in records}) == 1 and len({tuple(r["losses"]) for r in records}) == 1
    for r in records:
        assert len(r["losses"]) == 3 and r["rounds"] == 2 and r["weights_bytes"] == 4 * r["n"] > r["largest_part_bytes"] > 0
        assert r["peak_anonymous_bytes"] >= r["libraries_bytes"] > 1 << 20
    assert "suite offload" in capsys.readouterr().out


def test_other_weights_are_refused(monkeypatch):
    def found(place, *_):
        return {"digest": place, "losses": [0.0] * 3, "seconds": [1.0] * 3}

    monkeypatch.setattr(offload, "of_process", found)
    with pytest.raises(Refused, match="digest from a file and from host memory differ"):
        offload.measure(CASE, torch.device("cpu"))


def test_memory_of_its_own():
    before = offload.own_bytes()
    with mmap.mmap(-1, 40 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:  # a tensor may lie in what an allocator kept
        for page in range(0, 40 << 20, mmap.PAGESIZE):
            held[page] = 1
        assert offload.own_bytes() - before > 30 << 20
    assert offload.own_bytes(1 << 30) == 0
