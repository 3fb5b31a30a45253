"""Suite ``processes``: on a tiny model, what two processes measure and send, the weights that they end with, and what is said of it."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

pytest.importorskip("transformers")

from bench import processes, record  # noqa: E402
from bench.__main__ import main  # noqa: E402
from bench.claims import claim  # noqa: E402
from bench.oracle import Refused  # noqa: E402
from bench.processes import DIRECTIONS, HALVES, ONE, SIDES, TWO, WAYS  # noqa: E402

CASE = processes.cases(quick=True)[0]
pytestmark = pytest.mark.skipif(bool(processes.missing(CASE)), reason=processes.missing(CASE))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "records.jsonl"
    assert main(["--suite", "processes", "--quick", "--out", str(path)]) == 0
    return path


@pytest.fixture
def records(out):
    """candidate -> its record."""
    return {r["candidate"]: r for r in map(json.loads, out.read_text().splitlines())}


def test_every_candidate_is_recorded(records):
    assert list(records) == list(WAYS)
    for name, r in records.items():
        assert set(record.FIELDS) <= set(r) and "error" not in r and r["commit"] and r["machine"]["cpu"]
        assert (r["processes"], r["q"], r["directions"]) == (WAYS[name].processes, WAYS[name].q, WAYS[name].directions)
        assert r["model"] == "tiny" and r["n"] > 1000 and r["threads"] == 1 and r["backend"] == "cpu"
        assert r["rounds"] == len(r["seconds"]) == CASE.steps and 0 < r["min_s"] <= r["q1_s"] <= r["median_s"] <= r["q3_s"]
        assert r["over_one"] == pytest.approx(r["median_s"] / records[ONE]["median_s"])
        assert r["speedup"] == pytest.approx(records[WAYS[name].alone]["median_s"] / r["median_s"])


def test_they_end_with_the_weights_of_one_process(records):
    for name, r in records.items():
        assert r["equal_weights"] is True and r["equal_to_one"] is (None if name == HALVES else True)
    digests = {name: r["digest"] for name, r in records.items()}
    assert digests[DIRECTIONS] == digests[TWO] and digests[SIDES] == digests[ONE]
    assert len({digests[ONE], digests[TWO], digests[HALVES]}) == 3  # so the steps do move them


def test_losses_are_shared_out_and_alone_are_sent(records):
    """Numbers of 8 bytes: a weight, and as many losses as a process measures."""
    numbers = {ONE: 0, TWO: 0, DIRECTIONS: 1 + 2, SIDES: 1 + 1, HALVES: 1 + 2}
    forwards = {ONE: [2], TWO: [4], DIRECTIONS: [2, 2], SIDES: [1, 1], HALVES: [2, 2]}
    for name, r in records.items():
        assert r["sent_bytes"] == r["received_bytes"] == 8 * numbers[name]
        assert r["forwards"] == forwards[name] and r["collectives"] == [int(r["processes"] > 1)] * r["processes"]
        assert all(0 < sweeps <= 1 + 2 * r["q"] for sweeps in r["sweeps"])
        assert 0 < r["forward_s"] and 0 < r["passes_s"] and (0 < r["collective_s"]) == (r["processes"] > 1)
        assert r["waiting_s"] >= 0 and max(r[part] for part in ("forward_s", "passes_s", "collective_s")) <= r["median_s"]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({DIRECTIONS: ["2", "other"]}, "a direction each: the processes end with different weights"),
        ({HALVES: ["3"]}, "half of the batch each: the processes end with different weights"),
        ({SIDES: ["2", "2"]}, "a side each: the weights at the end are not those of 1 process, q = 1"),
    ],
)
def test_other_weights_are_refused(wrong, said):
    right = {ONE: ["1"], TWO: ["2"], DIRECTIONS: ["2", "2"], SIDES: ["1", "1"], HALVES: ["3", "3"]}
    assert [each["equal_to_one"] for each in processes.compared(right).values()] == [True, True, True, True, None]
    with pytest.raises(Refused, match=said):
        processes.compared(right | wrong)


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="process 0 of 2 has ended with 1"), processes.Team(2, CASE) as team:
        team.step(ONE)


def test_what_is_claimed_is_computed_from_the_records(out, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "CLAIMS", [])  # the page's own are as they were
    monkeypatch.setattr(claim, "RESULTS", tmp_path)
    told = importlib.reload(importlib.import_module("bench.claims.processes"))
    (tmp_path / told.FILE).write_text(out.read_text())
    said = {each.figures.__name__: each.values() for each in claim.CLAIMS}
    assert set(said) == {"times", "exchanged", "parts", "table"}
    assert said["exchanged"] == ["24", "16", "24", str(CASE.warm + CASE.steps)]
    assert said["table"][0].count("\n") == len(WAYS) - 1 and "threads: 1" in said["table"][1]
