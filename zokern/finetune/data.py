"""From a task or a table to examples: which column is the text, which the label, what the classes are, which rows are held out."""

import hashlib
import math
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

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
FIELDS = ("first", "second")  # of the rows that are made of a plain table


@dataclass(frozen=True)
class Row:
    """One row of a plain table: one text or two, and the name of its class."""

    texts: tuple[str, ...]
    label: str
    place: str


@dataclass(frozen=True)
class Data:
    """What a run learns from and is judged by.

    Attributes:
        name: for the summary.
        task: its prompts, its classes and its metric.
        train, held_out, test: lists of ``tasks.Example``; test may be empty.
        columns: of a table, {"text": names of one or two columns, "label": name of one}, as taken; {} where there was no choice.
    """

    name: str
    task: Task
    train: list[Example]
    held_out: list[Example]
    test: list[Example]
    columns: dict = field(default_factory=dict)

    def described(self) -> str:
        """Which columns were taken, in words; "" where there was no choice."""
        if not self.columns:
            return ""
        texts = " and ".join(map(repr, self.columns["text"]))
        return f"text from {texts}, label from {self.columns['label']!r}"

    def digest(self) -> str:
        """16 hex digits of what is trained on and judged by, in its order."""
        rows = [[(row.row, row.label, row.answers) for row in rows] for rows in (self.train, self.held_out, self.test)]
        return hashlib.sha256(repr((self.task.labels, rows)).encode()).hexdigest()[:16]


def load(settings: Settings) -> Data:
    """The data that the settings name.

    Raises:
        BadInput: whatever makes them unusable, by line and column.
    """
    data = _of_table(settings) if settings.task is None else _of_task(settings)
    if settings.batch_size > len(data.train):
        raise BadInput(
            f"--batch-size {settings.batch_size} is more than the {len(data.train)} training rows: pass at most {len(data.train)}"
        )
    if settings.batch_size * settings.accumulate > len(data.train):
        raise BadInput(
            f"--accumulate {settings.accumulate} times --batch-size {settings.batch_size} is more than the {len(data.train)} training rows"
        )
    if settings.full_batch and settings.full_batch > len(data.train):
        raise BadInput(
            f"--full-batch {settings.full_batch} is more than the {len(data.train)} training rows: leave it out to take them all"
        )
    return data


def _of_task(settings):
    task, source = tasks.get(settings.task), settings.data
    rows, (train, held_out, test) = task.load(source, "train"), settings.rows
    name = task.name if source is None else f"{task.name} ({source})"
    if source is not None and Path(source).expanduser().is_file():  # which holds one split, whatever its name
        if settings.shots:
            raise BadInput(f"--shots needs splits of its own for the test, and --data {source!r} is one file: pass a folder, or --rows")
        return Data(name, task, *tasks.split(rows, settings.seed, train, held_out, test))
    judged = task.load(source, "validation") if test else []  # the hub's test splits have no labels
    test = tasks.split(judged, settings.seed, 0, 0, min(test, len(judged))).test
    if settings.shots:
        return Data(name, task, *tasks.few_shot(rows, settings.shots, settings.seed), test)
    train, held_out, _ = tasks.split(rows, settings.seed, train, held_out, 0)
    return Data(name, task, train, held_out, test)


def _of_table(settings):
    if settings.data is None:
        rows = docstring_sentences()
        table = Table("docstrings of networkx and sympy", ("text", "label"), rows, [f"row {i}" for i in range(1, len(rows) + 1)])
    else:
        table = read(settings.data)
    text, label = columns(table, settings.text, settings.label)
    train = examples(table, text, label)
    labels = _classes(table.name, train, label)
    if settings.eval_data:
        held_out = _known(settings, text, label, labels)
    else:
        train, held_out = hold_out(table.name, train, settings.seed)
    fields = dict.fromkeys(FIELDS[: len(text)], "string")
    prompt = tuple("{" + field + "}" for field in fields)
    task = Task(table.name, "", "", fields, tuple(labels), "accuracy", causal=None, head=prompt)
    ids = {name: i for i, name in enumerate(labels)}
    rows = ([_example(row, ids) for row in rows] for rows in (train, held_out))
    return Data(table.name, task, *rows, [], {"text": list(text), "label": label} if settings.data else {})


def _example(row, ids):
    return Example(dict(zip(FIELDS, row.texts)), ids[row.label], row.place)


def columns(table: Table, text=(), label=None):
    """-> (text columns, label column): those asked for, else those whose names say so.

    Raises:
        BadInput: a column that is not there, or none or several that might be meant.
    """
    for option, name in [("--text", name) for name in text] + [("--label", label)] * (label is not None):
        if name not in table.columns:
            raise BadInput(f"{option} {name!r} is no column of {table.name!r}: its columns are {', '.join(table.columns)}")
    label = label or _only(table, "label", [c for c in table.columns if c.lower() in LABELS and c not in text])
    if label in text:
        raise BadInput(f"column {label!r} is both --text and --label: pass two different columns")
    return tuple(text) or _text_columns(table, label), label


def _text_columns(table, label):
    rest = {column.lower(): column for column in table.columns if column != label}
    pairs = [tuple(rest[name] for name in pair) for pair in PAIRS if all(name in rest for name in pair)]
    if len(pairs) == 1:
        return pairs[0]
    named = [column for name, column in rest.items() if name in TEXTS]
    return (_only(table, "text", named or list(rest.values())),)


def _only(table, what, candidates):
    if len(candidates) == 1:
        return candidates[0]
    found = f"several columns that may be the {what} ({', '.join(candidates)})" if candidates else f"no column that is clearly the {what}"
    raise BadInput(f"{table.name!r} has {found}: pass --{what} with one of its columns: {', '.join(table.columns)}")


def examples(table: Table, text, label) -> list[Row]:
    """Every row, checked.

    Raises:
        BadInput: a text that is empty or no text, a label that is empty or neither a name nor a whole number; with line and column.
    """
    result = []
    for row, place in zip(table.rows, table.places, strict=True):
        where = f"{table.name!r}, {place}"
        texts = tuple(row.get(column) for column in text)
        for column, value in zip(text, texts, strict=True):
            if not isinstance(value, str) and value is not None:
                raise BadInput(f"{where}, column {column!r}: {value!r} is no text: pass --text with another column, or correct the row")
            if not (value or "").strip():
                raise BadInput(f"{where}, column {column!r}: the text is empty: fill it in or remove the row")
        result.append(Row(texts, _label(row.get(label), f"{where}, column {label!r}"), place))
    return result


def _label(value, where):
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value.strip()
    if value is None or value == "":
        raise BadInput(f"{where}: the label is empty: fill it in or remove the row")
    raise BadInput(f"{where}: the label is {value!r}: {NAMED}")


def _classes(name, rows, label):
    """Names of the classes: whole numbers in their order, else by the alphabet."""
    first = {}
    for row in rows:
        first.setdefault(row.label, row.place)
    where = f"{name!r}, column {label!r}"
    if len(first) == 1:
        raise BadInput(f"{where} holds only the class {next(iter(first))!r}: add rows of another, or pass another --label")
    for value, place in first.items():
        if _is_real(value):
            raise BadInput(f"{name!r}, {place}, column {label!r}: the label is {value}, a real number: {NAMED}")
    if len(first) > max(20, len(rows) // 4):
        raise BadInput(f"{where} holds {len(first)} classes in {len(rows)} rows, too many to be classes: pass another --label")
    try:
        return sorted(first, key=int)
    except ValueError:
        return sorted(first)


def _is_real(label) -> bool:
    """Whether a label is a number, and no whole one."""
    try:
        number = float(label)
    except ValueError:
        return False
    return math.isfinite(number) and not number.is_integer()


def _known(settings, text, label, labels):
    table = read(settings.eval_data, "validation")
    for column in (*text, label):
        if column not in table.columns:
            raise BadInput(f"--eval-data {table.name!r} lacks the column {column!r}: its columns are {', '.join(table.columns)}")
    rows = examples(table, text, label)
    for row in rows:
        if row.label not in labels:
            where = f"{table.name!r}, {row.place}, column {label!r}"
            raise BadInput(f"{where}: {row.label!r} is none of the classes in --data ({', '.join(labels[:20])}): correct or remove the row")
    return rows


def hold_out(name, rows, seed, fraction=0.2, most=500):
    """-> (training rows, held-out rows): ``fraction`` of every class, ``most`` rows in all, one of each class at least.

    Raises:
        BadInput: a class has one row only, which is often a misspelt label.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row.label].append(row)
    share = min(fraction, most / len(rows))
    generator = random.Random(seed)
    train, held_out = [], []
    for label, group in sorted(groups.items()):
        if len(group) == 1:
            where = f"{name!r}, {group[0].place}"
            raise BadInput(f"{where}: the class {label!r} occurs only here: correct the label, add rows, or pass --eval-data")
        generator.shuffle(group)
        cut = max(1, round(share * len(group)))
        held_out += group[:cut]
        train += group[cut:]
    return train, held_out
