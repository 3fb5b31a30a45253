"""Suites ``convergence`` and ``optimizers`` run, their records say what was run, and a rule that is wrong is not timed."""

import contextlib
import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import zokern
from zokern.noise.reference import masked_noise

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import cases, convergence, curves, effective_rank, figures, materialised, models, optimizers, problems, record, runs  # noqa: E402
from bench.__main__ import main  # noqa: E402
from bench.oracle import Refused  # noqa: E402


def bench(*arguments, out):
    """-> records, what was printed, and what was said beside."""
    threads, printed, said = torch.get_num_threads(), io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            assert main([*arguments, "--quick", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    return [json.loads(line) for line in out.read_text().splitlines()], printed.getvalue(), said.getvalue()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return bench("--suite", "convergence", out=tmp_path_factory.mktemp("convergence") / "quick.jsonl")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    if reason := models.missing():
        pytest.skip(reason)
    return bench("--suite", "optimizers", out=tmp_path_factory.mktemp("optimizers") / "quick.jsonl")


def test_every_run_is_recorded(quick):
    records, printed, said = quick
    wanted = {"least squares", "effective rank"} | (set() if problems.missing("digits") else {"digits"})
    assert {r["op"] for r in records} == wanted
    assert "MiniLM, SST-2 is skipped: pass --data" in said
    for (problem, method), same in runs.by_method(records).items():
        assert len({r["seed"] for r in same}) == len(same) == (2 if problem == "least squares" else 1)
        assert method in printed and convergence.SEARCH_SEED not in [r["seed"] for r in same]
    assert not [line for line in printed.splitlines() if len(line) > 120]


def test_a_record_tells_its_run(quick):
    for r in quick[0]:
        assert set(record.FIELDS) <= set(r)
        assert r["suite"] == "convergence" and r["machine"]["cpu"] and r["commit"] and r["versions"]["zokern"] == zokern.__version__
        assert r["backend"] == ("torch" if r["candidate"] in (cases.SGD, effective_rank.GD) else r["backend"])
        if r["op"] == "effective rank":
            assert r["effective_rank"] == pytest.approx(sum(i ** -r["alpha"] for i in range(1, 101)))
            continue
        queries, losses = zip(*r["curve"])
        assert queries[0] == 0 and list(queries) == sorted(set(queries)) and queries[-1] == r["queries"]
        assert 2 <= len(queries) <= 50
        assert r["final_loss"] == losses[-1] and all(map(math.isfinite, losses))
        assert (r["optimum"] is None) == (r["op"] != "least squares")
        assert ("test_accuracy" in r) == (r["op"] == "digits")


def test_the_best_settings_of_the_search_are_reported(quick):
    for (problem, method), same in runs.by_method(quick[0]).items():
        searched = [r for r in quick[0] if r["op"] == problem and r["candidate"] == method and r["searched"]]
        assert bool(searched) == (problem != "least squares")
        if searched:
            best = min(searched, key=lambda r: r["final_loss"])
            assert {json.dumps(r["settings"]) for r in same} == {json.dumps(best["settings"])}


@pytest.mark.parametrize(("method", "queries"), [(cases.MEZO, 2 * 32 * 4), (cases.SVRG, 2 * 2 * 1000 + 2 * 4 * 32), (cases.SGD, 32 * 4)])
def test_queries_are_losses_of_one_example(method, queries):
    """Four steps, counted where the losses are computed; backpropagation is one query an example."""
    problem, seen = problems.LeastSquares(0), []
    loss = problem.loss
    problem.loss = lambda rows=slice(None): (seen.append(problem.n if isinstance(rows, slice) else len(rows)), loss(rows))[1]
    settings = {name: values[0] for name, values in cases.LEAST_SQUARES[method].items()}
    step = convergence.METHODS[method](problem, 0, **settings)
    told = sum(step(rows) for rows, _ in zip(convergence.batches(1000, 32, 0), range(4)))
    assert told == sum(seen) == queries


def test_the_optimum_of_least_squares():
    problem = problems.LeastSquares(3)
    x, y = problem.x.double(), problem.y.double()
    w = torch.linalg.solve(x.T @ x, x.T @ y)
    assert problem.optimum == pytest.approx(float((x @ w - y).square().mean()))
    with torch.no_grad():
        problem.model.weight.copy_(w)
    assert float(problem.loss().detach()) == pytest.approx(problem.optimum, rel=1e-5)  # float32


def test_a_run_that_diverges_ends():
    case = cases.Convergence("least squares", 32, cases.equal(10_000_000), (0,), {})
    r = convergence.run(case, problems.LeastSquares, cases.SGD, {"lr": 10.0}, 0, CPU)
    assert r["final_loss"] is None and r["queries"] < 10_000
    json.dumps(r, allow_nan=False)


def test_an_epoch_sees_every_example_once():
    epoch = [rows for rows, _ in zip(convergence.batches(10, 3, 0), range(3))]
    assert len(torch.cat(epoch).unique()) == 9
    again = [rows for rows, _ in zip(convergence.batches(10, 3, 0), range(6))][3:]
    assert not torch.equal(torch.cat(epoch), torch.cat(again))


def test_gradient_descent_takes_the_steps_that_it_must():
    """With lr = 1 each coordinate shrinks by 1 - lambda a step."""
    eigenvalues = torch.arange(1, 101, dtype=torch.float64) ** -1.5
    taken, curve = effective_rank.steps(effective_rank.GD, eigenvalues, 1.0, 0, 0.1, 1000)
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).double()
    f = [float((eigenvalues * (x * (1 - eigenvalues) ** t).square()).sum() / 2) for t in range(1000)]
    assert taken == next(t for t, value in enumerate(f) if value <= 0.1)
    assert [value for _, value in curve] == pytest.approx([f[t] for t, _ in curve], rel=1e-5)  # x is float32


def test_pictures_are_drawn_from_records(quick, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = {path.name for path in figures.draw(quick[0], tmp_path)}
    assert drawn == {"least-squares.png", "effective-rank.png"} | (set() if problems.missing("digits") else {"digits.png"})
    assert len(curves.curves(quick[0], "least squares").axes[0].lines) == 3


def test_sentences_go_through_the_frozen_layers_once(tmp_path):
    rows = [f"{text} {i}\t{label}" for i in range(20) for text, label in (("a good film", 1), ("a bad film", 0))]
    for name in ("train.tsv", "test.tsv"):
        (tmp_path / name).write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    if reason := problems.missing("MiniLM, SST-2", tmp_path) or models.missing():
        pytest.skip(reason)
    problem = problems.maker("MiniLM, SST-2", CPU, tmp_path)(seed=0)
    assert problem.x.shape == (40, 384) and not problem.x.requires_grad and len(problem.test[0]) == 40
    assert sum(p.numel() for p in problem.params) == 384 * 384 + 384 + 2 * 384 + 2
    assert float(problem.loss().detach()) == pytest.approx(math.log(2), abs=0.1)  # of a new head
    same = problems.maker("MiniLM, SST-2", CPU, tmp_path)(seed=0)
    assert all(torch.equal(p, q) and p is not q for p, q in zip(problem.params, same.params))


def test_own_parts_are_recorded(own):
    records, printed, _ = own
    assert {r["op"] for r in records} == set(optimizers.OPTIMIZERS)
    state = {}
    for r in records:
        assert set(record.FIELDS) <= set(r) and r["suite"] == "optimizers" and r["threads"] == 1
        assert r["step_s"] == pytest.approx(r["median_s"] / r["steps"])
        state[r["op"], r["candidate"]] = r["state_bytes"] / r["weights_bytes"] if r["state_bytes"] is not None else None
    assert {state[op, "zokern.MeZO"] for op, how in state if how == "zokern.MeZO"} == {0}
    assert state["ZOSign", "zokern.ZOSign"] == state["ZOConservative", "zokern.ZOConservative"] == 0
    assert state["ZOMomentum", "zokern.ZOMomentum"] == 1 and state["ZOAdam", "zokern.ZOAdam"] == state["ZOAdam", optimizers.FUSED] == 2
    assert {state[op, how] for op, how in state if how.startswith("zokern.AdaMeZO, history=")} == {0}
    assert state["MeZOSVRG", "zokern.MeZOSVRG, replay"] == 0
    assert state["MeZOSVRG", "zokern.MeZOSVRG, copy"] == 1 and state["MeZOSVRG", optimizers.MATERIALISED] == 2
    assert "ms a step" in printed


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_a_wrong_rule_is_refused(name, monkeypatch):
    """Off by a thousandth in its learning rate; and one that draws another z."""
    rule = optimizers.OPTIMIZERS[name]
    params = [(160, 33), (3,), (41, 7)]
    for ours, theirs in rule.pairs:
        optimizers.check(ours, theirs, optimizers.weights(params, "fp32", CPU))
        with monkeypatch.context() as patch, pytest.raises(Refused):
            patch.setattr(materialised, "LR", materialised.LR * 1.001)
            optimizers.check(ours, theirs, optimizers.weights(params, "fp32", CPU))
        with monkeypatch.context() as patch, pytest.raises(Refused):
            patch.setattr(optimizers, "masked_noise", lambda key, *where: masked_noise(key.to(7), *where))
            optimizers.check(ours, theirs, optimizers.weights(params, "fp32", CPU))
