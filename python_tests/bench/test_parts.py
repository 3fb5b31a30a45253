"""Suite ``parts``: who is in which part, the trace of a Hessian in closed form, and the suite on a tiny Llama."""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

transformers = pytest.importorskip("transformers")

from bench import methods, models, parts, problems, runs, variance  # noqa: E402
from bench.__main__ import main  # noqa: E402

SMALL = dict(vocab_size=50, hidden_size=16, num_attention_heads=2, max_position_embeddings=16)


def llama(**more):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, intermediate_size=32, num_hidden_layers=7, tie_word_embeddings=True, **more)
    return transformers.LlamaForCausalLM(config).eval()


class Tiny:
    """The next token of random rows."""

    def __init__(self, seed, device, data):
        self.model = llama(initializer_range=0.3).to(device)
        self.params, self.n = list(self.model.parameters()), 12
        self.rows = torch.randint(50, (self.n, 6), generator=torch.Generator().manual_seed(seed))

    def loss(self, numbers):
        return self.model(input_ids=self.rows[numbers], labels=self.rows[numbers]).loss

    @torch.no_grad()
    def judged(self):
        return float(self.loss(torch.arange(self.n)))


def test_every_parameter_is_in_one_part():
    opt = transformers.OPTForCausalLM(transformers.OPTConfig(**SMALL, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=4))
    for model, thirds in ((llama(), (2, 3, 2)), (opt, (1, 2, 1))):
        found, names = parts.parts(model), {p: name for name, p in model.named_parameters()}
        assert sorted(names[p] for params in found.values() for p in params) == sorted(names.values())
        for depth, count in zip(("lower", "middle", "upper"), thirds):
            matrices = {"attention": 4, "MLPs": 2 if model is opt else 3}
            for kind, each in matrices.items():
                assert len(found[f"{depth} {kind}"]) == each * count
        assert all("mlp" in names[p] or "fc" in names[p] for p in found["middle MLPs"])


def test_curvature_is_the_trace():
    """Of the mean of (x w - y)^2 the Hessian is 2 x^T x / n: each estimate is z^T H z, and T their mean."""
    problem = problems.LeastSquares(0, n=64, d=7)
    x = problem.x.double()
    trace = 2 * float(x.square().sum()) / 64
    found = parts.curvature(problem, problem.params, parts.Parts(directions=200, rows=64, batch=16))
    error = statistics.stdev(found) / 200**0.5
    assert error < 0.15 * trace and abs(statistics.mean(found) - trace) < 4 * error


def test_what_a_query_lowers_the_loss_by_is_the_best_of_all_rates():
    r = {"gradient_square": 3.0, "row_variance": 100.0, "trace": 50.0}

    def lowered(rate):  # by eta |g|^2 - eta^2 T (|g|^2 + V / B) / 2, for 2 B queries
        return (rate * 3 - rate**2 * 50 * (3 + 100 / 16) / 2) / 32

    best = parts.rate(r, 16)
    assert parts.lowered(r, 16) == pytest.approx(lowered(best)) and lowered(best) > max(lowered(0.9 * best), lowered(1.1 * best))


def test_the_suite(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(methods, "Pretrained", Tiny)
    monkeypatch.setattr(models, "missing", lambda model: "")
    monkeypatch.setattr(problems, "no_data", lambda data: "")
    few = replace(parts.cases(quick=True)[0], batch=3, rows=12)
    monkeypatch.setattr(parts, "cases", lambda quick, data: [replace(few, data=data)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "records.jsonl"
    assert main(["--suite", "parts", "--quick", "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    before, after = ([r for r in records if r["steps"] == steps] for steps in (0, 1))
    assert len(before) == len(after) == 9 and after[0]["held_out_loss"] < before[0]["held_out_loss"]
    problem = Tiny(0, "cpu", None)
    assert sum(r["n"] for r in before) == sum(p.numel() for p in problem.params)
    square, row_variance = variance.moments(problem, 3)
    assert sum(r["gradient_square"] for r in before) == pytest.approx(square, rel=1e-4)
    assert sum(r["row_variance"] for r in before) == pytest.approx(row_variance, rel=1e-4)
    every = [row for row in runs.of_parts(records) if row["part"] == "every parameter"]
    assert len(every) == 2 and all(row["a query"] == ("1" if int(row["T"]) > 0 else "") for row in every)
    assert "middle MLPs" in capsys.readouterr().out
