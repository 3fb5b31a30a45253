"""What a run's summary and log count and tell."""

import json
import warnings
from dataclasses import replace
from itertools import count

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from zokern.evolve import evolve  # noqa: E402
from zokern.evolve.report import draw  # noqa: E402


def brief(completions):
    return [-float(len(text)) for text in completions]


def run(settings, out, rewards, **more):
    return evolve(replace(settings, out=str(out), **more), lambda line: None, rewards)


@pytest.mark.parametrize("last", [0.3, 0.2])
def test_the_best_is_told_where_it_is_better_than_the_last(last, settings, tmp_path):
    judged, calls = {0: 0.1, 5: 0.3, 10: last, 11: last}, count()  # the last one of what is saved

    def scripted(completions):
        return [judged.get(next(calls), 0.0)] * len(completions)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of members that all have the same reward
        result = run(replace(settings, eval_every=1, steps=2), tmp_path / "run", [scripted])
    told = [line for line in result.lines() if line.startswith("best ")]
    assert result.best["step"] == 1 and len(told) == (last < 0.3)
    assert all("0.300 on held-out rows after iteration 1:" in line for line in told)


def test_what_is_measured_at_theta_is_no_member(settings, tmp_path):
    """FZOO begins with the weights as they are, here the worst by far: no reward, spread or mean of the population holds that."""
    each, calls = [-9.0, 0.25, 0.5, 1.0], count()

    def scripted(completions):
        call = next(calls)
        return [each[call - 1] if 1 <= call <= 4 else 0.0] * len(completions)

    made = replace(settings, optimizer="fzoo", lr=0.01, optimizer_settings=dict(eps=0.05, q=3), steps=1)
    result = run(made, tmp_path / "run", [scripted, brief], reward_weights=(1, 1e-9))
    entry = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[1])
    assert result.members == 3 and any(" 1 iterations of 3 members" in line for line in result.lines())
    assert entry["reward"] == pytest.approx(1.75 / 3) == entry["rewards/scripted"] and entry["best"] == pytest.approx(1.0)
    assert entry["spread"] == pytest.approx(torch.tensor(each[1:], dtype=torch.float64).std(correction=0).item())
    assert entry["tokens"] > 3 * 4 * 3  # of all that was written


def test_the_curve_names_what_it_shows(tmp_path):
    population = [{"step": step, "reward": 0.1 * step, "best": 0.1 * step + 0.2, "spread": 0.1} for step in (1, 2, 3)]
    judged = [{"step": step, "eval_reward": reward} for step, reward in ((0, 0.05), (2, 0.4), (3, 0.3))]
    failed = {"step": 4, "reward": None, "best": None, "spread": None}
    figure = draw([*judged[:1], *population, *judged[1:], failed], ("a model on rows", "es, full"), 8, tmp_path / "curve.png")
    (axes,) = figure.axes
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"before 0.050", "best 0.400 (iteration 2)", "held out", "mean of members", "best member", "| 1 not finite"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration (8 members each)", "mean reward")
    assert axes.get_title(loc="left") == "a model on rows\nes, full"
    (best,) = (line for line in axes.lines if line.get_label() == "best")
    assert best.get_xydata().tolist() == [[2, 0.4]]
