"""Where a task's rows come from: the hub, or a local copy in any of the forms that copies take."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, need, refusing
from . import rows

if TYPE_CHECKING:
    from .task import Task


def read(task: "Task", source: str | None, split: str, hub_split: str) -> rows.Table:
    """Rows of a split, as they stand; see ``Task.load``.

    Args:
        split, hub_split: its name here and on the hub; a copy may use either.
    """
    if source is None:
        return _hub(task, hub_split)
    path = Path(source).expanduser()
    if path.is_file():
        return rows.read(str(path))
    if not path.is_dir():
        raise BadInput(f"data {str(source)!r} of {task.name} does not exist: pass a file or a folder that is there, or none, for the hub's")
    names = list(dict.fromkeys((hub_split, split)))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path, names)
    return _files(task, path, names)


def _hub(task: "Task", split: str) -> rows.Table:
    forms = f"in the columns {', '.join(task.columns)}: a file, a folder of files, or one of save_to_disk"
    cure = f"check the network, or pass a local copy (--data, in Python source=) {forms}"
    with refusing(f"{task.name} could not be had from the hub as {task.repository} {task.config}", cure):
        data = need("datasets").load_dataset(task.repository, task.config, split=split, trust_remote_code=False)
    return _table(f"{task.repository} {task.config} {split}", data)


def _saved(path: Path, names: list[str]) -> rows.Table:
    with refusing(f"data {str(path)!r} cannot be read", "write it again with save_to_disk"):
        data = need("datasets").load_from_disk(str(path))
    if isinstance(data, dict):
        found = [name for name in names if name in data]
        if not found:
            raise BadInput(f"data {str(path)!r} has no split {' or '.join(names)}: it has {', '.join(data)}")
        return _table(f"{path} {found[0]}", data[found[0]])
    if data.split is not None and str(data.split) not in names:
        raise BadInput(f"data {str(path)!r} is the split {str(data.split)!r} alone, not {names[-1]!r}: pass a copy that has it")
    return _table(str(path), data)


def _table(name: str, data: Any) -> rows.Table:
    return rows.Table(name, data.column_names, data.to_list())


def _files(task: "Task", path: Path, names: list[str]) -> rows.Table:
    """One file a split, or the parquet files of a snapshot: config/split-00000-of-00001.parquet, config/split/0000.parquet."""
    for name in names:
        one = [path / f"{name}{suffix}" for suffix in rows.SUFFIXES if (path / f"{name}{suffix}").is_file()]
        if len(one) > 1:
            raise BadInput(f"data {str(path)!r} has {' and '.join(p.name for p in one)}: keep one, or pass the file")
        if one:
            return rows.read(str(one[0]))
        for folder in (path / task.config, path / "data", path):
            pieces = sorted([*folder.glob(f"{name}-*.parquet"), *folder.glob(f"{name}/*.parquet")])
            if pieces:
                return _joined(pieces)
    held = sorted(p.name for p in path.iterdir())
    listing = ", ".join(held[:10]) + (", ..." if len(held) > 10 else "") or "nothing"
    cure = f"put {names[-1]}.csv (tsv, json, jsonl, parquet) there, or pass a copy of save_to_disk or of the hub's repository"
    raise BadInput(f"data {str(path)!r} holds no split {' or '.join(names)} of {task.name}: it holds {listing}; {cure}")


def _joined(pieces: list[Path]) -> rows.Table:
    tables = [rows.read(str(piece)) for piece in pieces]
    if len(tables) == 1:
        return tables[0]
    locations = [f"{piece.name}, {location}" for piece, table in zip(pieces, tables, strict=True) for location in table.locations]
    return rows.Table(str(pieces[0].parent), tables[0].columns, [row for table in tables for row in table.rows], locations)
