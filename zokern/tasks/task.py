"""A task: a data set of the hub or a local copy of it, the prompts for models, and the metric of their answers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ..documents import Unreadable, of_json
from ..errors import BadInput, need
from . import sources
from .metrics import exact_match, token_f1, whole_questions
from .prompts import Prompt, columns
from .rows import Example


@dataclass(frozen=True)
class Task:
    """What is known of a task. The prompts' sources are in docs/tasks.md.

    Attributes:
        name: as ``get`` knows it.
        repository: of the hub.
        config: of the hub's repository.
        columns: name -> type, as on the hub: "string", "int32", "label" or "struct".
        label: the column with the label, or with the answers.
        labels: names of the classes in the order of their ids; () where answers are written.
        metric: the one to report, a key of what ``metrics`` returns.
        masked: Prompt for a masked model; None where there is none.
        causal: Prompt for a causal model; None where there is none.
        head: templates of the one or two texts that a classification head reads; () where it cannot.
        splits: "train", "validation", "test" -> their names on the hub; further ones of the hub under their own names.
        needed: columns that the metrics need.
        positive: the class whose F1 is reported; None: the mean over the classes.
    """

    name: str
    repository: str
    config: str
    columns: dict[str, str]
    labels: tuple[str, ...]
    metric: str
    causal: Prompt | None
    masked: Prompt | None = None
    head: tuple[str, ...] = ()
    label: str = "label"
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"})
    needed: tuple[str, ...] = ()
    positive: int | None = None

    @property
    def writes(self) -> bool:
        """Whether the answer is text, not one of several options."""
        return not self.labels

    @property
    def texts(self) -> list[str]:
        """The columns that prompts read."""
        prompts = [prompt for prompt in (self.masked, self.causal) if prompt]
        return columns(*self.head, *(template for prompt in prompts for template in (prompt.template, *prompt.options)))

    def load(self, source: str | None = None, split: str = "train") -> list[Example]:
        """The examples of a split.

        Args:
            source: a local copy in the hub's columns: a csv, tsv, json, jsonl or parquet file (of this split); a folder with a file a split
                ("train.csv"); one written by ``datasets``' ``save_to_disk``; or a snapshot of the hub's repository. Columns that nothing
                reads may lack. Default None: the hub.
            split: "train", "validation", "test", or a name of the hub's. Default "train".

        Raises:
            BadInput: there is no such split or source, a column lacks, or the first row that is wrong, by its location.
        """
        if split not in self.splits and split not in self.splits.values():
            raise BadInput(f"split {split!r} is none of {self.name}: pass one of {', '.join(self.splits)}")
        table = sources.read(self, source, split, self.splits.get(split, split))
        for column in dict.fromkeys([*self.texts, self.label, *self.needed]):
            if column not in table.columns:
                there = f"its columns are {', '.join(table.columns)}; the hub's are {', '.join(self.columns)}"
                raise BadInput(f"data {table.name!r} lacks the column {column!r} of {self.name}: {there}")
        return [self._example(row, f"{table.name!r}, {location}") for row, location in zip(table.rows, table.locations, strict=True)]

    def metrics(self, predictions: Iterable[Any], examples: Iterable[Example]) -> dict[str, float]:
        """How right predictions are; ``metric`` is the one to report.

        Args:
            predictions: ids of classes, or texts where the task writes; one an example.
            examples: with their labels.

        Returns:
            Name -> fraction of 1: "accuracy", "f1", "matthews", "em", those that the task has.

        Raises:
            BadInput: as many predictions as examples are due, and every example needs its label.
        """
        predictions, examples = list(predictions), list(examples)
        if len(predictions) != len(examples) or not examples:
            raise BadInput(f"{len(predictions)} predictions for {len(examples)} examples: pass one for each, and at least one")
        for example in examples:
            if example.label is None and not example.answers:
                raise BadInput(f"{example.location} has no label to be judged by: leave out unlabelled rows, as test splits have them")
        if self.writes:
            answers = [example.answers for example in examples]
            return {"f1": fmean(map(token_f1, predictions, answers)), "em": fmean(map(exact_match, predictions, answers))}
        sklearn, right = need("sklearn.metrics"), [example.label for example in examples]
        found = {"accuracy": float(sklearn.accuracy_score(right, predictions))}
        if self.metric == "f1":
            average = dict(average="macro") if self.positive is None else dict(pos_label=self.positive)
            found["f1"] = float(sklearn.f1_score(right, predictions, zero_division=0, **average))
        if self.metric == "matthews":
            found["matthews"] = float(sklearn.matthews_corrcoef(right, predictions))
        if "idx" in self.needed:
            found["em"] = whole_questions(predictions, examples)
        return found

    def _example(self, row: dict[str, Any], location: str) -> Example:
        texts, where = self.texts, f"{location}, column {self.label!r}"
        row = {column: _value(value, self.columns.get(column), location, column, texts) for column, value in row.items()}
        if self.writes:
            return Example(row, None, location, _answers(row[self.label], where))
        return Example(row, self._id(row[self.label], where), location)

    def _id(self, value: Any, where: str) -> int | None:
        if value is None or str(value).strip() in ("", "-1"):
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        name = str(value).strip()
        names = {label.casefold(): i for i, label in enumerate(self.labels)}
        if name.casefold() in names:
            return names[name.casefold()]
        numbered = any(label.isdigit() for label in self.labels)  # then a number is a name, not an id
        if not numbered and name.isdecimal() and len(name) < 5 and int(name) < len(self.labels):
            return int(name)
        known = ", ".join(self.labels if numbered else [f"{i} or {label}" for i, label in enumerate(self.labels)])
        raise BadInput(f"{where}: the label is {value!r}: {self.name} has {known}; -1 or nothing where it is not known")


def _value(value: Any, kind: str | None, location: str, column: str, texts: list[str]) -> Any:
    """A cell as the hub has it: text files hold numbers and structures as text."""
    if column in texts and not isinstance(value, str):
        raise BadInput(f"{location}, column {column!r}: {value!r} is no text: correct the row")
    if kind == "int32" and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise BadInput(f"{location}, column {column!r}: {value!r} is no whole number: correct the row") from None
    if kind == "struct" and isinstance(value, str) and value.strip():
        try:
            return of_json(value)
        except Unreadable as error:
            raise BadInput(f"{location}, column {column!r}: {error}: write it as JSON, or use jsonl or parquet") from None
    return value


def _answers(value: Any, where: str) -> tuple[str, ...]:
    if value in (None, ""):
        return ()
    texts = value.get("text") if isinstance(value, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{where}: {value!r} holds no answers: they look like {{'text': ['Denver'], 'answer_start': [17]}}")
    return tuple(texts)
