"""The benchmarks run, their records hold together, and what is wrong is not timed. No test here depends on a time."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version

import zokern
from zokern.kernels import backend_for, tables

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

sys.path.insert(0, str(ROOT))  # bench is no part of the installed package
MODES = ("zokern.MeZO", "zokern.MeZO, streamed", "zokern.MeZO, copied")  # those that differ for float32 weights

from bench import cases, memory, models, oracle, plot, record, step, table  # noqa: E402
from bench.__main__ import main  # noqa: E402


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What ``python -m bench --quick`` wrote and printed."""
    out = tmp_path_factory.mktemp("bench") / "records" / "quick.jsonl"
    command = [sys.executable, "-m", "bench", "--quick", "--backend", "cpu", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()], done.stdout


def by_case(records, suite):
    return table.by_case([r for r in records if r["suite"] == suite])


def test_every_case_is_recorded(quick):
    records, _ = quick
    found = {(r["op"], r["dtype"], r["terms"]) for r in records if r["suite"] == "kernels"}
    wanted = {("add_noise_", d, t) for d in ("fp32", "bf16", "fp16") for t in (1, 2)} | {("add_noise_ in L2", "fp32", 1)}
    wanted |= {(op, d, t) for op, t in (("add_noise_", 4), ("add_noise_, tiny", 1)) for d in ("fp32", "bf16")}
    assert found == wanted
    assert len(by_case(records, "step")) == (0 if models.missing() else 1)
    for case in by_case(records, "kernels"):
        many = {"torch.normal + _foreach_add_"} if "tiny" in case["zokern"]["op"] else set()
        assert set(case) == {"zokern", "torch.normal + add_", "MeZO line", "mul_"} | many
    forms = {(case["zokern"]["op"].split()[0], case["zokern"]["dtype"], case["zokern"]["terms"]) for case in by_case(records, "forms")}
    wanted = {(op, d, t) for op, t in (("signs", 1), ("signs", 16), ("columns", 1)) for d in ("fp32", "bf16")}
    assert forms == wanted | {("out", "fp32", 1)}
    trained = {"SGD, backpropagation", "Adam, backpropagation"}
    for case in by_case(records, "step"):
        assert set(case) == {*MODES, "zokern.MeZO, defer", "MeZO as published", "two forwards"} | trained


def test_peak_memory_is_what_the_tensors_say(quick):
    """Running and reckoning agree to the byte; the methods differ by what they are known to hold."""
    if reason := models.missing():
        pytest.skip(reason)
    run, counted, forward = (case for case in by_case(quick[0], "memory") if next(iter(case.values()))["op"] != "VmHWM")
    assert set(run) == {"two forwards", *MODES, "MeZO as published", "SGD, backpropagation", "Adam, backpropagation"}
    assert set(counted) == set(run) - set(MODES)
    # For OPT, transformers before 5.20 leaves out a mask of ones only where it can read it, which it cannot while tensors are only counted.
    spare = 2 * 8 * 8 if Version(version("transformers")) < Version("5.20") else 0
    for name, r in counted.items():
        assert r["op"] == "counted" and 0 <= r["peak_bytes"] - run[name]["peak_bytes"] <= spare
    weights = sum(p.numel() * 4 for p in models.build("tiny", "fp32", "cpu").parameters())
    peaks = {name: r["peak_bytes"] for name, r in run.items()}
    assert {r["weights_bytes"] for r in run.values()} == {weights} and weights < peaks["two forwards"]
    assert peaks["zokern.MeZO"] - peaks["two forwards"] < 1000  # the losses, and a few more numbers
    model = models.build("tiny", "fp32", "cpu")
    part = max(sum(-(-4 * p.numel() // 512) * 512 for p in part.params) for part in zokern.Streamed(model).parts)
    assert part <= peaks["zokern.MeZO, streamed"] - peaks["two forwards"] < part + 1000
    assert weights <= peaks["zokern.MeZO, copied"] - peaks["two forwards"] < weights + 1000
    assert peaks["MeZO as published"] > peaks["two forwards"]
    assert set(forward) == {"forward, full logits", "forward, lean"}
    assert peaks["Adam, backpropagation"] - peaks["SGD, backpropagation"] == pytest.approx(2 * weights, rel=0.05)


def test_a_lean_forward_holds_the_logits_of_a_chunk():
    if reason := models.missing():
        pytest.skip(reason)
    case = cases.Memory("OPT-125M", "fp32", 8, 256, counted=True, only=("forward, full logits", "forward, lean"))
    full, lean = (r["peak_bytes"] - r["weights_bytes"] for r in memory.measure(case, CPU))
    logits = 8 * 256 * 50272 * 4
    assert full > 2 * logits * 255 / 256  # with their log-probabilities, of which the last position of a row has none
    assert 2 * logits / 8 < lean < 2 * logits / 8 + (20 << 20)  # of 256 positions of 2048, and the layers' activations


def test_what_is_freed_is_no_longer_counted():
    kept = torch.zeros(1000)
    with memory.Count([kept]) as count:
        a = torch.zeros(1000)
        b = a.view(10, 100).t() + 1
        del a, b
        c = kept.add_(1) + 1
    assert (count.now, count.most) == (8000, 12000) and len(c) == 1000


def test_a_replay_is_the_same_run_in_passes_of_any_width(quick):
    replayed = {"zokern.replay, 1 steps a call", "zokern.replay, 8 steps a call"}
    for case in by_case(quick[0], "replay"):
        others = {"zokern.Trajectory.replay, 96 passes a call", "torch.normal + add_, step by step"}
        assert set(case) == {"zokern, 1 a pass", "zokern, 4 a pass", *replayed, *others}
        for r in case.values():
            assert r["steps_per_second"] == pytest.approx(r["steps"] / r["median_s"])
            assert r["speedup"] == pytest.approx(r["steps_per_second"] / case["torch.normal + add_, step by step"]["steps_per_second"])
    assert len(by_case(quick[0], "replay")) == (0 if models.missing() else 1)


@pytest.mark.parametrize("kernel", ["add_four", "add_one"])
def test_the_baseline_in_triton_adds_normals(kernel):
    """In the interpreter: moments of what it added, and nothing written past the end."""
    code = (
        "import sys, torch; sys.path.insert(0, '.'); from bench import normals\n"
        f"theta = torch.ones(20_011); normals.add(theta[:20_001], 3, 0.5, normals.{kernel}); z = (theta - 1) / 0.5\n"
        "assert (theta[20_001:] == 1).all() and abs(z[:20_001].mean()) < 0.03 and abs(z[:20_001].std() - 1) < 0.03\n"
        "assert len(set(z[:20_001].tolist())) > 19_000"
    )
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_records_have_every_field(quick):
    for r in quick[0]:
        assert set(record.FIELDS) <= set(r)
        assert r["versions"]["philox rounds"] == 7
        if r["suite"] in ("drift", "memory"):
            continue
        assert 0 < r["min_s"] <= r["q1_s"] <= r["median_s"] <= r["q3_s"]
        assert r["rounds"] >= (3 if r["suite"] == "replay" else 5) and r["threads"] == 1
    for r in quick[0]:
        assert r["backend"] == ("cpu" if r["candidate"].startswith("zokern") else "torch")
        assert r["versions"]["zokern"] == zokern.__version__ and r["machine"]["cpu"] and r["commit"] and r["date"].endswith("+00:00")


def test_drift_is_what_rounding_makes_it(quick):
    """Ten steps of three passes in bfloat16: each pass rounds by up to half a unit in the last place of weights near 0.02."""
    off = {r["dtype"]: r["drift_over_eps"] for r in quick[0] if r["op"] == "steps with lr = 0" and r["candidate"] == "zokern.MeZO"}
    assert off["fp32"] < 1e-4 < off["fp16"] < off["bf16"] < 30 * 2**-14 / 1e-3


def test_records_name_no_place(quick):
    text = json.dumps(quick[0])
    assert str(ROOT) not in text and str(Path.home()) not in text


def test_ratios_follow_from_times(quick):
    for case in by_case(quick[0], "kernels"):
        for r in case.values():
            size = r["n"] * {"fp32": 4, "bf16": 2, "fp16": 2}[r["dtype"]]
            passes = {"torch.normal + add_": 4, "torch.normal + _foreach_add_": 4, "MeZO line": 8}
            moved = passes[r["candidate"]] * r["terms"] * size if r["candidate"] in passes else 2 * size
            assert r["gb_per_s"] == pytest.approx(moved / r["median_s"] / 1e9)
            assert r["ns_per_element"] == pytest.approx(r["median_s"] / r["n"] * 1e9)
            assert r["share_of_floor"] == pytest.approx(case["mul_"]["median_s"] / r["median_s"])
            assert r["speedup"] == pytest.approx(case["torch.normal + add_"]["median_s"] / r["median_s"])
            if "clock_ghz" in r:
                assert r["cycles_per_element"] == pytest.approx(r["ns_per_element"] * r["clock_ghz"])
    for case in by_case(quick[0], "step"):
        for r in case.values():
            assert r["step_in_forwards"] == pytest.approx(2 * r["median_s"] / case["two forwards"]["median_s"])
            if r["optimizer_speedup"] is not None:
                assert r["optimizer_speedup"] == pytest.approx(case["MeZO as published"]["optimizer_s"] / r["optimizer_s"])


def test_table_fits(quick):
    _, printed = quick
    assert "suite kernels" in printed and "of floor" in printed
    assert not [line for line in printed.splitlines() if len(line) > 120]


@pytest.mark.parametrize("wrong", ["coefficient", "nothing", "tail"])
def test_a_wrong_kernel_is_refused(wrong, monkeypatch, tmp_path, capsys):
    backend = backend_for(CPU)
    right = backend.add_noise_

    def off(t, keys, coefficients, decay, rounding=None):
        if wrong == "coefficient":
            right(t, keys, coefficients * 1.001, decay)
        if wrong == "tail":
            rows = t.rows.clone()
            rows[:, tables.COLUMN["numel"]] -= 1
            right(tables.Table(t.dtype, t.device, t.groups, rows), keys, coefficients, decay)

    monkeypatch.setattr(backend, "add_noise_", off)
    threads = torch.get_num_threads()
    try:
        given = ["--quick", "--dtype", "fp32", "--threads", "1", "--backend", "cpu"]
        given += [] if wrong == "coefficient" else ["--suite", "kernels"]
        status = main([*given, "--out", str(tmp_path / "records.jsonl")])
    finally:
        torch.set_num_threads(threads)
    assert status == 1
    written = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    told = [r for r in written if "error" not in r]  # what torch's methods need can be counted all the same
    assert not [r for r in told if r["suite"] == "kernels" or r["candidate"] in MODES]
    assert {r["error"].partition(":")[0] for r in written if "error" in r} == {"Refused"}
    said = capsys.readouterr()
    assert "REFUSED" in said.err and "Refused" in said.out and "of floor" not in said.out


def test_missing_backend_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(zokern.kernels._module("cpu"), "status", lambda: "not built: install a compiler")
    assert main(["--quick", "--backend", "cpu", "--out", str(tmp_path / "records.jsonl")]) == 2
    assert "not built: install a compiler" in capsys.readouterr().err


class Line(torch.nn.Module):
    """A model whose loss is linear in its weights, so that every projected gradient is exact."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(30, 50, generator=generator))
        self.bias = torch.nn.Parameter(torch.randn(50, generator=generator))

    def loss(self):
        return self.weight.double().sum() + 2 * self.bias.double().sum()


def test_the_published_step_is_mezo():
    model, lr, eps = Line(), 1e-4, 1e-3
    before = [p.detach().clone() for p in model.parameters()]
    step.PublishedMeZO(model, lr, eps).step(model.loss)
    torch.manual_seed(0)
    z = [torch.normal(0.0, 1.0, p.shape) for p in before]
    g = z[0].sum() + 2 * z[1].sum()
    for p, old, noise in zip(model.parameters(), before, z):
        # The losses see weights rounded by 1e-7: over 1550 of them g, about 40, is off by 2e-3, and lr g z, about 4e-3, by 1e-6.
        torch.testing.assert_close(p.detach(), old - lr * g * noise, rtol=0, atol=4e-6)


def test_the_step_check_accepts_zokern_and_sees_weights_left_behind(monkeypatch):
    model = Line()
    oracle.check_step(model.named_parameters(), model.loss, 1e-6)
    monkeypatch.setattr("zokern.estimators.PerturbedWeights.apply_pending", lambda self: None)
    with pytest.raises(oracle.Refused, match="did not leave the weights"):
        oracle.check_step(model.named_parameters(), model.loss, 1e-6)


def test_commit_of_a_copy(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.commit.__wrapped__() == "unknown"
    monkeypatch.setenv("BENCH_COMMIT", "1234abc")
    assert record.commit.__wrapped__() == "1234abc"


def test_table_and_pictures_come_from_records(quick, tmp_path):
    records, folder = tmp_path / "r.jsonl", tmp_path / "figures"
    made = [r for r in quick[0] if r.get("optimizer_speedup") or r["suite"] != "step"]
    records.write_text("".join(json.dumps(r) + "\n" for r in made))
    assert plot.main([str(records), "--figures", str(folder)]) == 0
    text = plot.markdown(made)
    ours = next(r for r in quick[0] if r["suite"] == "kernels" and r["candidate"] == "zokern" and r["dtype"] == "bf16" and r["terms"] == 1)
    assert f"bf16, {ours['n']:,} elements | {ours['ns_per_element']:.2f} ns an element" in text and ours["commit"] in text
    drawn = {"noise.png", "share.png"} | (set() if models.missing() else {"step.png", "memory.png"})
    assert drawn >= {path.name for path in folder.iterdir() if path.stat().st_size > 10_000} >= {"noise.png", "share.png"}


def test_trainer_and_the_plain_loop_take_turns(quick):
    (case,) = by_case(quick[0], "trainer") or pytest.skip("transformers or peft is not installed")
    assert set(case) == {"zokern.hf.ZOTrainer", "zokern.MeZO, plain loop"}
    ours, plain = case["zokern.hf.ZOTrainer"], case["zokern.MeZO, plain loop"]
    assert ours["rounds"] == plain["rounds"] == 10 and plain["over_plain"] == 0
    assert ours["over_plain"] == pytest.approx(ours["median_s"] / plain["median_s"] - 1)
    assert "suite trainer" in quick[1]
