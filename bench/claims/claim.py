"""A claim: a passage of a page, with its figures left open, and the function that computes them from committed records."""

import json
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from ..record import ROOT

RESULTS = ROOT / "bench" / "results"
CLAIMS: list["Claim"] = []  # all that are declared
FIGURE = r"(\S.{0,200}?)(?![.,]?\d)"  # what is looked for in place of a figure, where it is not what the records say: whole numbers
LINES = r"(\|[^\n]*(?:\n\|[^\n]*)*|[^\n]+)"  # and in place of one that is a line by itself: the rows of a table, or any line


class Records(list):
    """The lines of one file of bench/results."""

    def of(self, **fields) -> "Records":
        return Records(r for r in self if all(r.get(name) == value for name, value in fields.items()))

    def one(self, **fields) -> dict:
        """The only one with these fields."""
        found = self.of(**fields)
        if len(found) != 1:
            raise LookupError(f"{len(found)} records with {fields}, not one")
        return found[0]


@dataclass(frozen=True)
class Claim:
    """Args:
    page: the file that says it, from the repository's root.
    text: what it says, as ``str.format`` takes it. Figures are {name} or {name:.2f}; line breaks do not count.
    files: the names of its records in bench/results.
    figures: from the Records of each file to {name: value}.
    """

    page: str
    text: str
    files: tuple[str, ...]
    figures: Callable[..., dict]

    def __post_init__(self):
        first, last = self.parts[0], self.parts[-1]
        if not first[0] or last[1] is not None and last[1] not in self._lines():
            raise ValueError(f"{self.figures.__name__}: the text must have words before its first figure and after its last: {self.text}")

    @cached_property
    def parts(self) -> list[tuple]:
        """(text before it, name, format) of each figure; after the last one the name is None."""
        return [(literal, name, how) for literal, name, how, _ in string.Formatter().parse(self.text)]

    def values(self) -> list[str]:
        """The figures as the page should show them, in the order of the text."""
        return _values(self, RESULTS)

    def exactly(self) -> re.Pattern:
        """Matches the passage with the records' figures, each a group."""
        return _exactly(self, RESULTS)

    def roughly(self) -> re.Pattern:
        """Matches the passage with any figures."""
        return self.pattern(LINES if name in self._lines() else FIGURE for _, name, _ in self.parts if name is not None)

    def _lines(self) -> list[str]:
        """The figures that are lines by themselves."""
        return re.findall(r"^\s*\{(\w+)\}\s*$", self.text, re.M)

    def pattern(self, figures) -> re.Pattern:
        figures = iter(figures)
        text = "".join(spaced(literal) + ("" if name is None else next(figures)) for literal, name, _ in self.parts)
        return re.compile(text, re.S)


def on(page):
    """The decorator of a page's claims: ``@claim(text, file, ...)`` over the function of their figures."""

    def claim(text, *files):
        def declared(figures):
            CLAIMS.append(Claim(page, text.strip(), files, figures))
            return figures

        return declared

    return claim


@cache
def _values(claim, results) -> list[str]:
    found = claim.figures(*(read(results / file) for file in claim.files))
    names = [name for _, name, _ in claim.parts if name is not None]
    if set(names) != set(found):
        raise ValueError(f"the text has the figures {sorted(set(names))}, the function gives {sorted(found)}")
    values = [format(found[name], how) for _, name, how in claim.parts if name is not None]
    if "" in values:
        raise ValueError("a figure is empty")
    return values


@cache
def _exactly(claim, results) -> re.Pattern:
    return claim.pattern(f"({spaced(value)})" for value in _values(claim, results))


@cache
def read(path: Path) -> Records:
    lines = map(json.loads, path.read_text().splitlines())
    return Records(record for record in lines if not record.get("error"))


def spaced(text) -> str:
    """A pattern of a text in which any white space may stand for any other."""
    return r"\s+".join(map(re.escape, re.split(r"\s+", text)))


def rows(cells) -> str:
    """Rows of a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def power(number) -> str:
    """0.001 as 1e-3."""
    digits, _, exponent = f"{number:e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"
