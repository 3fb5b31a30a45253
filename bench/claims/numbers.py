"""Which numbers of a page look like a measurement: those that a claim must compute from records, or an exemption must excuse.

Looked at are prose and tables. Left out are code (fenced, indented or between backticks), what a link points to, HTML comments, the
versions of programs ("torch 2.6"), and a number that is part of a name, a power or a date (OPT-13B, sm_90, 2^26, 2026-11-28).
Of the others these look like a measurement:

- every decimal: 0.61, 1.2e-4, 0.3M;
- every number with a unit of time, of memory or of comparison: 20 s, 70 ms, 2 MB, 17 %, 31x, 24 times less, 3 forwards, 349 steps a second;
- every integer of three or more digits that are not zeros at its end, and no power of two: 349, 2,556. Settings (512 rows, 4,000 steps,
  30 members) are seldom such; a four-digit number without a comma is a year or a size.

What is said in words ("twice", "a third") is left to the author.
"""

import re

CODE = re.compile(r"^```.*?^```|<!--.*?-->|^    .*?$|`[^`\n]*(?:\n(?!\s*\n)[^`\n]*)*`|\]\([^)]*\)", re.M | re.S)
PROGRAMS = "Python|torch|[Tt]riton|NumPy|transformers|peft|accelerate|datasets|CUDA|capability|wav2vec"
VERSION = re.compile(rf"\b(?:{PROGRAMS})`?(?:\s(?:below|up\sto))?[\s-]\d+(?:\.\d+)+(?:\s(?:to|and)\s\d+(?:\.\d+)+)*")
UNIT = re.compile(
    r"(?:s|ms|ns|[KMG]B|x)\b|\s?%|\s(?:s|ms|ns|[KMG]B|(?:micro)?seconds|minutes|hours|forwards|cycles|steps\s+a\s+second)\b"
    r"|\stimes\s+(?:as|less|more|faster|slower|cheaper|longer|larger|smaller)\b"
)
DIGITS = r"(?<![\w.,^/-])[-+]?(?!0\d)\d+(?:,\d\d\d)*(?:\.\d+)?(?:e[-+]?\d+)?"
NUMBER = re.compile(rf"{DIGITS}(?={UNIT.pattern}|[KMB]\b|(?![\w^]|[.,]\d))")


def measured(text) -> list[re.Match]:
    """The numbers of a page that look like a measurement, in order."""
    prose = CODE.sub(blank, VERSION.sub(blank, text))
    return [found for found in NUMBER.finditer(prose) if looks_measured(found[0], UNIT.match(prose, found.end()))]


def looks_measured(number, unit) -> bool:
    if "." in number or unit:
        return True
    if "e" in number or len(number) == 4 and number.isdigit():
        return False
    whole = abs(int(number.replace(",", "")))
    return len(str(whole).rstrip("0")) >= 3 and whole & (whole - 1) != 0


def blank(found) -> str:
    """As many spaces, on as many lines; a backtick stays, since code is what is between two."""
    return re.sub(r"[^\n`]", " ", found[0])
