"""The picture of a run: what it shows can be read."""

import pytest

from zokern.finetune.metrics_of_model import best_of
from zokern.finetune.report import draw

FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg


def history(steps, flat=False):
    entries = [{"step": 0, "eval_loss": 0.7, "eval_accuracy": 0.5}]
    for step in range(1, steps + 1):
        entries.append({"step": step, "loss": 0.7 if flat else 0.7 / step})
        entries.append({"step": step, "eval_loss": 0.6 / step, "eval_accuracy": 1 - 0.5 / step})
    return entries


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 400])
def test_steps_are_whole_and_the_legend_covers_nothing(tmp_path, steps):
    figure = draw(history(steps), "accuracy", "a model, mezo, lora", tmp_path / "curve.png")
    left, right = figure.axes
    low, high = left.get_xlim()
    ticks = [tick for tick in left.get_xticks() if low <= tick <= high]
    assert len(ticks) > 1 and all(tick == int(tick) for tick in ticks)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training loss", "held-out loss", "held-out accuracy"]
    assert not left.get_legend() and not right.get_legend()
    FigureCanvasAgg(figure).draw()
    drawn = figure.canvas.get_renderer()
    covered = legend.get_window_extent(drawn)
    assert not any(covered.overlaps(axes.get_tightbbox(drawn)) for axes in (left, right))
    assert covered.x0 >= 0 and covered.x1 <= figure.bbox.x1 and covered.y0 >= 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_written_answers_has_no_held_out_loss(tmp_path):
    entries = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 2, "eval_f1": 0.25}]
    figure = draw(entries, "f1", "a model", tmp_path / "curve.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training loss", "held-out f1"]


def test_the_best_evaluation():
    """The highest metric; of equal ones the least loss; then the first. What was judged before any step is none."""

    def judged(step, accuracy, loss):
        return {"step": step, "eval_accuracy": accuracy, "eval_loss": loss, "epoch": 1.0}

    entries = [
        judged(0, 1.0, 0.0),
        judged(2, 0.5, 0.7),
        {"step": 3, "loss": 0.1},
        judged(4, 0.75, 0.6),
        judged(6, 0.75, 0.5),
        judged(8, 0.75, 0.5),
    ]
    assert best_of(entries, "accuracy") == {"step": 6, "accuracy": 0.75, "loss": 0.5}
    assert best_of(entries[:1], "accuracy") is None
    assert best_of([{"step": 2, "eval_f1": 0.1}, {"step": 4, "eval_f1": 0.3}, {"step": 6, "eval_f1": None}], "f1") == {"step": 4, "f1": 0.3}
