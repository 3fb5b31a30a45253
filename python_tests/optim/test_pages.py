"""docs/optimizers has a page for every optimizer of zokern, and says what its class declares and what its step does."""

import re
from functools import partial
from inspect import Parameter, signature
from pathlib import Path

import pytest
import torch
from hybrid_cases import SGD, Net

from zokern import MeZO, splits
from zokern.kernels import backend_for
from zokern.optim import optimizers
from zokern.optim.settings import COMMON

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "optimizers"
INDEX = (FOLDER / "index.md").read_text()
PAGES = {path.name: path.read_text() for path in FOLDER.glob("*.md") if path.name != "index.md"}
CLASSES = [cls for cls in optimizers().values() if cls.__module__.startswith("zokern.")]
NUMBER = re.compile(r"[\w +]+")  # an expression in settings, as "2 q + 1"
SMALL = {"q": 3, "population": 6}
ANCHOR = "at an anchor"


def pages_of(cls) -> list[str]:
    """Names of the pages that are its: by the line under the title."""
    return [name for name, text in PAGES.items() if f"`zokern.{cls.__name__}` · `--optimizer {cls.name}`" in text]


def page_of(cls) -> str:
    return PAGES[pages_of(cls)[0]]


def rows(text, begin) -> list[list[str]]:
    """The cells of the first table after some words, without its head."""
    table = re.search(r"(?:^\|.*\n)+", text[text.index(begin) :], re.M)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def number(cell, settings) -> int | None:
    """What a cell begins with, "2 q + 1, ...", by these settings; None of one that begins with other words."""
    expression = re.sub(r"(\d) (?=[a-z])", r"\1 * ", NUMBER.match(cell)[0])
    try:
        return int(eval(expression, {}, settings))
    except (NameError, SyntaxError):
        return None


def given(label) -> dict:
    """The settings that a row of the cost table is of."""
    return {k: v for code in re.findall(r"`([^`]*)`", label) for k, v in eval(f"dict({code})").items()}


COSTS = [
    pytest.param(cls, row, id=f"{cls.__name__}: {row[0]}") for cls in CLASSES if pages_of(cls) for row in rows(page_of(cls), "## Cost")
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_optimizer_has_one_page_and_the_index_links_to_it(cls):
    (name,) = pages_of(cls)
    assert PAGES[name].startswith(f"# {cls.__name__}\n")
    (row,) = [row for row in rows(INDEX, "| optimizer |") if row[0] == f"[{cls.__name__}]({name})"]
    told = [[number(cell, {**SMALL, "none": 0, "d": 1}) for cell in cells] for cells in (row[2:], rows(PAGES[name], "## Cost")[0][1:])]
    assert told[0] == told[1] and None not in told[0][:2]


def test_no_page_is_of_something_else():
    assert len(PAGES) == len(CLASSES)


def test_the_index_says_which_optimizer_does_not_take_an_argument():
    told = {re.search(r"`(\w+)", row[0])[1]: set(re.findall(r"\w+", row[3])) for row in rows(INDEX, "| argument |") if "`" in row[0]}
    names = {cls.__name__ for cls in CLASSES}
    for argument, words in told.items():
        wanted = {cls.__name__ for cls in CLASSES if argument not in signature(cls).parameters and not cls.divides}
        assert words & names == wanted, argument


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_settings_of_a_page_are_the_constructors(cls):
    told = {name.strip("`"): default.strip("`") for name, _, default, _ in rows(page_of(cls), "## Settings to begin with")}
    takes = signature(cls).parameters
    own = {name for base in cls.__mro__ if (added := vars(base).get("settings")) is not COMMON for name in added or ()}
    assert takes.keys() & {*own, "lr", cls.radius} <= told.keys() <= takes.keys()
    for name, default in told.items():
        wanted = takes[name].default
        assert default == "required" if wanted is Parameter.empty else eval(default, {"torch": torch}) == wanted, name


@pytest.mark.parametrize("cls, row", COSTS)
def test_a_step_costs_what_its_page_says(cls, row, monkeypatch):
    label, forwards, passes, memory = row
    calls, full_calls, done = [], [], []
    if cls.divides:
        model = Net().eval()
        tokens, settings = torch.randint(0, 11, (5, 3)), dict(zo=partial(MeZO, q=SMALL["q"]), fo=SGD, split=splits.Depth(2))
        optimizer = cls(model, **{**settings, **given(label)})
        closures = [lambda: calls.append(1) or model(tokens)]
    else:
        params = [torch.nn.Parameter(torch.randn(50)), torch.nn.Parameter(torch.randn(40))]
        optimizer = cls(params, **{name: SMALL[name] for name in SMALL.keys() & cls.declared().keys()}, **given(label))
        closures = [lambda calls=calls: calls.append(1) or (params[0] ** 2).sum() + params[1].sum() for calls in (calls, full_calls)]
    closures = closures[: 1 + cls.full_batch]
    perturbed = optimizer.perturbed
    weights = perturbed.layout.params if perturbed else []
    size = sum(p.numel() for p in weights)

    def counted(kernel, table, *arguments):
        done.extend([1] if table.column("numel").sum() == size else [])  # not where ForwardGradient makes the z of one parameter
        return kernel(table, *arguments)

    backend = backend_for(torch.device("cpu"))
    for name in ("add_noise_", "update_"):
        monkeypatch.setattr(backend, name, partial(counted, getattr(backend, name)))
    optimizer.step(*closures)
    while optimizer.full_batch_due != (ANCHOR in label):
        optimizer.step(*closures)
    for seen in (calls, full_calls, done):
        seen.clear()
    optimizer.step(*closures)
    known = perturbed.param_groups[0] if perturbed else {}
    assert (len(full_calls if ANCHOR in label else calls), len(done)) == (number(forwards, known), number(passes, known))
    held = sum(x.numel() for p in weights for x in perturbed.state[p].values())
    told = number(memory, {"none": 0, "d": 1})
    assert held == size * told if told is not None else cls.derivative


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_short(name):
    assert PAGES[name].count("\n") <= 75
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGES[name], re.M | re.S)
    assert example.count("\n") <= 12 and re.search(r"^(assert|print)\b", example.splitlines()[-1])
