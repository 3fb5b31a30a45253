"""Whether pages say what the records say, and the passages written again where they do not."""

import re
from dataclasses import dataclass

from ..record import ROOT
from .claim import CLAIMS
from .exempt import EXEMPT
from .numbers import measured


@dataclass(frozen=True)
class Problem:
    """What is wrong with a page, and at which line; 0 where the passage is not there."""

    page: str
    line: int
    what: str

    def __str__(self):
        return f"{self.page}:{self.line}: {self.what}" if self.line else f"{self.page}: {self.what}"


def pages() -> dict[str, str]:
    """README, the documents, and what else is written for a reader: name -> text."""
    paths = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def problems(texts) -> list[Problem]:
    """All that is wrong with these pages: name -> text."""
    strays = [Problem(item.page, 0, "no such page") for item in (*CLAIMS, *EXEMPT) if item.page not in texts and not _exists(item.page)]
    return strays + [problem for page, text in texts.items() for problem in _of_page(page, text)]


def _exists(page) -> bool:
    return (ROOT / page).exists()


def _of_page(page, text) -> list[Problem]:
    found, told = [], set()  # problems; where the page says what the records say
    for claim in CLAIMS:
        if claim.page == page:
            wrong, spans = compared(claim, text)
            found += wrong
            told.update(*(range(*span) for span in spans))
    numbers = [number for number in measured(text) if number.start() not in told]
    for item in EXEMPT:
        if item.page == page:
            places = [place.span() for place in item.pattern.finditer(text)]
            excused = [n for n in numbers if places and n.start() in range(*places[0])]
            if len(places) != 1:
                found.append(Problem(page, 0, f"the exempted passage is there {len(places)} times, not once: {item.text}"))
            elif not excused:
                found.append(Problem(page, _line(text, places[0][0]), f"needs no exemption: {item.text}"))
            numbers = [n for n in numbers if n not in excused]
    cure = "add a claim to bench/claims, or an exemption with its reason"
    return found + [Problem(page, _line(text, n.start()), f"{n[0]} is in no claim: {cure}") for n in numbers]


def compared(claim, text) -> tuple[list[Problem], list[tuple]]:
    """What is wrong with one claim, and the spans of its figures on the page, where they can be found."""
    try:
        values = claim.values()
    except Exception as error:
        return [Problem(claim.page, 0, f"{claim.figures.__name__} gives no figures: {type(error).__name__}: {error}")], []
    places = list(claim.exactly().finditer(text))
    if len(places) == 1:
        return [], _spans(places[0])
    if places:
        return [Problem(claim.page, _line(text, places[1].start()), f"is there twice: {claim.figures.__name__}")], []
    rough = list(claim.roughly().finditer(text))
    if len(rough) != 1:
        return [Problem(claim.page, 0, f"{claim.figures.__name__} is there {len(rough)} times, not once: {claim.text}")], []
    return [
        Problem(claim.page, _line(text, rough[0].start(group)), f"{there!r} is {value!r} by the records: {claim.figures.__name__}")
        for group, (there, value) in enumerate(zip(rough[0].groups(), values), start=1)
        if there.split() != value.split()
    ], _spans(rough[0])


def renewed(page, text) -> str:
    """The page with the figures of the records in every passage that is there but for its figures."""
    for claim in CLAIMS:
        wrong, spans = compared(claim, text) if claim.page == page else ([], [])
        if wrong and spans:
            for (start, end), value in reversed(list(zip(spans, claim.values()))):
                text = text[:start] + filled(text[start:end], value) + text[end:]
    return text


def filled(there, value) -> str:
    """The value, with the line breaks that are there where it has as many words."""
    words, spaces = value.split(), re.findall(r"\s+", there)
    return "".join(sum(zip(words, [*spaces, ""]), ())) if len(words) == len(spaces) + 1 else value


def _spans(found) -> list[tuple]:
    return [found.span(group) for group in range(1, found.re.groups + 1)]


def _line(text, position) -> int:
    return text.count("\n", 0, position) + 1
