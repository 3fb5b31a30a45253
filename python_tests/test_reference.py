"""The reference has everything public, once, and nothing that is not there."""

import re
from collections import Counter
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name  # where a module and what is in it have one name it takes the module, as the site does
from types import ModuleType

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[1]
PAGES = {path.name: re.findall(r"^::: (\S+)$", path.read_text(), re.M) for path in sorted((ROOT / "docs" / "reference").glob("*.md"))}
PACKAGES = ["", ".noise", ".ops", ".optim", ".estimators", ".trajectory", ".hf", ".finetune", ".evolve", ".engines", ".engines.vllm"]
PACKAGES += [".tasks", ".mapped"]
ELSEWHERE = {"__version__", "BadInput"}  # a text; of finetune, which evolve hands on


def attribute(name):
    """What a user reaches by zokern.NAME, packages imported; where a function and a module have one name, the function."""
    thing = import_module("zokern")
    for part in name.split("."):
        if not hasattr(thing, part):
            import_module(f"{thing.__name__}.{part}")
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_is_in_the_reference(package):
    shown = [resolve_name(path) for paths in PAGES.values() for path in paths]
    module = import_module(f"zokern{package}")
    public = {name: getattr(module, name) for name in module.__all__ if name not in ELSEWHERE}
    missing = [name for name, thing in public.items() if not any(thing is other for other in shown)]
    packages = [name for name in missing if isinstance(public[name], ModuleType) and f".{name}" in PACKAGES]
    assert [name for name in missing if name not in packages] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "index.md"])
def test_the_index_names_what_a_page_shows(page):
    (row,) = re.findall(rf"^\| \[.*\]\({page}\) \| .* \| (.*) \|$", (ROOT / "docs" / "reference" / "index.md").read_text(), re.M)
    named = [attribute(name.strip("`")) for name in row.split(", ")]
    assert list(map(id, named)) == [id(resolve_name(path)) for path in PAGES[page]]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_is_there_and_shows_it_once(page):
    every = Counter(id(resolve_name(path)) for paths in PAGES.values() for path in paths)
    assert [path for path in PAGES[page] if every[id(resolve_name(path))] > 1] == []
