"""The picture of a run: what it shows can be read."""

import math

import pytest

from zokern.finetune.curves import APART, apart, smooth
from zokern.finetune.metrics_of_model import best_of
from zokern.finetune.report import draw, step_of

FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg


def history(steps, flat=False):
    entries = [{"step": 0, "eval_loss": 0.7, "eval_accuracy": 0.5}]
    for step in range(1, steps + 1):
        entries.append({"step": step, "loss": 0.7 if flat else 0.7 / step})
        entries.append({"step": step, "eval_loss": 0.6 / step, "eval_accuracy": 1 - 0.5 / step})
    return entries


NAMES = ("step (2 forward passes each)", "loss (nats)")


def beside(axes):
    """The names to the right of a panel, from below."""
    texts = [text for text in axes.texts if text.get_transform() == axes.transAxes]
    return [text.get_text() for text in sorted(texts, key=lambda text: text.get_position()[1])]


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 400])
def test_steps_are_whole_and_names_cover_nothing(tmp_path, steps):
    figure = draw(history(steps), "accuracy", ("a model on a task", "mezo, lora"), NAMES, tmp_path / "curve.png")
    upper, lower = figure.axes
    low, high = lower.get_xlim()
    ticks = [tick for tick in lower.get_xticks() if low <= tick <= high]
    assert len(ticks) > 1 and all(tick == int(tick) for tick in ticks)
    assert (upper.get_title(loc="left"), lower.get_xlabel()) == ("a model on a task\nmezo, lora", NAMES[0])
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("loss (nats)", "accuracy")
    assert sorted(beside(lower)) == sorted(["before 0.500", "held out", f"best {1 - 0.5 / steps:.3f} (step {steps})"])
    FigureCanvasAgg(figure).draw()
    drawn = figure.canvas.get_renderer()
    for axes in (upper, lower):
        texts = [text.get_window_extent(drawn) for text in axes.texts]
        inside = axes.get_window_extent(drawn)
        assert len(texts) == 3
        for i, box in enumerate(texts):
            assert not box.overlaps(inside) and box.x1 <= figure.bbox.x1 and not any(map(box.overlaps, texts[:i]))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_before_and_the_best_are_marked(tmp_path):
    figure = draw(history(5), "accuracy", ["a model"], NAMES, tmp_path / "curve.png")
    for axes, name, value in zip(figure.axes, ("loss", "accuracy"), (0.7, 0.5)):
        before = lines(axes)["before"]
        assert before.get_linestyle() == ":" and list(before.get_ydata()) == [value, value], name
    assert lines(figure.axes[1])["best"].get_xydata().tolist() == [[5, 0.9]]
    assert lines(figure.axes[1])["held out"].get_xdata().tolist() == list(range(6))


def test_a_run_of_written_answers_has_no_held_out_loss(tmp_path):
    entries = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 2, "eval_f1": 0.25}]
    figure = draw(entries, "f1", ["a model"], NAMES, tmp_path / "curve.png")
    assert [beside(axes) for axes in figure.axes] == [["| 1 not finite", "training"], ["held out", "best 0.250 (step 2)"]]
    assert lines(figure.axes[0])["not finite"].get_xdata() == [2]


def test_a_line_has_a_gap_where_losses_were_not_finite(tmp_path):
    entries = [{"step": step, "loss": math.nan if 5 <= step < 8 else 1.0} for step in range(20)]
    figure = draw(entries, "accuracy", ["a model"], NAMES, tmp_path / "curve.png")
    (line,) = (line for name, line in lines(figure.axes[0]).items() if name.startswith("training, mean of 5"))
    assert [step for step, loss in zip(*line.get_data()) if math.isnan(loss)] == [5, 6, 7]
    assert "| 3 not finite" in beside(figure.axes[0])


def test_many_losses_are_averaged_and_few_are_not(tmp_path):
    assert smooth([1.0, 3.0, 8.0]) == ([1.0, 3.0, 8.0], 1)
    assert smooth([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == ([1.0, 1.5, 2.0, 2.5, 3.0, 4.0], 5)
    entries = [{"step": step, "loss": 1.0} for step in range(1, 20_001)]
    figure = draw(entries, "accuracy", ["a model"], NAMES, tmp_path / "curve.png")
    assert beside(figure.axes[0]) == ["training, mean of 400"]


def test_a_title_is_text_as_it_is(tmp_path):
    """No mathematics, no escapes, and not longer than the picture."""
    title = ["a $model$ $\\foo$", "x\x1b[3m", "y" * 300]
    figure = draw(history(3), "accuracy", title, NAMES, tmp_path / "curve.png")
    first, second, third = figure.axes[0].get_title(loc="left").split("\n")
    assert (first, second) == ("a $model$ $\\foo$", "x\\x1b[3m") and len(third) < 80 and "…" in third
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].title.get_window_extent(figure.canvas.get_renderer()).x1 <= figure.bbox.x1


def test_names_that_would_overlap_move_apart():
    assert apart([0.1, 0.9]) == pytest.approx([0.1, 0.9])
    assert apart([0.5, 0.5]) == pytest.approx([0.5 - APART / 2, 0.5 + APART / 2])
    found = apart([0.2, 0.5, 0.5, 0.5, 0.55])
    assert all(b - a >= APART - 1e-9 for a, b in zip(found, found[1:])) and found[0] == pytest.approx(0.2)


def test_a_step_is_told_by_its_passes():
    assert step_of(20, 40, 0) == "step (2 forward passes each)"
    assert step_of(20, 20, 0) == "step (1 forward pass each)"
    assert step_of(20, 41, 20) == "step (2.05 forward and 1 backward passes each)"
    assert step_of(0, 0, 0) == "step"


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
