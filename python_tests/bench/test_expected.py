"""What is expected of a GPU: the counts are those of the record, and a figure is judged by them."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import expected  # noqa: E402


def test_the_instructions_are_those_that_were_counted():
    lines = (ROOT / "bench/results/sass-nvcc-13.0-spec2.jsonl").read_text().splitlines()
    counted = [r for r in map(json.loads, lines) if r["arch"] == 90]
    for (op, dtype, terms), instructions in expected.COUNTED.items():
        wanted = {
            "op": "add_noise_",
            "noise": "signs" if op == "signs" else "normals",
            "out": "bf16" if op == "out" else dtype,
            "decay": False,
        }
        wanted = {"op": "update_", "rule": "adam", "state": dtype} if op == "adam" else wanted
        (found,) = [
            r["per_element"] for r in counted if (wanted | {"dtype": dtype, "terms": str(terms), "backend": "cuda"}).items() <= r.items()
        ]
        assert instructions == pytest.approx(found, abs=0.01)


def kernel(candidate, **more):
    card = {"multiprocessors": 100, "clocks_sm": "2000 MHz"}  # 25.6e12 instructions a second
    return {
        "suite": "kernels",
        "op": "add_noise_",
        "dtype": "bf16",
        "n": 1 << 30,
        "terms": 1,
        "candidate": candidate,
        "machine": card,
    } | more


@pytest.mark.parametrize(("share", "verdict"), [(0.9, ""), (0.7, ", below"), (1.2, ", above")])
def test_a_share_is_judged_by_what_can_be_issued(share, verdict):
    """A copy of 1e12 elements a second, 25.78 instructions each: 0.993e12 a second can be issued, of which 0.85 to 0.95."""
    copied = kernel("copy", median_s=(1 << 30) / 1e12)
    lines = expected.table([copied, kernel("zokern", share_of_floor=share)])
    low, high = 0.85 * 25.6 / 25.78, 0.95 * 25.6 / 25.78
    assert lines[2:] == [f"| add_noise_, bf16, 1 term: share of a copy | {low:.3g} to {high:.3g} | {share:.4g}{verdict} |"]


def test_what_waits_for_memory_is_expected_near_a_copy():
    copied = kernel("copy", median_s=(1 << 30) / 0.2e12)
    (line,) = expected.table([copied, kernel("zokern", share_of_floor=0.96)])[2:]
    assert "| 0.95 to 1.02 | 0.96 |" in line


def test_what_was_not_measured_is_left_out(tmp_path, capsys):
    assert expected.table([kernel("copy", median_s=1.0), kernel("zokern", error="out of memory")]) == expected.table([])
    expected.main(tmp_path / "none.jsonl")
    assert capsys.readouterr().out.count("\n") == 2


def test_adam_is_judged_in_suite_variants():
    copied = kernel("copy", suite="variants", op="adam", median_s=(1 << 30) / 0.25e12)
    (line,) = expected.table([copied, kernel("unchanged", suite="variants", op="adam", share_of_floor=0.9)])[2:]
    assert line == "| adam, bf16, 1 term: share of a copy | 0.95 to 1.02 | 0.9, below |"


def test_other_figures():
    captured = {"suite": "step", "candidate": "zokern.graph", "model": "OPT-125M", "batch": 16, "dtype": "bf16", "step_in_forwards": 2.5}
    (line,) = expected.table([captured])[2:]
    assert line.endswith("| 2.3 or less | 2.5, above |")
