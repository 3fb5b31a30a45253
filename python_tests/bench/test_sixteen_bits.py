"""What the benchmarks say of 16-bit weights is what explicit z, torch's own rounding and the sizes of tensors say."""

import json
import sys
from pathlib import Path

import pytest
import torch

import zokern
from zokern.noise import reference

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import cases, drift, figures, models, modes, precision, resident, rounding, smollm2, table  # noqa: E402
from bench.__main__ import main  # noqa: E402

SIXTEEN = {"bf16": torch.bfloat16, "fp16": torch.float16}


def explicit(layout, k):
    """z of direction k for each parameter, by the oracle."""
    key = zokern.NoiseKey(0, k)
    return [
        torch.from_numpy(reference.noise(key, first, p.numel())).view(p.shape).double() for first, p in zip(layout.first, layout.params)
    ]


class Linear(torch.nn.Module):
    """A loss that is linear in weights of sizes from far below eps to far above it; computed in float64, so that nothing else rounds."""

    def __init__(self, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.small, self.large = (torch.nn.Linear(50, 40, bias=False) for _ in range(2))
        for layer, size in ((self.small, 0.02), (self.large, 3.0)):
            layer.weight = torch.nn.Parameter((torch.randn(40, 50, generator=generator) * size).to(dtype))
        self.slopes = [torch.randn(40, 50, generator=generator, dtype=torch.float64) for _ in range(2)]

    def loss(self):
        return sum((p.double() * slope).sum() for p, slope in zip(self.parameters(), self.slopes))


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_projected_gradients_of_rounded_points(dtype):
    case = cases.Rounding(dtype, 1e-3, directions=4, batch=1, tokens=1)
    model = Linear(SIXTEEN[dtype])
    theta = [p.detach().clone() for p in model.parameters()]
    layout = zokern.Layout(theta)
    found = {r["candidate"]: r for r in rounding.compared(model, [Linear.loss] * 4, case, CPU)}
    assert set(found) == {"not rounded, computed in fp32"} | {
        f"{h}, computed in {d}" for h in ("nearest", "dithered") for d in (dtype, "fp32")
    }
    exact = found["not rounded, computed in fp32"]
    nearest, dithered = (found[f"{how}, computed in {dtype}"] for how in ("nearest", "dithered"))
    kept = []
    for k in range(4):
        z = explicit(layout, k)
        points = [[(p.double() + sign * case.eps * each).to(p.dtype).double() for p, each in zip(theta, z)] for sign in (1, -1)]
        directions = [(plus - minus) / (2 * case.eps) for plus, minus in zip(*points)]
        g = float(sum((d * slope).sum() for d, slope in zip(directions, model.slopes)))
        # Rounding twice, to float64 and to 16 bits, moves a weight in a thousand by one unit in the last place.
        assert nearest["projected_grads"][k] == pytest.approx(g, abs=3.0)
        g = float(sum((each * slope).sum() for each, slope in zip(z, model.slopes)))
        assert exact["projected_grads"][k] == pytest.approx(g, abs=0.1)  # float32 points
        kept.append([float((d * each).sum() / each.square().sum()) for d, each in zip(directions, z)])
    # What the weights of size 3 lose, their spacing being far above eps in bfloat16, and dithering brings back.
    assert nearest["direction_by_kind"]["small"]["kept"] == pytest.approx(kept[0][0], abs=1e-3)
    assert nearest["direction_by_kind"]["large"]["kept"] == pytest.approx(kept[0][1], abs=1e-3)
    assert dithered["direction_by_kind"]["large"]["kept"] == pytest.approx(1, abs=0.4 if dtype == "bf16" else 0.1)
    assert exact["slope"] == pytest.approx(1) == exact["cosine"]
    same = found[f"nearest, computed in {dtype}"], found["nearest, computed in fp32"]  # nothing but the weights is rounded here
    assert same[0]["projected_grads"] == same[1]["projected_grads"]
    assert nearest.items() >= rounding.beside(exact["projected_grads"], nearest["projected_grads"]).items()
    printed = table.text(list(found.values()))
    assert f"{nearest['slope']:.3f}" in printed and not [line for line in printed.splitlines() if len(line) > 120]


def test_numbers_beside_those_that_they_should_be():
    found = rounding.beside([1.0, -2.0, 3.0], [2.0, -4.0, 6.0])
    assert found == {"slope": 2, "slope_se": 0, "cosine": pytest.approx(1), "rms_ratio": pytest.approx(2), "median_ratio": 2}
    found = rounding.beside([1.0, 1.0], [1.0, 0.0])
    assert found["slope"] == 0.5 and found["cosine"] == pytest.approx(0.5**0.5) and found["slope_se"] == pytest.approx(0.125**0.5)


@pytest.fixture(scope="module")
def drifted():
    return {d: drift.measure(cases.Drift(d, 1 << 12, 20, 100), CPU) for d in ("fp32", *SIXTEEN)}


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_only_weights_in_place_drift(drifted, dtype):
    found = {r["candidate"]: r for r in drifted[dtype] if r["op"] == drift.DRIFT}
    assert set(found) == {*modes.MODES, "MeZO as published"}
    for name, r in found.items():
        still = name not in (modes.OURS, "MeZO as published")
        assert r["bit_equal"] is still and (r["drift_over_eps"] == 0) is still


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_what_is_delivered_of_small_updates(drifted, dtype):
    """To nearest: what torch's rounding makes of the same updates. Stochastic: all, up to five standard errors (a false alarm in 1e6)."""
    found = {r["candidate"]: r for r in drifted[dtype] if r["op"] == drift.UPDATE}
    theta = drift.Weights(1 << 12, SIXTEEN[dtype]).weight.detach()
    z = [explicit(zokern.Layout([theta]), k)[0] for k in range(100)]
    moved = [(theta.double() + drift.SMALL * each).to(theta.dtype).double() - theta.double() for each in z]
    right = float(sum((m * each).sum() for m, each in zip(moved, z)) / sum(drift.SMALL * each.square().sum() for each in z))
    assert found[modes.OURS]["delivered"] == pytest.approx(right, abs=1e-4) and right < 0.5
    for name in (modes.STREAMED, modes.OWN):
        assert found[name]["rounding"] == "stochastic"
        assert abs(found[name]["delivered"] - 1) < 5 * found[name]["delivered_se"] < 0.25
    assert found[modes.COPIED]["delivered"] == pytest.approx(1, abs=1e-4)


def test_the_table_of_drift(drifted):
    printed = table.text([r for records in drifted.values() for r in records])
    assert "suite drift" in printed and not [line for line in printed.splitlines() if len(line) > 120]
    assert {r["candidate"] for r in drifted["fp32"]} == {modes.OURS, modes.STREAMED, modes.COPIED, "MeZO as published"}


def test_resident_memory_is_that_of_the_largest_part(monkeypatch):
    """In processes of their own, as Linux counts it."""
    if not sys.platform.startswith("linux") or models.missing():
        pytest.skip("needs Linux and transformers")
    monkeypatch.setattr(modes, "of", lambda dtype: [modes.OURS, modes.STREAMED])
    found = {r["candidate"]: r for r in resident.measure(cases.Resident("MiniLM", "bf16", 1, 8), CPU)}
    over = {name: r["peak_over_forwards_bytes"] for name, r in found.items()}
    part = found[modes.STREAMED]["largest_part_bytes"]
    spare = 6 << 20  # pages of the interpreter and of allocators
    assert over["two forwards"] == 0 and over[modes.OURS] < spare
    assert part <= over[modes.STREAMED] < part + spare and part == 30522 * 384 * 2
    printed = table.text(list(found.values()))
    assert "suite memory, by mode" in printed and not [line for line in printed.splitlines() if len(line) > 120]


def run_of(candidate, seed, **more):
    """The record of a run, as suite ``convergence`` writes it."""
    curve = [(0, 1.0), (16, 0.9 - 0.1 * seed), (32, 0.8)]
    settings = {"settings": {"lr": 5e-6}, "searched": False, "optimum": None, "curve": curve, "final_loss": 0.8, "test_accuracy": 0.5}
    sizes = {"steps": 500, "batch": 8, "queries": 32, "n": 10, "examples": 4}
    return {"suite": "convergence", "op": precision.PROBLEM, "candidate": candidate, "seed": seed, **settings, **sizes, **more}


def test_a_run_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "missing", lambda name: "no model")
    out = tmp_path / "records.jsonl"
    case = cases.precisions()[0]
    assert precision.missing(case, out) == "no model"
    others = [run_of("float32", 1), run_of("float32", 0, error="it failed"), run_of("float32", 0, steps=2), run_of("bfloat16, copied", 0)]
    out.write_text("".join(json.dumps(r) + "\n" for r in others))
    assert precision.missing(case, out) == "no model"
    out.write_text(out.read_text() + json.dumps(run_of("float32", 0)) + "\n")
    assert "has float32, seed 0" in precision.missing(case, out)


def test_the_runs_are_every_way_with_every_seed():
    listed = cases.precisions()
    assert {case.candidate for case in listed} == set(precision.CANDIDATES) and {case.seed for case in listed} == {0, 1, 2}
    assert len(listed) == 18 and all(case.steps == 500 for case in listed)
    assert {case.candidate for case in listed if case.lr == 0} == {cases.DRIFTS}


def test_the_picture_of_the_runs(tmp_path):
    pytest.importorskip("matplotlib")
    records = [run_of(candidate, seed) for candidate in precision.CANDIDATES for seed in (0, 1)]
    (drawn,) = figures.draw(records, tmp_path)
    assert drawn.name == "sixteen-bits.png" and drawn.stat().st_size > 10_000


def test_a_run(tmp_path):
    """Where the model is there: float32 and a mode of bfloat16 see the same batches along the same directions."""
    if reason := smollm2.missing():
        pytest.skip(reason)
    for name in ("train.tsv", "test.tsv"):
        rows = [f"it is a {word} film number {i}\t{i % 2}" for i in range(600) for word in (("bad", "good")[i % 2],)]
        (tmp_path / name).write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    found = {}
    for candidate in ("float32", "bfloat16, copied"):
        (found[candidate],) = precision.measure(cases.Precision(candidate, 0, 1, 1, 2, 32, 5e-6, 4, tmp_path), CPU)
    wide, copied = found.values()
    assert (copied["perturbation"], copied["dtype"], wide["perturbation"]) == ("copied", "bf16", "in-place")
    assert copied["train_losses"] == pytest.approx(wide["train_losses"], rel=0.1) and len(wide["curve"]) == 2


def test_a_model_that_is_missing_is_named_with_its_cure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BENCH_SMOLLM2", str(tmp_path / "none"))
    monkeypatch.setattr(smollm2, "find_spec", lambda module: None)
    assert main(["--suite", "rounding", "--quick", "--out", str(tmp_path / "records.jsonl")]) == 0
    assert smollm2.CURE in capsys.readouterr().err


def test_the_pretrained_model_is_converted_once(tmp_path, monkeypatch):
    """Where its packages are installed."""
    monkeypatch.setenv("BENCH_SMOLLM2", str(tmp_path / "model"))
    if reason := smollm2.missing():
        pytest.skip(reason)
    assert sum(p.numel() for p in smollm2.load(torch.bfloat16).parameters()) == 134_515_008
    monkeypatch.setattr(smollm2, "find_spec", None)
    reader = smollm2.reader(64)
    assert smollm2.missing() == "" and reader.kind == "causal" and [*tmp_path.iterdir()] == [tmp_path / "model"]
