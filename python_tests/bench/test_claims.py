"""Every measured number of README and docs is what a committed record says (bench/claims), and a wrong or a new one is found."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench.claims import check, claim  # noqa: E402
from bench.claims.__main__ import main  # noqa: E402
from bench.claims.exempt import EXEMPT  # noqa: E402
from bench.claims.numbers import measured  # noqa: E402

PAGES = check.pages()
CLAIMS = [pytest.param(each, id=f"{each.page}-{each.figures.__name__}") for each in claim.CLAIMS]


def found(page, text) -> list[str]:
    return [str(problem) for problem in check.problems({page: text})]


def test_every_measured_number_is_what_a_record_says():
    problems = check.problems(PAGES)
    assert not problems, "python -m bench.claims writes what can be written:\n" + "\n".join(map(str, problems))


def changed(text, number) -> str:
    """The page with another first digit in one of its numbers."""
    at = re.compile(r"\d").search(text, number.start()).start()
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]


@pytest.mark.parametrize("each", CLAIMS)
def test_a_figure_that_is_changed_is_told_and_written_again(each):
    text = PAGES[each.page]
    (place,) = each.exactly().finditer(text)
    for group in range(1, place.re.groups + 1):
        numbers = list(re.compile(r"\d+").finditer(text, *place.span(group)))
        for number in numbers:
            (told,), _ = check.compared(each, changed(text, number))
            assert each.figures.__name__ in told.what
        assert not numbers or check.renewed(each.page, changed(text, numbers[0])) == text


@pytest.mark.parametrize("item", EXEMPT, ids=lambda item: item.text[:40])
def test_an_exempted_number_that_is_changed_is_found(item):
    text = PAGES[item.page]
    (place,) = item.pattern.finditer(text)
    numbers = [number for number in measured(text) if number.start() in range(*place.span())]
    assert numbers and all(found(item.page, changed(text, number)) for number in numbers)


@pytest.mark.parametrize("each", CLAIMS)
def test_no_figure_without_its_records(each, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "RESULTS", tmp_path)
    (missing,), _ = check.compared(each, PAGES[each.page])
    for file in each.files:
        (tmp_path / file).touch()
    (empty,), _ = check.compared(each, PAGES[each.page])  # nor are they written into the function
    assert "gives no figures: FileNotFoundError" in missing.what and "gives no figures" in empty.what


def test_a_new_number_needs_a_claim():
    text = PAGES["docs/trainer.md"]
    for words in (
        "It takes 3.7 of it.",
        "It is 17 % faster.",
        "It made 349 of them.",
        "| 20 ms |",
        "It is 31x faster.",
        "In 40 s it ends.",
    ):
        (problem,) = found("docs/trainer.md", f"{text}\n{words}\n")
        assert problem.startswith(f"docs/trainer.md:{text.count(chr(10)) + 2}: ") and "is in no claim" in problem
    for words in (
        "After 4,000 steps of 512 rows.",
        "With torch 2.6 and 2.7.",
        "`--lr 0.1`",
        "[here](page.md#1.2)",
        "In 2023.",
        "2^26 x 4096",
    ):
        assert not found("docs/trainer.md", f"{text}\n{words}\n")


def test_a_number_beside_the_figures_of_a_claim_is_not_covered():
    each = claim.Claim("page.md", "from {before} to 0.2 of it", (), dict)
    (place,) = each.roughly().finditer("from 0.1 to 0.2 of it")
    assert place.groups() == ("0.1",)


def test_a_backtick_too_many_hides_one_paragraph_at_most():
    assert [number[0] for number in measured("a ` of 0.1\n\nb 0.2 `c`\n")] == ["0.1", "0.2"]


def test_a_passage_that_is_gone_is_told():
    page = "docs/rewards.md"
    assert any("is there 0 times" in problem for problem in found(page, PAGES[page].replace("mirrored members", "members")))


def test_an_exemption_that_excuses_nothing_is_told(monkeypatch):
    idle = type(EXEMPT[0])("docs/trainer.md", "# The Hugging Face Trainer", "none")
    gone = type(EXEMPT[0])("docs/trainer.md", "this is not there", "none")
    monkeypatch.setattr(check, "EXEMPT", [idle, gone])
    first, second = found("docs/trainer.md", PAGES["docs/trainer.md"])
    assert "needs no exemption" in first and "0 times" in second


def test_the_command_writes_the_figures(tmp_path, monkeypatch, capsys):
    for name, text in PAGES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("0.027 to", "0.127 to"))
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr("bench.claims.__main__.ROOT", tmp_path)
    assert main(["--check"]) == 1 and "'0.127' is '0.027'" in capsys.readouterr().out
    assert main([]) == 0 and check.pages() == PAGES
    assert main(["--check"]) == 0
