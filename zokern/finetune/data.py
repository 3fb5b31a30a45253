"""From a task or a table to examples: which column is the text, which the label, what the classes are, which rows are held out."""

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import tasks
from ..errors import BadInput
from ..tasks import Example, Task
from ..tasks.rows import Table, read
from .demo_data import docstring_sentences
from .settings import Settings

TEXTS = ("text", "sentence", "content", "review", "document", "comment", "question", "title", "message", "tweet")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "gold_label", "coarse_label")
NAMED = "classes are names or whole numbers; make classes of it (such as low and high), or pass another --label"
FIELDS = ("first", "second")  # columns of the task that a plain table is made into
HELD_OUT, MOST_HELD_OUT = 0.2, 500  # where a plain table comes without --eval-data: this share of every class, so many rows in all


@dataclass(frozen=True)
class Row:
    """One row of a plain table: one text or two, and the name of its class."""

    texts: tuple[str, ...]
    label: str
    location: str


@dataclass(frozen=True)
class Data:
    """What a run learns from and is judged by.

    Attributes:
        name: for the summary.
        task: its prompts, its classes and its metric.
        train, held_out, test: test may be empty.
        columns: of a table, {"text": names of one or two columns, "label": name of one}, as taken; {} where there was no choice.
    """

    name: str
    task: Task
    train: list[Example]
    held_out: list[Example]
    test: list[Example]
    columns: dict[str, Any] = field(default_factory=dict)

    def described(self) -> str:
        """Which columns were taken, in words."""
        texts = " and ".join(map(repr, self.columns["text"]))
        return f"text from {texts}, label from {self.columns['label']!r}"

    def digest(self) -> str:
        """16 hex digits of what is trained on and judged by, in its order."""
        rows = [[(row.row, row.label, row.answers) for row in rows] for rows in (self.train, self.held_out, self.test)]
        return hashlib.sha256(repr((self.task.labels, rows)).encode()).hexdigest()[:16]


def load(settings: Settings) -> Data:
    """The data that the settings name."""
    data = _of_table(settings) if settings.task is None else _of_task(settings, tasks.get(settings.task))
    rows, batch, full = len(data.train), settings.batch_size, settings.full_batch
    for needed, what, cure in (
        (batch, f"--batch-size {batch}", f": pass at most {rows}"),
        (batch * settings.accumulate, f"--accumulate {settings.accumulate} times --batch-size {batch}", ""),
        (full or 0, f"--full-batch {full}", ": leave it out to take them all"),
    ):
        if needed > rows:
            raise BadInput(f"{what} is more than the {rows} training rows{cure}")
    return data


def _of_task(settings: Settings, task: Task) -> Data:
    source = settings.data
    rows, (train, held_out, test) = task.load(source, "train"), settings.rows
    name = task.name if source is None else f"{task.name} ({source})"
    if source is not None and Path(source).expanduser().is_file():  # which holds one split, whatever its name
        if settings.shots:
            raise BadInput(f"--shots needs splits of its own for the test, and --data {source!r} is one file: pass a folder, or --rows")
        return Data(name, task, *tasks.split(rows, settings.seed, train, held_out, test))
    judged = task.load(source, "validation") if test else []  # the hub's test splits have no labels
    tested = tasks.split(judged, settings.seed, 0, 0, min(test, len(judged))).test
    if settings.shots:
        return Data(name, task, *tasks.few_shot(rows, settings.shots, settings.seed), tested)
    return Data(name, task, *tasks.split(rows, settings.seed, train, held_out, 0)[:2], tested)


def _of_table(settings: Settings) -> Data:
    if settings.data is None:
        table = Table("docstrings of networkx and sympy", ("text", "label"), docstring_sentences())
    else:
        table = read(settings.data)
    text, label = columns(table, settings.text, settings.label)
    train = examples(table, text, label)
    labels = _classes(table.name, train, label)
    if settings.eval_data:
        held_out = _known(settings.eval_data, text, label, labels)
    else:
        train, held_out = hold_out(table.name, train, settings.seed)
    task = table_task(table.name, labels, FIELDS[: len(text)])
    ids = {name: i for i, name in enumerate(labels)}
    made = [[Example(dict(zip(FIELDS, row.texts)), ids[row.label], row.location) for row in rows] for rows in (train, held_out)]
    return Data(table.name, task, made[0], made[1], [], {"text": list(text), "label": label} if settings.data else {})


def table_task(name: str, labels: Sequence[str], fields: Sequence[str] = FIELDS[:1]) -> Task:
    """The task that a plain table is: one text or two, which only a classification head reads."""
    head = tuple("{" + field + "}" for field in fields)
    return Task(name, "", "", dict.fromkeys(fields, "string"), tuple(labels), "accuracy", causal=None, head=head)


def columns(table: Table, text: tuple[str, ...], label: str | None) -> tuple[tuple[str, ...], str]:
    """-> (text columns, label column): those asked for, else those whose names say so."""
    for option, name in [("--text", name) for name in text] + [("--label", label)] * (label is not None):
        if name not in table.columns:
            raise BadInput(f"{option} {name!r} is no column of {table.name!r}: its columns are {', '.join(table.columns)}")
    label = label or _only(table, "label", [c for c in table.columns if c.lower() in LABELS and c not in text])
    if label in text:
        raise BadInput(f"column {label!r} is both --text and --label: pass two different columns")
    return tuple(text) or _text_columns(table, label), label


def _text_columns(table: Table, label: str) -> tuple[str, ...]:
    rest = {column.lower(): column for column in table.columns if column != label}
    pairs = [pair for pair in PAIRS if rest.keys() >= {*pair}]
    if len(pairs) == 1:
        return tuple(rest[name] for name in pairs[0])
    named = [column for name, column in rest.items() if name in TEXTS]
    return (_only(table, "text", named or list(rest.values())),)


def _only(table: Table, what: str, candidates: list[str]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"several columns that may be the {what} ({', '.join(candidates)})" if candidates else f"no column that is clearly the {what}"
    raise BadInput(f"{table.name!r} has {found}: pass --{what} with one of its columns: {', '.join(table.columns)}")


def examples(table: Table, text: tuple[str, ...], label: str) -> list[Row]:
    """Every row, checked."""
    result = []
    for row, location in zip(table.rows, table.locations, strict=True):
        where = f"{table.name!r}, {location}"
        for column in text:
            value = row.get(column)
            if not isinstance(value, str) and value is not None:
                raise BadInput(f"{where}, column {column!r}: {value!r} is no text: pass --text with another column, or correct the row")
            if not (value or "").strip():
                raise BadInput(f"{where}, column {column!r}: the text is empty: fill it in or remove the row")
        result.append(Row(tuple(row[column] for column in text), _label(row.get(label), f"{where}, column {label!r}"), location))
    return result


def _label(value: object, where: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    if not text:
        raise BadInput(f"{where}: the label is empty: fill it in or remove the row")
    real = isinstance(value, float | str) and _is_real(text)
    if real or not isinstance(value, int | str):
        raise BadInput(f"{where}: the label is {text}{', a real number' if real else ''}: {NAMED}")
    return text


def _classes(name: str, rows: list[Row], label: str) -> list[str]:
    """Names of the classes: whole numbers in their order, else by the alphabet."""
    labels, where = list(dict.fromkeys(row.label for row in rows)), f"{name!r}, column {label!r}"
    if len(labels) == 1:
        raise BadInput(f"{where} holds only the class {labels[0]!r}: add rows of another, or pass another --label")
    if len(labels) > max(20, len(rows) // 4):
        raise BadInput(f"{where} holds {len(labels)} classes in {len(rows)} rows, too many to be classes: pass another --label")
    try:
        return sorted(labels, key=int)
    except ValueError:
        return sorted(labels)


def _is_real(label: str) -> bool:
    """Whether a label is a number, and no whole one."""
    try:
        number = float(label)
    except ValueError:
        return False
    return math.isfinite(number) and not number.is_integer()


def _known(name: str, text: tuple[str, ...], label: str, labels: list[str]) -> list[Row]:
    """The rows of --eval-data, all of classes that --data has."""
    table = read(name, "validation")
    for column in (*text, label):
        if column not in table.columns:
            raise BadInput(f"--eval-data {table.name!r} lacks the column {column!r}: its columns are {', '.join(table.columns)}")
    rows = examples(table, text, label)
    for row in rows:
        if row.label not in labels:
            where = f"{table.name!r}, {row.location}, column {label!r}"
            raise BadInput(f"{where}: {row.label!r} is none of the classes in --data ({', '.join(labels[:20])}): correct or remove the row")
    return rows


def hold_out(name: str, rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """-> (training rows, held-out rows): a share of every class, one row of each at least."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.label].append(row)
    share = min(HELD_OUT, MOST_HELD_OUT / len(rows))
    generator = random.Random(seed)
    train, held_out = list[Row](), list[Row]()
    for label, group in sorted(groups.items()):
        if len(group) == 1:
            where = f"{name!r}, {group[0].location}"
            raise BadInput(f"{where}: the class {label!r} occurs only here: correct the label, add rows, or pass --eval-data")
        generator.shuffle(group)
        cut = max(1, round(share * len(group)))
        held_out += group[:cut]
        train += group[cut:]
    return train, held_out
