"""Suites ``populations``, ``methods`` and ``rewards``: what they time is right, and their records become tables and pictures."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zokern

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

pytest.importorskip("transformers")

from bench import figures, methods, models, populations, rewards, search, table  # noqa: E402
from bench.__main__ import main  # noqa: E402
from bench.oracle import Refused  # noqa: E402

CPU = torch.device("cpu")
DATA = ROOT / ".." / "shared" / "data" / "sst2"


def test_an_iteration_of_a_tiny_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "records.jsonl"
    assert main(["--suite", "populations", "--quick", "--out", str(out)]) == 0
    ours, published, writing = (json.loads(line) for line in out.read_text().splitlines())
    assert [r["candidate"] for r in (ours, published, writing)] == [populations.OURS, populations.PUBLISHED, populations.WRITING]
    assert ours["share_of_generation"] == pytest.approx(ours["median_s"] / writing["median_s"])
    assert ours["speedup"] == pytest.approx(published["median_s"] / ours["median_s"]) and published["speedup"] == 1
    assert "beside what its members write" in capsys.readouterr().out


def test_a_wrong_iteration_is_refused(monkeypatch):
    """One that goes the other way."""
    right = zokern.EvolutionStrategies
    monkeypatch.setattr(zokern, "EvolutionStrategies", lambda *a, **kw: right(*a, **{**kw, "maximize": False}))
    with pytest.raises(Refused, match="off its equation"):
        populations.check(models.build("tiny", "fp32", CPU))


def test_the_published_iteration_is_its_equation():
    """theta + (lr / N) sum_n s_n z_n, with z by torch's generator, and weights that are where they were when a member is done."""
    weights = [torch.nn.Parameter(torch.ones(5, 3)), torch.nn.Parameter(torch.zeros(7))]
    before, given = [p.detach().double().clone() for p in weights], [1.0, 4.0, 2.0]
    numbers = iter(given)
    populations.PublishedES(weights).step(3, lambda: next(numbers))
    mean = sum(given) / 3
    deviation = (sum((x - mean) ** 2 for x in given) / 3) ** 0.5
    for p, old in zip(weights, before):
        for seed, x in enumerate(given):
            z = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).double()
            old = old + populations.LR / 3 * (x - mean) / (deviation + 1e-8) * z
        torch.testing.assert_close(p.detach().double(), old, rtol=0, atol=1e-6)


def test_every_method_makes_as_many_forward_passes(tmp_path):
    """Of a convex toy, in place of the problems, which want data: all of them come down."""

    class Toy:
        n = 32

        def __init__(self):
            generator = torch.Generator().manual_seed(0)
            self.x = torch.randn(self.n, 10, generator=generator)
            self.params = [torch.nn.Parameter(torch.ones(10))]

        def loss(self, rows=slice(None)):
            return (self.x[rows] @ self.params[0]).square().mean()

        def judged(self):
            return float(self.loss().detach())

        def figures(self):
            return {"test_accuracy": 1.0}

    case = replace(methods.cases(quick=True)[0], batch=32, forwards=288, searched=72, seeds=(0, 1))
    records = []
    for name in methods.METHODS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(methods, "problem_of", lambda *_: Toy())
            records += methods.measure(replace(case, candidate=name), CPU)
    for r in records:
        allowed = 72 if r["searched"] else 288
        assert allowed - 17 < r["forwards_made"] == r["curve"][-1][0] <= allowed
        assert r["searched"] or r["final_loss"] < r["curve"][0][1]
    for name in methods.METHODS:
        own = [r for r in records if r["candidate"] == name]
        losses = {r["settings"]["lr"]: math.inf if r["final_loss"] is None else r["final_loss"] for r in own if r["searched"]}
        [best] = {r["settings"]["lr"] for r in own if not r["searched"]}
        place = search.RATES.index(best)
        assert losses[best] == min(losses.values()) and set(search.RATES[max(0, place - 1) : place + 2]) <= losses.keys()
    out = tmp_path / "records.jsonl"
    out.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert "has MeZO" in methods.missing(case, out) and "has MeZO" not in methods.missing(replace(case, forwards=9), out)
    text = table.text(records)
    assert all(name in text for name in methods.METHODS)


def test_rewards_of_a_run_become_a_table_and_a_picture(tmp_path):
    case = rewards.cases(quick=True)[0]
    if reason := rewards.missing(replace(case, data=str(DATA)), tmp_path / "none"):
        pytest.skip(reason)
    records = rewards.measure(replace(case, data=str(DATA)), CPU)
    (one,) = records
    assert [step for step, _ in one["curve"]] == [0, 1] and one["curve"][0][1] == one["before"]["reward"]
    assert one["generated"] > 0 and 0 < one["noise_share"] < 1
    assert figures.draw(records, tmp_path) == [tmp_path / "rewards.png"]
    assert "in one word" in table.text(records)
    (tmp_path / "out").write_text(json.dumps(one) + "\n")
    assert "has seed 0" in rewards.missing(replace(case, data=str(DATA)), tmp_path / "out")
