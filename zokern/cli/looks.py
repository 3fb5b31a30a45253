"""How a command shows what it does: on a terminal in tables and with a bar, elsewhere in lines, by ``--quiet`` and ``--json`` as they say.

Results go to standard output, progress to standard error. What comes from files is never taken for markup.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from ..finetune.progress import Progress, judged, record
from .streams import tell, visible

QUIET, JSON = "Print nothing but errors and warnings.", "Print one JSON object at the end; what else is said goes to standard error."
MINUTE = 60.0  # seconds between lines of progress at most, where there is no terminal
NARROWEST = 8  # columns of a bar
Facts = Sequence[tuple[str, str]]  # texts, each with its name
Numbers = Mapping[str, Mapping[str, str]]  # columns of a table: of each the numbers by row


def live(stream: Any) -> bool:
    """Whether a stream is a terminal that can be drawn on; None is one that is closed."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class Looks:
    """Of one command.

    Args:
        quiet: nothing is shown but what ``as_json`` asks for.
        as_json: the result is shown as JSON, and what else is said goes to standard error.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json

    def say(self, line: str) -> None:
        if self.quiet:
            return
        if live(sys.stdout) and not _copied("", line):
            line = fill(line, get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
        tell(line, err=self.as_json)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """What to call with how far it is."""
        if self.quiet:
            yield lambda *_: None
        elif not live(sys.stderr):
            yield _Lines()
        else:
            bar = _Bar()
            try:
                yield bar
            finally:
                bar.bars.stop()

    def show(self, found: Any, lines: Sequence[str], facts: Facts, numbers: Numbers | None = None) -> None:
        """Show a result.

        Args:
            found: all of it. lines: where there is no terminal.
            facts, numbers: where there is one.
        """
        if self.as_json:
            tell(json.dumps(_finite(found), indent=1, allow_nan=False))
        elif self.quiet:
            return
        elif live(sys.stdout):
            console = _console(sys.stdout)
            if numbers:
                console.print(_table(numbers))
            _print(console, facts)
        else:
            tell("\n".join(lines))


class _Pace:
    """How fast it goes, as of the first call."""

    def __init__(self) -> None:
        self._unit, self._first, self._began = "", 0, 0.0

    def __call__(self, unit: str, done: int, total: int) -> tuple[str, str] | None:
        """-> (so many a second, the time left); None before it is known."""
        now = time.monotonic()
        if unit != self._unit:
            self._unit, self._first, self._began = unit, done, now
        made, seconds = done - self._first, now - self._began
        if made <= 0 or seconds <= 0:
            return None
        minutes, left = divmod(round((total - done) * seconds / made), 60)
        return f"{made / seconds:.3g}", f"{minutes // 60}:{minutes % 60:02}:{left:02}"


class _Lines:
    """A line on standard error at each evaluation, and where none comes for long."""

    def __init__(self) -> None:
        self._pace, self._newest, self._last = _Pace(), {}, time.monotonic()  # type: ignore[var-annotated]

    def __call__(self, unit: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        pace, now = self._pace(unit, done, total), time.monotonic()
        self._newest |= {name: value for name, value in numbers.items() if not judged({name: value})}
        if judged(numbers) or now - self._last >= MINUTE:
            self._last = now
            known = dict(zip(("per_second", "left"), pace)) if pace else {}
            tell(record(unit, done, total, self._newest | dict(numbers) | known), err=True)


class _Bar:
    """A bar on standard error, with the newest numbers; a line above it at each evaluation."""

    def __init__(self) -> None:
        whole = Column(no_wrap=True)
        texts = [TextColumn(f"{{task.fields[{name}]}}", markup=False, table_column=whole) for name in ("count", "pace", "newest")]
        columns = [texts[0], BarColumn(bar_width=None, table_column=Column(ratio=1)), *texts[1:]]
        self.bars = Bars(
            *columns, console=_console(sys.stderr), expand=True, transient=True, redirect_stdout=live(sys.stdout), redirect_stderr=True
        )
        self._pace, self._unit, self._newest = _Pace(), "", {}  # type: ignore[var-annotated]

    def __call__(self, unit: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if unit != self._unit:
            for task in self.bars.task_ids:
                self.bars.remove_task(task)
            self.bars.add_task("", total=total, count="", pace="", newest="")
            self._unit, self._newest = unit, {}
        self._newest |= numbers
        pace = self._pace(unit, done, total)
        count, shown = f"{unit} {done:,}/{total:,}", f"{pace[0]}/s {pace[1]} left" if pace else ""
        room = self.bars.console.width - len(count) - len(shown) - NARROWEST - 3
        self.bars.update(self.bars.task_ids[0], completed=done, count=count, pace=shown, newest=_fitting(self._newest, room))
        self.bars.start()
        if judged(numbers):
            self.bars.refresh()
            at = f"{unit} {done:>{len(f'{total:,}')},}"
            self.bars.console.print(Text(f"{at}  {_fitting(numbers, self.bars.console.width - len(at) - 2)}"))


def _fitting(numbers: Mapping[str, float], room: int) -> str:
    """As many as there is room for; of the two losses the held-out one last."""
    text = ""
    for name in sorted(numbers, key="eval_loss".__eq__):
        shown = visible(f"{name.replace('eval_', 'held-out ', 1)} {numbers[name]:.3f}")
        longer = f"{text}  {shown}" if text else shown
        text = longer if len(longer) <= room else text
    return text


def _copied(name: str, text: str) -> bool:
    """Whether a text holds a command: only the terminal breaks its line then, so that it can be copied."""
    return name == "load with" or ": zokern " in text


def _console(stream: Any) -> Console:
    return Console(stderr=stream is sys.stderr, force_terminal=True, markup=False, highlight=False, emoji=False)


def _table(numbers: Numbers) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(no_wrap=True)
    for name in numbers:
        table.add_column(Text(visible(name)), justify="right")
    for row in dict.fromkeys(row for column in numbers.values() for row in column):
        table.add_row(Text(visible(row), "bold"), *(Text(visible(column.get(row, ""))) for column in numbers.values()))
    return table


def _print(console: Console, facts: Facts) -> None:
    grid, width = Table.grid(padding=(0, 2, 0, 0)), max(len(visible(name)) for name, _ in facts)
    whole = []
    for name, text in facts:
        cells = Text(visible(name).ljust(width), "bold"), Text(visible(text))
        if _copied(name, text) or max(map(len, text.split()), default=0) > console.width - width - 2:
            whole.append(Text("  ").join(cells))
        else:
            grid.add_row(*cells)
    console.print(grid)
    for line in whole:
        console.print(line, soft_wrap=True)


def _finite(value: Any) -> Any:
    """As JSON can hold it: what is not finite is null."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
