"""What fails costs itself only: a case, a candidate, a process; and it is recorded."""

import json
import sys
import weakref
from pathlib import Path

import pytest
import torch

import zokern

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import __main__ as bench  # noqa: E402
from bench import kernels, memory, models, modes, oracle, step  # noqa: E402


@pytest.fixture
def run(tmp_path, capsys):
    """-> status, the records, what was printed, what was said beside, of suite ``kernels`` in float32 unless told otherwise."""
    threads, out = torch.get_num_threads(), tmp_path / "records.jsonl"

    def run(*arguments, suite="kernels"):
        status = bench.main(
            ["--quick", "--dtype", "fp32", "--threads", "1", "--backend", "cpu", "--suite", suite, "--out", str(out), *arguments]
        )
        records = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        printed, said = capsys.readouterr()
        return status, records, " ".join(printed.split()), said

    yield run
    torch.set_num_threads(threads)


def with_two_terms(monkeypatch, fail):
    """``fail`` is called in the case of two terms, which is the second of five."""
    right = kernels.arena

    def arena(case, device):
        if case.terms == 2:
            fail()
        return right(case, device)

    monkeypatch.setattr(kernels, "arena", arena)


def test_an_exception_costs_its_case_only(run, monkeypatch):
    held = []

    def fail():
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise ValueError("neither here\nnor there")

    with_two_terms(monkeypatch, fail)
    monkeypatch.setattr(bench, "usable", lambda device: held == [] or held[0]() is None)  # its memory is free for the next case
    status, records, printed, said = run()
    assert status == 1
    (failed,) = [r for r in records if "error" in r]
    assert failed["error"] == "ValueError: neither here" and failed["suite"] == "kernels" and "terms=2" in failed["op"]
    assert failed["candidate"] is None and failed["median_s"] is None and failed["commit"] and failed["machine"]
    assert {(r["op"], r["terms"]) for r in records if r is not failed} == {
        ("add_noise_", 1),
        ("add_noise_", 4),
        ("add_noise_, tiny", 1),
        ("add_noise_ in L2", 1),
    }
    assert "without a result" in printed and "ValueError: neither here" in printed and "of floor" in printed
    assert "Traceback" in said and "nor there" in said


def test_too_little_memory_is_recorded_and_no_fault(run, monkeypatch):
    def fail():
        raise torch.cuda.OutOfMemoryError("80 GB asked for")

    with_two_terms(monkeypatch, fail)
    status, records, _, said = run()
    assert status == 0 and "does not fit" in said
    assert [r["error"] for r in records if "error" in r] == ["OutOfMemoryError: 80 GB asked for"]


def test_records_are_written_as_they_come_and_told_whatever_ends_the_run(run, monkeypatch, tmp_path, capsys):
    with_two_terms(monkeypatch, lambda: sys.exit(143))
    with pytest.raises(SystemExit):
        run()
    written = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert {r["terms"] for r in written} == {1} and "of floor" in capsys.readouterr().out


def test_cases_are_chosen_by_number(run):
    _, records, _, said = run("--most", "3", "--begin", "2")
    assert {r["terms"] for r in records} == {2, 4}
    assert "bench: 2 of 3: " in said and "bench: 1 of" not in said


def test_a_gpu_that_is_lost_ends_the_process_and_says_where_to_go_on(run, monkeypatch):
    monkeypatch.setattr(bench, "usable", lambda device: False)
    status, records, printed, said = run()
    assert status == bench.LOST and {r["terms"] for r in records} == {1} and "of floor" in printed
    assert "go on with --begin 2" in said


def test_a_candidate_that_does_not_run_costs_itself_only(run, monkeypatch):
    def literal(thetas, terms):
        def call():
            raise RuntimeError("ptxas died")

        return call

    monkeypatch.setattr(kernels, "literal", literal)
    status, records, printed, _ = run("--most", "1")
    assert status == 0
    assert {r["candidate"]: r.get("error") for r in records} == {
        **dict.fromkeys(("zokern", "torch.normal + add_", "mul_")),
        "MeZO line": "RuntimeError: ptxas died",
    }
    assert "MeZO line: RuntimeError: ptxas died" in printed and "of floor" in printed


def test_a_candidate_that_is_wrong_is_a_fault(run, monkeypatch):
    def literal(thetas, terms):
        def call():
            raise oracle.Refused("other noise")

        return call

    monkeypatch.setattr(kernels, "literal", literal)
    assert run("--most", "1")[0] == 1


def test_a_method_that_fails_leaves_the_others_their_peaks(run, monkeypatch):
    if reason := models.missing():
        pytest.skip(reason)

    def trained(model, optimizer, closure, **how):
        raise torch.cuda.OutOfMemoryError("SGD needs more")

    monkeypatch.setattr(memory, "trained", trained)
    status, records, _, _ = run("--most", "1", suite="memory")
    assert status == 0
    assert {r["candidate"] for r in records if "error" not in r} == {"two forwards", *modes.of("fp32"), "MeZO as published"}
    assert {r["candidate"] for r in records if "error" in r} == {"SGD, backpropagation", "Adam, backpropagation"}


def test_a_large_model_is_held_once(run, monkeypatch):
    """All candidates of suite step on the same weights: the published step's new tensors are found before a turn, what defer=True leaves
    pending is applied after it, and the weights end where a few steps lead."""
    if reason := models.missing():
        pytest.skip(reason)
    built = []

    def build(*arguments):
        built.append(models.build(*arguments))
        return built[-1]

    monkeypatch.setattr(step, "build", build)
    monkeypatch.setattr(step, "ALONE_FROM", 0)
    monkeypatch.setattr(step, "copy", None)
    status, records, _, _ = run(suite="step")
    assert status == 0 and not [r for r in records if "error" in r] and len(built) == 1
    assert {modes.OURS, modes.STREAMED, "zokern.MeZO, defer", "MeZO as published", "two forwards"} <= {r["candidate"] for r in records}
    right = models.build("tiny", "fp32", "cpu")
    zokern.ops.add_noise_(zokern.Layout(right.parameters()), [(oracle.CHECK, -2 * oracle.EPS)])  # of both checks before
    for p, q in zip(built[0].parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=3e-4)  # at most 207 steps of Adam of 1e-6 each; 1e-3 z is pending
