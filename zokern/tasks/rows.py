"""Rows of a file or of a hub data set. Each knows where it comes from, so that an error can name its line.

Text files are read with the standard library: the readers of pandas and datasets guess types ("null" and "NA" become missing text,
unbalanced quotes swallow lines) and do not say on which line a file is wrong.
"""

import csv
import io
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..documents import Unreadable, of_json
from ..errors import BadInput, need, refusing

LONGEST = 2**31 - 1  # characters of a field: what a C long holds everywhere
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
GGUF = ".gguf"  # of models in one file


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        row: its columns; also ``example["sentence"]``.
        label: id of its class; None where it has none, as in test splits.
        location: where it comes from, such as "'train.csv', line 7": errors name it.
        answers: of a task whose answers are written: the texts that are right, () where they are not known.
    """

    row: dict[str, Any]
    label: int | None
    location: str
    answers: tuple[str, ...] = ()

    def __getitem__(self, column: str) -> Any:
        return self.row[column]


class Table:
    """Rows as dicts, and where each comes from.

    Attributes:
        name: what the user called the data.
        columns: list of names.
        rows: list of dicts.
        locations: "line 7" of each row; by default "row 1", "row 2", ...
    """

    def __init__(self, name: str, columns: Iterable[str], rows: list[dict[str, Any]], locations: list[str] | None = None):
        self.name, self.columns, self.rows = name, list(columns), rows
        self.locations = locations or [f"row {i}" for i in range(1, len(rows) + 1)]
        if not rows:
            raise BadInput(f"data {name!r} holds no rows: pass a file with a header and rows")


def is_local(name: str) -> bool:
    """Whether data or a model is meant as a path: it exists, or looks like nothing else."""
    path = Path(os.path.expanduser(name))
    return os.path.exists(path) or path.suffix.lower() in (*SUFFIXES, GGUF) or name.startswith((".", "/", "~")) or "\\" in name


def read(name: str, split: str = "train") -> Table:
    """The table in a file, or a split of a hub data set."""
    if not is_local(name):
        return _hub(name, split)
    path = Path(name).expanduser()
    if not path.is_file():
        raise BadInput(f"data {name!r} " + ("is a folder: pass one file" if path.is_dir() else "does not exist: check the path"))
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(name, path)
    if suffix not in SUFFIXES:
        raise BadInput(f"data {name!r} ends in {suffix!r}: pass one of {', '.join(SUFFIXES)}")
    lines = _lines(name, path)
    if not any(line.strip() for line in lines):
        raise BadInput(f"data {name!r} is empty: pass a file with rows")
    if suffix in (".csv", ".tsv"):
        separator = "\t" if suffix == ".tsv" else ","
        _check_separator(name, suffix, lines, separator)
        return _separated(name, lines, separator)
    if suffix == ".json":
        return _json(name, lines)
    return _objects(name, {f"line {i}": _value(name, line, i) for i, line in enumerate(lines, 1) if line.strip()})


def _lines(name: str, path: Path) -> list[str]:
    raw = path.read_bytes()
    try:
        return io.StringIO(raw.decode("utf-8-sig"), newline="").readlines()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(f"data {name!r}, line {line} is not UTF-8 ({error.reason}): save the file as UTF-8") from None


def _check_separator(name: str, suffix: str, lines: list[str], separator: str) -> None:
    """Refuse a header with another separator than the file's name promises: as a single column it would be a riddle."""
    line, header = next((i, line) for i, line in enumerate(lines, 1) if line.strip())
    theirs = next((other for other in SEPARATORS if other in header), None)
    if separator not in header and theirs:
        cure = f"write it with {SEPARATORS[separator]}" + {"\t": ", or name it .tsv", ",": ", or name it .csv"}.get(theirs, "")
        found = f"{header.strip()[:80]!r} has {SEPARATORS[theirs]} between its columns, and a {suffix} file has {SEPARATORS[separator]}"
        raise BadInput(f"data {name!r}, line {line}: {found}: {cure}")


def _separated(name: str, lines: list[str], separator: str) -> Table:
    """A tsv is read with quotes where that keeps one row a line, else without them: both kinds are about."""
    try:
        quoted = _parse(name, lines, separator, csv.QUOTE_MINIMAL)
    except BadInput:
        if separator != "\t":
            raise
        return _parse(name, lines, separator, csv.QUOTE_NONE)
    if separator == "\t" and len(quoted.rows) != sum(bool(line.strip()) for line in lines) - 1:
        with suppress(BadInput):
            return _parse(name, lines, separator, csv.QUOTE_NONE)
    return quoted


def _parse(name: str, lines: list[str], separator: str, quoting: Literal[0, 3]) -> Table:
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    columns: list[str] = []
    rows, locations, line = [], [], 1
    limit = csv.field_size_limit(LONGEST)  # the module's own is 128 KiB, less than a long document
    try:
        for fields in reader:
            where = f"data {name!r}, line {line}"
            if fields and not columns:
                columns = [field.strip() for field in fields]
                if len(set(columns)) < len(columns):
                    raise BadInput(f"{where}: a column name occurs twice in {columns}: rename one")
            elif fields:
                if len(fields) != len(columns):
                    raise BadInput(f"{where}: {len(fields)} fields, not the {len(columns)} of the header {columns}: correct it")
                rows.append(dict(zip(columns, fields, strict=True)))
                locations.append(f"line {line}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"data {name!r}, line {line}: {error}: correct the quotes, or double those inside a field") from None
    finally:
        csv.field_size_limit(limit)
    return Table(name, columns, rows, locations)


def _json(name: str, lines: list[str]) -> Table:
    value = _value(name, "".join(lines))
    if not isinstance(value, list):
        raise BadInput(f"data {name!r} holds a {type(value).__name__}: pass a list of objects, or one object a line in a .jsonl")
    return _objects(name, {f"row {i}": entry for i, entry in enumerate(value, 1)})


def _value(name: str, text: str, line: int = 0) -> Any:
    try:
        return of_json(text)
    except Unreadable as error:
        raise BadInput(f"data {name!r}, line {line or error.line}: {error}: correct it") from None


def _objects(name: str, entries: dict[str, Any]) -> Table:
    """entries: by location."""
    for location, entry in entries.items():
        where = f"data {name!r}, {location}"
        if not isinstance(entry, dict):
            raise BadInput(f"{where}: a {type(entry).__name__} where an object with a text and a label is due: correct it")
        for column, value in entry.items():
            if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                raise BadInput(f"{where}, column {column!r}: {value[:80]!r} holds half a character: correct it")
    columns = dict.fromkeys(column for entry in entries.values() for column in entry)
    return Table(name, columns, [*entries.values()], [*entries])


def _parquet(name: str, path: Path) -> Table:
    kinds, parquet = (need("pyarrow").ArrowException, OSError), need("pyarrow.parquet")
    with refusing(f"data {name!r} is not a parquet file that can be read", "write it again", kinds):
        table = parquet.read_table(path)
    return Table(name, table.column_names, table.to_pylist())


def _hub(name: str, split: str) -> Table:
    datasets = need("datasets")
    repository, _, config = name.partition(":")
    cure = "check the path, the name, its config (name:config) or the network"
    with refusing(f"data {name!r} is no file here and could not be had from the hub", cure):
        data = datasets.load_dataset(repository, config or None, split=split, trust_remote_code=False)
    rows = data.to_list()
    for column, feature in data.features.items():
        if isinstance(feature, datasets.ClassLabel):
            for row in rows:
                if row[column] is not None and row[column] >= 0:
                    row[column] = feature.int2str(row[column])
    return Table(f"{name}[{split}]", data.column_names, rows)
