"""How candidates are timed: in turns, what is around a turn left out, and a GPU that may have idled told of."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import record, table, timing  # noqa: E402


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that takes 6 ms for whatever it is given, and finds the host late when it was held for less than ``needs`` cycles."""
    told = SimpleNamespace(held=[], needs=0)

    class Event:
        def __init__(self, enable_timing):
            self.query = lambda: told.held[-1] < told.needs
            self.record = self.synchronize = lambda: None
            self.elapsed_time = lambda end: 6.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", told.held.append, raising=False)
    return told


def test_the_gpu_is_held_until_all_is_queued(gpu):
    """A GPU that starts before the host has queued every call gets held twice as long, and is timed again."""
    gpu.needs, timer, call = 1e6, timing.Device(), lambda: None
    assert timer.sample(call, repeats=3) == pytest.approx(2e-3)
    assert gpu.held == [400_000, 800_000, 1_600_000] and not timer.late
    timer.sample(call, repeats=3)
    timer.sample(lambda: None, repeats=3)
    assert gpu.held[3:] == [1_600_000, 400_000, 800_000, 1_600_000], "the head start is the candidate's own"


def test_a_host_that_is_always_late_is_told_of(gpu):
    gpu.needs, timer = float("inf"), timing.Device()
    timer.sample(late := lambda: None, repeats=3)
    assert timer.late and gpu.held[-1] == pytest.approx(2e9 * timing.LONGEST)
    samples = timing.interleave({"late": late}, timer, budget=0)
    assert samples["late"].late == len(samples["late"].seconds) == 5

    def describe(name):
        return {"suite": "kernels", "op": "add_noise_", "dtype": "fp32", "n": 1 << 12, "terms": 2}

    (line,) = record.lines(CPU, samples, "late", "late", describe)
    assert line["late_rounds"] == 5
    assert table.late({"late": line}) == "\nat most: late, fp32, 2^12, terms 2: the host was late in 5 of 5 rounds"


@pytest.mark.parametrize("host, most", [(1e-6, 50), (1e-4, 10), (4e-4, 2), (1e-2, 1)])
def test_a_sample_fits_in_the_launch_queue(gpu, monkeypatch, host, most):
    """However short its work on the GPU is: a call that keeps the host for long has many launches."""
    monkeypatch.setattr(timing, "host_seconds", lambda call, rounds: host)
    timer = timing.Device()
    monkeypatch.setattr(timer.start, "elapsed_time", lambda end: 1e-3)
    assert timer.calibrate(lambda: None) == most
    assert gpu.held[-1] >= 2e9 * min(most * host, timing.LONGEST), "the host is given the time that it needs"


def test_candidates_take_turns():
    order = []
    timer = timing.Wall(CPU, most=1)
    samples = timing.interleave({name: lambda name=name: order.append(name) for name in "abc"}, timer, budget=0, least=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert all(len(s.seconds) == 3 and not s.late for s in samples.values())
    assert timing.Samples((1.0, 2.0, 3.0, 4.0, 5.0)).quartiles == [2.0, 3.0, 4.0]


def test_what_is_around_a_turn_is_not_timed():
    order = []

    class Timer:
        late = False

        def sample(self, call, repeats):
            order.append("begin")
            call()
            order.append("end")
            return 1.0

        def calibrate(self, call):
            call()
            return 1

    turn = timing.Turn(*(lambda name=name: order.append(name) for name in ("call", "before", "after")))
    timing.interleave({"a": turn}, Timer(), budget=0, least=2)
    assert order == ["before", "call", "after"] + 2 * ["before", "begin", "call", "end", "after"]


def test_warming_up_leaves_out_what_does_not_run():
    def fails():
        raise RuntimeError("no\nroom")

    run, failed = timing.warmed({"a": list, "b": fails}, ("a",), record.reason)
    assert run == {"a": list} and failed == {"b": "RuntimeError: no"}
    with pytest.raises(RuntimeError):
        timing.warmed({"a": list, "b": fails}, ("b",), record.reason)
