"""Rewards of completions: several functions with weights, in TRL's signature, or built in."""

import copy
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, TypeAlias

from ..errors import BadInput, first_line, nearest, refusing
from .builtin_rewards import BUILTIN, Score
from .prompts import Row

Function: TypeAlias = Callable[..., Sequence[float]]
FORMS = "module:function, file.py:function or one of " + ", ".join(f"{name}:{argument}" for name, (argument, _) in BUILTIN.items())
GIVEN = ("prompts", "completions")


@dataclass(frozen=True)
class Scores:
    """What completions are worth.

    Attributes:
        values: of each row, the weighted sum of all functions; NaN where one of them gave NaN.
        means: name -> ``mean`` over the rows, of each function by itself.
    """

    values: list[float]
    means: dict[str, float]


class Rewards:
    """Functions with weights; call it with rows and their completions.

    A function has TRL's signature, ``reward(completions, **columns) -> list[float]``, higher being better. It is given by their names, and
    of these what it takes: ``completions``, ``prompts`` and the other columns of the rows, each a list with one item a row. A completion is
    a text; where the prompt is a list of messages, it is one too: ``[{"role": "assistant", "content": text}]``. A row without a column that
    others have gives None there. Lists and messages are copies, which it may change.

    NaN is let through, the first time with a warning, so that an optimizer leaves that member out.

    Args:
        functions: each a function, or a text: "module:function", looked for in the working directory first; "file.py:function"; or built in
            (``builtin_rewards``): "exact:COLUMN", "contains:COLUMN", "f1:COLUMN", "regex:PATTERN", "number:MARK:COLUMN", "length:N".
        weights: one a function. Default (): 1 each.
        folders: where files and modules are looked for before the working directory. Default (): nowhere.

    Attributes:
        functions: name -> function: as it was written, or its own name.
        weights: one a function, floats.

    Raises:
        BadInput: of a function that is not found, is asynchronous, raises, or returns anything but one finite number or NaN a row.
    """

    def __init__(self, functions: Sequence[str | Function], weights: Sequence[float] = (), folders: Sequence[str | Path] = ()):
        if isinstance(functions, str) or not functions:
            raise BadInput(f"rewards {functions!r}: pass a list with one function or more: {FORMS}")
        self.weights = [float(weight) for weight in weights or [1.0] * len(functions)]
        if len(self.weights) != len(functions) or not all(map(math.isfinite, self.weights)):
            raise BadInput(f"reward weights {list(weights)} do not fit {len(functions)} rewards: pass one finite number for each")
        self.functions: dict[str, _Builtin | _Given] = {}
        for function in functions:
            made = _built_in(function) if isinstance(function, str) and function.partition(":")[0] in BUILTIN else _Given(function, folders)
            if made.name in self.functions:
                raise BadInput(f"reward {made.name!r} is there twice: pass it once, with its weight, or under another name")
            self.functions[made.name] = made

    def check(self, rows: Sequence[Row]) -> None:
        """Refuse ``rows`` without a column that a function needs, before anything is generated for them.

        Raises:
            BadInput: a column is missing, is empty where a built-in reward needs it, or is called as what functions are given.
        """
        for function in self.functions.values():
            function.check(rows)

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> Scores:
        """What completions are worth.

        Args:
            rows: that were answered.
            completions: the text of each.

        Raises:
            BadInput: a function raises, or returns anything but one finite number or NaN a row.
        """
        each = {name: function(rows, completions) for name, function in self.functions.items()}
        values = [sum(weight * value for weight, value in zip(self.weights, given)) for given in zip(*each.values(), strict=True)]
        return Scores(values, {name: mean(found) for name, found in each.items()})


def mean(values: Sequence[float]) -> float:
    """Of those that are not NaN; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


class _Builtin:
    def __init__(self, name: str, score: Score):
        self.name, self.score = name, score

    def check(self, rows: Sequence[Row]) -> None:
        self(rows, [""] * len(rows))

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [self.score(text, row) for text, row in zip(completions, rows, strict=True)]


class _Given:
    """A function of the user's, and its name: as it was written, or its own."""

    def __init__(self, given: str | Function, folders: Sequence[str | Path] = ()):
        self.function = _found(given, list(dict.fromkeys([*map(Path, folders), Path.cwd()]))) if isinstance(given, str) else given
        self.name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
        self.told = False  # that it returned NaN
        self.columns: list[str] = []  # of all rows, where they have been checked
        if not callable(self.function):
            raise BadInput(f"reward {self.name!r} is a {type(self.function).__name__}, no function: pass {FORMS}")
        call = getattr(self.function, "__call__", None)  # noqa: B004
        if inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call):
            raise BadInput(f"reward {self.name!r} is asynchronous, which is not supported: pass a function that returns its numbers")
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):  # of a function in C
            parameters = {}.values()
        self.takes_all = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.takes = {p.name: p.default is p.empty for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    def check(self, rows: Sequence[Row]) -> None:
        self.columns = columns = _columns(rows)
        if taken := [column for column in GIVEN if column in columns]:
            raise BadInput(f"a column is called {taken[0]!r}, which reward {self.name!r} is given by that name: rename it")
        for name, required in self.takes.items():
            if required and name not in columns and name not in GIVEN:
                known = ", ".join((*GIVEN, *columns))
                raise BadInput(f"reward {self.name!r} takes {name!r}, which is no column: it is given {known}{nearest(name, columns)}")

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        columns = list(dict.fromkeys([*self.columns, *_columns(rows)]))
        try:
            returned = self._returned(rows, completions, columns)
        except Exception as error:
            culprit = self._culprit(rows, completions, columns)
            raise BadInput(f"reward {self.name!r} raised {first_line(error)} for {culprit}: correct {self._place(error)}") from error
        found = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(found, list | tuple):
            raise BadInput(f"reward {self.name!r} returned {_brief(found)}: return a list with one number for each of the {len(rows)} rows")
        if len(found) != len(rows):
            raise BadInput(f"reward {self.name!r} returned {len(found)} numbers for {len(rows)} rows ({_named(rows)}): return one a row")
        return self._checked(rows, [value.tolist() if hasattr(value, "tolist") else value for value in found])

    def _returned(self, rows: Sequence[Row], completions: Sequence[str], columns: Sequence[str]) -> Any:
        given: dict[str, list] = {column: [_copied(row.columns.get(column)) for row in rows] for column in columns}
        given["prompts"] = [_copied(row.prompt) for row in rows]
        given["completions"] = [
            text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}] for row, text in zip(rows, completions)
        ]
        return self.function(**{name: value for name, value in given.items() if self.takes_all or name in self.takes})

    def _place(self, error: Exception) -> str:
        """Where in the user's files it was raised."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if code and frame.filename == code.co_filename]
        return f"{own[-1].filename}, line {own[-1].lineno}" if own else "it"

    def _culprit(self, rows: Sequence[Row], completions: Sequence[str], columns: Sequence[str]) -> str:
        """The first row for which alone the function raises, and what was written there; all of them where it does not."""
        for row, text in zip(rows, completions):
            try:
                self._returned([row], [text], columns)
            except Exception:
                return f"{row.location} (completion {_brief(text)})"
        return _named(rows)

    def _checked(self, rows: Sequence[Row], values: list) -> list[float]:
        for row, value in zip(rows, values):
            if not isinstance(value, Real) or math.isinf(_float(value)):
                raise BadInput(f"reward {self.name!r} returned {_brief(value)} for {row.location}: return a finite number")
        missing = [row for row, value in zip(rows, values) if math.isnan(_float(value))]
        if missing and not self.told:
            self.told = True
            said = f"reward {self.name!r} returned NaN for {_named(missing)}: a member is left out for that, a held-out row is not counted"
            warnings.warn(f"{said}. Later ones are not told", RuntimeWarning, stacklevel=2)
        return [float(value) for value in values]


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # of an integer
        return math.inf


def _copied(value: Any) -> Any:
    """Of a row, which is there for all members."""
    return copy.deepcopy(value) if isinstance(value, list | dict) else value


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row.columns))


def _named(rows: Sequence[Row]) -> str:
    return ", ".join(row.location for row in rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _built_in(spec: str) -> _Builtin:
    name, _, argument = spec.partition(":")
    wanted, make = BUILTIN[name]
    if not argument:
        raise BadInput(f"reward {spec!r} is not whole: write {name}:{wanted}")
    return _Builtin(spec, make(argument))


def _found(spec: str, folders: Sequence[Path]) -> Any:
    """What "module:function" or "file.py:function" names, in the first of some folders that has it."""
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise BadInput(f"reward {spec!r} is not known: pass {FORMS}{nearest(spec.partition(':')[0], BUILTIN)}")
    module = (_module_of_file if where.endswith(".py") else _module)(spec, where, folders)
    if not hasattr(module, name):
        raise BadInput(f"reward {spec!r}: {where} has no {name!r}{nearest(name, vars(module))}: pass a function that is there")
    return getattr(module, name)


def _module(spec: str, name: str, folders: Sequence[Path]) -> ModuleType:
    with _searching(folders), refusing(f"reward {spec!r}: {name} cannot be imported{nearest(name, BUILTIN)}", f"pass {FORMS}"):
        return importlib.import_module(name)


def _module_of_file(spec: str, file: str, folders: Sequence[Path]) -> ModuleType:
    paths = [(folder / Path(file).expanduser()).resolve() for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        within = f" in {', '.join(map(str, folders))}" if len(folders) > 1 else ""
        raise BadInput(f"reward {spec!r}: {file} does not exist{within}: check the path")
    made = importlib.util.spec_from_file_location(f"rewards_of_{path.stem}", path)
    assert made is not None and made.loader is not None  # of any name that ends in .py
    module = importlib.util.module_from_spec(made)
    with _searching([path.parent]), refusing(f"reward {spec!r}: {file} cannot be imported", "correct it"):
        sys.modules[made.name] = module  # where dataclasses and pickle look for it
        made.loader.exec_module(module)
    return module


@contextmanager
def _searching(folders: Sequence[Path]) -> Iterator[None]:
    """Modules of the folders can be imported in here, as by a script in them."""
    searched = list(map(str, folders))
    sys.path[:0] = searched
    try:
        yield
    finally:
        for folder in searched:
            sys.path.remove(folder)
