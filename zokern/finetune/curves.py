"""The picture of a run: lines over its steps, each with its name beside it, so that no legend covers any."""

import math
import warnings
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import need

BLUE, GREEN, VERMILION, GREY = "#0072B2", "#009E73", "#D55E00", "#555555"  # of Okabe and Ito, whom colour-blind readers can tell apart
WINDOW = 5  # logged values that a drawn one is the mean of, at least: one says little
MARKED = 50  # evaluations at most that have a dot each
APART = 0.085  # between names beside a panel, of its height
LONGEST = 76  # characters of a title

Series = tuple[list[int], list[float]]


def series(history: Sequence[dict[str, Any]], name: str) -> Series:
    """-> (steps, values) of what was logged under a name and is finite."""
    found = [(entry["step"], entry[name]) for entry in history if _finite(entry.get(name))]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: Sequence[float]) -> tuple[list[float], int]:
    """-> (the mean of each value and those before it, of how many): a fiftieth of all, or ``WINDOW``; fewer at the start. No more than
    ``WINDOW`` values are as they are."""
    window = max(WINDOW, len(values) // 50) if len(values) > WINDOW else 1
    sums = [0.0, *accumulate(values)]
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))], window


class Panel:
    """One axes with its lines; ``finish`` writes their names beside it."""

    def __init__(self, axes: Any, ylabel: str):
        self.axes = axes
        self._names: list[tuple[float, str, str, dict[str, Any]]] = []  # height in data, text, color, how
        self._seen: list[float] = []
        self._foot = ""
        axes.set_ylabel(ylabel, parse_math=False)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        whole = need("matplotlib.ticker").MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True)  # there is no half a step
        axes.xaxis.set_major_locator(whole)

    def line(self, points: Series, name: str, color: str, missing: Sequence[int] = (), **more: Any) -> None:
        """A line with its name at its end; of one point a dot. It is not drawn through steps that lack a value."""
        _, values = points
        if values:
            more = {"linewidth": 1.6} | more | ({"marker": "."} if len(values) == 1 else {})
            self.axes.plot(*_with_gaps(points, missing), color=color, label=name, **more)
            self.beside(values[-1], name, color)
            self._seen += values

    def held_out(self, points: Series) -> None:
        marker = "o" if len(points[0]) <= MARKED else ""
        self.line(points, "held out", VERMILION, marker=marker, markersize=4)

    def before(self, points: Series) -> None:
        """The level of the model before any step, where it was judged."""
        steps, values = points
        if steps and steps[0] == 0:
            self.axes.axhline(values[0], color=GREY, linestyle=":", linewidth=1.2, label="before")
            self.beside(values[0], f"before {values[0]:.3f}", GREY)

    def best(self, step: int, value: float, unit: str) -> None:
        self.axes.plot([step], [value], "*", color=VERMILION, markersize=13, markeredgecolor="black", markeredgewidth=0.6, label="best")
        self.beside(value, f"best {value:.3f} ({unit} {step})", VERMILION, weight="bold")

    def under(self, points: Series, color: str, missing: Sequence[int] = ()) -> None:
        """What a line is the mean of; it is not drawn through steps that lack a value."""
        self.axes.plot(*_with_gaps(points, missing), color=color, alpha=0.2, linewidth=0.8)

    def without(self, steps: Sequence[int]) -> None:
        """Steps at which what was logged was not finite, as strokes at the foot."""
        if steps:
            where = self.axes.get_xaxis_transform()
            self.axes.plot(steps, [0.02] * len(steps), "|", color="black", transform=where, markersize=6, label="not finite")
            self._foot = f"| {len(steps)} not finite"

    def beside(self, height: float, text: str, color: str, **more: Any) -> None:
        """A name to the right of the panel, at a height or near it."""
        self._names.append((height, text, color, more))

    def finish(self) -> None:
        """The range is that of lines with names: what lies under them may go beyond it. Names that would overlap move apart."""
        seen = self._seen
        if not seen:
            return
        low, high = min(seen), max(seen)
        margin = max(0.08 * (high - low), 0.05 * max(abs(low), abs(high)), 1e-6)
        low, high = low - margin, high + margin
        self.axes.set_ylim(low, high)
        if self._foot:
            self.beside(low, self._foot, "black")
        names = sorted(self._names, key=lambda name: name[0])
        heights = apart([(name[0] - low) / (high - low) for name in names])
        for (_, text, color, more), height in zip(names, heights):
            where = dict(transform=self.axes.transAxes, va="center", ha="left", fontsize="small", parse_math=False)
            self.axes.text(1.015, height, text, color=color, **where, **more)


def apart(heights: Sequence[float]) -> list[float]:
    """Ascending heights, moved up and down so that neighbours are ``APART``, and about as low or high as they were."""
    groups: list[tuple[float, int]] = []  # sum of where the first one of a group would be, how many
    for height in heights:
        total, count = height, 1
        while groups and groups[-1][0] / groups[-1][1] + groups[-1][1] * APART > total / count:
            earlier, number = groups.pop()
            total, count = earlier + total - count * number * APART, number + count
        groups.append((total, count))
    return [total / count + i * APART for total, count in groups for i in range(count)]


def figure_of(title: Sequence[str], xlabel: str, ylabels: Sequence[str]) -> tuple[Any, list[Panel]]:
    """-> (the figure, its panels from above)."""
    figure = need("matplotlib.figure").Figure(figsize=(8, 1.2 + 2.3 * max(len(ylabels), 1.4)), layout="constrained")
    axes = figure.subplots(len(ylabels), 1, sharex=True, squeeze=False)[:, 0]
    axes[0].set_title("\n".join(map(_short, title)), loc="left", fontsize="medium", parse_math=False)
    axes[-1].set_xlabel(xlabel)
    return figure, [Panel(*each) for each in zip(axes, ylabels)]


def save(figure: Any, path: Path) -> None:
    """As a PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of a name in a script that the font lacks
        figure.savefig(path, dpi=150)


def _short(text: str) -> str:
    """A line of a title, the middle of which may be left out; what is no character to be seen is its code."""
    seen = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = LONGEST // 2
    return seen if len(seen) <= LONGEST else f"{seen[: half - 2]} … {seen[-half:]}"


def _with_gaps(points: Series, missing: Sequence[int]) -> Series:
    found = dict.fromkeys(missing, math.nan) | dict(zip(*points))
    return sorted(found), [found[step] for step in sorted(found)]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
