"""Rewards that are given by a word: each makes, of what follows its name, a function of a completion and its row.

``exact``, ``contains`` and ``f1`` compare texts as SQuAD's official script does (Rajpurkar et al. 2016): in lower case, without
punctuation, articles (a, an, the) and surplus blanks. So "4.2" is "42" to them: ``number`` is for numbers. An answer of which nothing would
be left, such as the letter A or a sign, is compared with articles, and with signs that stand alone. A column may hold one answer or a list
of answers that are all right.
"""

import re
import string
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from ..errors import BadInput, refusing
from ..tasks.metrics import normalized, words_f1
from .prompts import Row

Score: TypeAlias = Callable[[str, Row], float]
NUMBER = re.compile(r"[\s:=*]*([-+]?)[$€£]?((?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?)")  # its sign and its digits, behind a mark


def exact(column: str) -> Score:
    """1 where the completion is the column's text."""
    return _best(column, lambda found, right: found == right)


def contains(column: str) -> Score:
    """1 where the column's text occurs in the completion, as whole words."""
    return _best(column, lambda found, right: f" {' '.join(right)} " in f" {' '.join(found)} ")


def f1(column: str) -> Score:
    """F1 of the words that the completion and the column's text have in common, 0 to 1."""
    return _best(column, words_f1)


def regex(pattern: str) -> Score:
    """1 where the regular expression (Python's) is found anywhere in the completion."""
    with refusing(f"reward 'regex:{pattern}' is no regular expression", "correct it", re.error):
        compiled = re.compile(pattern)
    return lambda text, row: float(compiled.search(text) is not None)


def number(argument: str) -> Score:
    """1 where the number after the first MARK equals that of the column, "1,234.0" being 1234.

    The column holds a number, or a text with the same mark in it, such as the answers of GSM8K with "####".
    """
    mark, _, column = argument.rpartition(":")
    if not mark or not column:
        raise BadInput(f"reward 'number:{argument}' names no mark or no column: write number:MARK:COLUMN, such as number:####:answer")

    def right(answer: str, row: Row) -> Decimal:
        value = _number(answer.partition(mark)[2] if mark in answer else answer)
        if value is None:
            raise BadInput(f"{row.location}, column {column!r}: {answer!r} is no number, as reward 'number:{argument}' needs: correct it")
        return value

    def score(text: str, row: Row) -> float:
        return float(_number(text.partition(mark)[2]) in [right(answer, row) for answer in _answers(row, column)])

    return score


def length(argument: str) -> Score:
    """1 up to N words, as blanks divide them; above that N / words."""
    if not argument.isdecimal() or int(argument) < 1:
        raise BadInput(f"reward 'length:{argument}': pass a whole number of words, 1 or more, such as length:50")
    most = int(argument)
    return lambda text, row: min(1.0, most / max(1, len(text.split())))


BUILTIN: dict[str, tuple[str, Callable[[str], Score]]] = {  # name -> what follows it, the function
    "exact": ("COLUMN", exact),
    "contains": ("COLUMN", contains),
    "f1": ("COLUMN", f1),
    "regex": ("PATTERN", regex),
    "number": ("MARK:COLUMN", number),
    "length": ("N", length),
}


def _best(column: str, worth: Callable[[list[str], list[str]], float]) -> Score:
    """worth(words of the completion, words of an answer), of the answer that fits best."""

    def score(text: str, row: Row) -> float:
        return float(max(worth(*_words(text, answer)) for answer in _answers(row, column)))

    return score


def _words(text: str, answer: str) -> tuple[list[str], list[str]]:
    """Of both, as they are compared."""
    if right := normalized(answer).split():
        return normalized(text).split(), right
    found, right = ([word.strip(string.punctuation) or word for word in of.lower().split()] for of in (text, answer))
    return found, right


def _answers(row: Row, column: str) -> list[str]:
    value = row.columns.get(column)
    answers = [str(answer) for answer in (value if isinstance(value, list) else [value]) if answer is not None]
    if not answers or not all(map(str.strip, answers)):
        known = ", ".join(row.columns) or "none"
        raise BadInput(f"{row.location} has nothing in the column {column!r}, which a reward needs: beside the prompt it has {known}")
    return answers


def _number(text: str) -> Decimal | None:
    try:
        return Decimal("".join(matched.groups()).replace(",", "")) if (matched := NUMBER.match(text)) else None
    except InvalidOperation:  # an exponent that it cannot hold
        return None
