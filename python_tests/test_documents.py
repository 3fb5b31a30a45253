"""README, CONTRIBUTING, CHANGELOG and docs: line lengths, links and their anchors, pictures. (mkdocs finds pages without a place.)"""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
PICTURES = sorted((DOCS / "figures").glob("*.png"))
WIDTH = 120  # a line has fewer columns
UNBREAKABLE = re.compile(
    r"""\s*(?:[-*+>]\s+)?(?:
    \[?!?\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?  # a link, an image, an image that is a link
    |\[[^\]]+\]:\s*\S+                        # where a link leads
    |<?https?://\S+                           # a URL
    )[.,;:]?\s*""",
    re.X,
)


def by_name(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(ROOT).as_posix())


@cache
def parsed(path):
    return MarkdownIt("commonmark").enable("table").parse(path.read_text())


def long_lines(path) -> list[str]:
    """The lines of prose that are too long, with their numbers."""
    free = set()  # lines of code and tables
    for token in parsed(path):
        if token.type in ("fence", "code_block", "table_open"):
            free.update(range(*token.map))
    lines = enumerate(path.read_text().splitlines())
    return [f"{i + 1}: {line}" for i, line in lines if len(line) >= WIDTH and i not in free and not UNBREAKABLE.fullmatch(line)]


@cache
def links(path) -> list[str]:
    """Where the links and images of a page lead: what is no URL."""
    found = []
    for token in parsed(path):
        for inner in (token, *(token.children or ())):
            found += [inner.attrs[name] for name in ("href", "src") if name in inner.attrs]
            if inner.type.startswith("html"):
                found += re.findall(r'\b(?:href|src)="([^"]*)"', inner.content)
    return [link for link in found if not urlsplit(link).scheme and not link.startswith("//")]


def leads_to(path, link) -> Path:
    target = unquote(urlsplit(link).path)
    return (path.parent / target).resolve() if target else path


@cache
def anchors(path) -> set[str]:
    """As GitHub makes them of headings, and those that are given in HTML."""
    tokens, found, seen = parsed(path), set(), Counter()
    for token, inline in zip(tokens, tokens[1:]):
        if token.type == "heading_open":
            text = "".join(inner.content for inner in inline.children if inner.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found | set(re.findall(r'<\w+\s[^>]*\b(?:id|name)="([^"]+)"', path.read_text()))


@by_name(PAGES)
def test_lines_are_short(path):
    assert not long_lines(path)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@by_name(PAGES)
def test_links_lead_somewhere(path):
    broken = []
    for link in links(path):
        target, anchor = leads_to(path, link), urlsplit(link).fragment
        if not target.exists():
            broken.append(f"{link}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            broken.append(f"{link}: no heading has this anchor")
    assert not broken


@by_name(PICTURES)
def test_a_picture_is_shown(path):
    assert any(path in (leads_to(page, link) for link in links(page)) for page in PAGES)
