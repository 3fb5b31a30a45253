"""Prompts as data: a template with the columns of a row in it, and the options that a model chooses from."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from string import Formatter

from ..errors import BadInput
from .rows import Example

OPTION = "option"  # where the model answers: no column has this name
CONJUNCTIONS = {"effect": "so", "cause": "because"}  # what COPA asks for


def _inline(text: str) -> str:
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def _conjunction(text: str) -> str:
    if text not in CONJUNCTIONS:
        raise BadInput(f"{text!r} is neither 'cause' nor 'effect': correct the row")
    return CONJUNCTIONS[text]


def _gap(text: str) -> list[str]:
    if text.count("_") != 1:
        raise BadInput(f"the sentence has {text.count('_')} gaps (_), not one: correct the row")
    return text.split("_")


# What a template may do to a column: "{premise:unended}".
WORDINGS: dict[str, Callable[[str], str]] = {
    "": str.strip,
    "unended": lambda text: re.sub("[.?!,;:]$", "", text.strip()),  # no full stop, question mark or the like at the end
    "lowered": lambda text: text.strip()[:1].lower() + text.strip()[1:],
    "inline": lambda text: _inline(text.strip()),  # the first word in lower case, unless it is "I"
    "asked": lambda text: (text.strip()[:1].upper() + text.strip()[1:]).removesuffix("?") + "?",  # a capital and one question mark
    "conjunction": _conjunction,
    "before": lambda text: _gap(text)[0],
    "after": lambda text: _gap(text)[1],
}


@dataclass(frozen=True)
class Prompt:
    """How a row is put to a model.

    Attributes:
        template: text with columns, "{sentence}" or "{sentence:wording}" (a key of WORDINGS), and once "{option}": there stands the
            mask token of a masked model, and what a causal model's option is appended to.
        options: one a label, in the order of the ids; each may name columns too. () where the model writes its answer itself.
    """

    template: str
    options: tuple[str, ...] = ()


def columns(*templates: str) -> list[str]:
    """The columns that templates name, each once."""
    named = [field for template in templates for _, field, _, _ in Formatter().parse(template) if field and field != OPTION]
    return list(dict.fromkeys(named))


def parts(template: str, example: Example) -> list[tuple[str, str]]:
    """-> [(kind, text)], kind "template", "text" (of the row) or "option"."""
    found = []
    for literal, field, wording, _ in Formatter().parse(template):
        if literal:
            found.append(("template", literal))
        if field == OPTION:
            found.append((OPTION, ""))
        elif field:
            try:
                found.append(("text", WORDINGS[wording or ""](example[field])))
            except BadInput as error:
                raise BadInput(f"{example.location}, column {field!r}: {error}") from None
    return found


def fill(template: str, example: Example, option: str = "") -> str:
    """The template with the row's columns in it, and ``option`` where it goes."""
    return "".join(option if kind == OPTION else text for kind, text in parts(template, example))
