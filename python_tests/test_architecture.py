"""The arrows of docs/architecture.md, walked over the source: a room imports downward only, and no file outgrows a reader."""

import ast
import re
from pathlib import Path

import pytest

from zokern.optim import optimizers

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "zokern"

# From the ground up: all that each room imports of others. An arrow runs to a room above it in this list, and is used.
ARROWS = {
    "version": set(),
    "_cpu": set(),
    "_cuda": set(),
    "errors": set(),
    "signals": set(),
    "noise": set(),
    "documents": {"errors"},
    "tasks": {"errors", "documents"},
    "kernels": {"noise", "_cpu", "_cuda"},
    "memory": set(),
    "shards": set(),
    "mapped": {"documents", "errors", "memory"},
    "layout": {"noise", "kernels", "memory", "shards"},
    "ops": {"kernels", "layout", "memory", "noise", "shards"},
    "estimators": {"layout", "mapped", "noise", "ops", "shards", "signals"},
    "engines": {"errors", "estimators", "layout", "noise", "ops", "signals", "tasks", "version"},
    "optim": {"estimators", "kernels", "noise", "ops", "shards", "signals", "version"},
    "distributed": {"estimators", "layout", "optim", "shards", "signals"},
    "trajectory": {"errors", "estimators", "memory", "noise", "ops", "optim", "shards", "version"},
    "__init__": {"distributed", "estimators", "kernels", "layout", "noise", "ops", "optim", "trajectory", "version"},
    "hf": {"__init__", "distributed", "errors", "estimators", "optim", "shards", "tasks"},
    "finetune": {"__init__", "documents", "errors", "estimators", "hf", "mapped", "optim", "tasks", "trajectory"},
    "evolve": {"__init__", "engines", "errors", "estimators", "finetune", "hf", "optim", "tasks"},
    "doctor": {"engines", "errors", "kernels", "layout", "noise", "ops", "version"},
    "cli": {"doctor", "documents", "errors", "evolve", "finetune", "trajectory", "version"},
    "__main__": {"cli", "doctor", "version"},
}


def imports(path):
    """(line, module as seen from the package) of everything of zokern's that a file imports, anywhere in it."""
    here = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            found = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need":  # errors.need imports what may be missing
            found = [ast.literal_eval(node.args[0])]
        else:
            continue
        yield from ((node.lineno, name.split(".")) for name in found if name.split(".")[0] == "zokern")


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def arrows(path):
    """{room that a file imports: the line}; what the package itself exports is __init__'s."""
    found = {rest[0] if rest and rest[0] in ARROWS else "__init__": line for line, (_, *rest) in imports(path)}
    return {target: line for target, line in found.items() if target != room(path)}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_other_arrow_is_there(path):
    for target, line in arrows(path).items():
        assert target in ARROWS[room(path)], f"{path.relative_to(ROOT)}:{line} imports {target}: {room(path)} may not"


def test_every_arrow_is_used_and_runs_downward():
    rooms, used = list(ARROWS), {name: set() for name in ARROWS}
    for path in PACKAGE.rglob("*.py"):
        used[room(path)] |= arrows(path).keys()
    assert used == ARROWS
    for i, name in enumerate(rooms):
        assert ARROWS[name] <= set(rooms[:i]), f"{name} imports upward"


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_backend_imports_another(path):
    inside = path.relative_to(PACKAGE / "kernels").with_suffix("").parts[0]
    for line, (_, *rest) in imports(path):
        if rest[:1] == ["kernels"] and inside != "__init__":
            assert rest[1:2] in ([inside], ["spans"], ["passes"], ["tables"], ["source"]), (
                f"{path.relative_to(ROOT)}:{line} reaches sideways to {'.'.join(rest)}"
            )


@pytest.mark.parametrize("path", sorted((PACKAGE / "noise").rglob("*.py")), ids=lambda p: p.name)
def test_the_noise_needs_no_torch(path):
    names = {alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names}
    assert "torch" not in names and (path.name != "spec.py" or not names)


def test_the_page_names_what_is_there():
    """The tree in docs/architecture.md: every room, and no file that is elsewhere."""
    tree = re.search(r"^    csrc/.*?\n\n", (ROOT / "docs" / "architecture.md").read_text(), re.M | re.S)[0]
    named = {path.removesuffix("/") for path in re.findall(r"\b(?:zokern|csrc|bench|python_tests)/[\w.]*", tree)}
    rooms = {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__", "version"}
    assert rooms == {Path(path).stem for path in named if path.startswith("zokern/")}
    for entry in re.split(r"^    (?=\S)", tree, flags=re.M)[1:]:
        folder, said = entry.split(maxsplit=1)
        for file in re.findall(r"\b\w+\.(?:py|hpp|cpp)\b", said):
            assert list((ROOT / folder).rglob(file)), f"{folder} has no {file}"
        assert (ROOT / folder.rstrip(",")).exists(), folder


def sources():
    folders = [ROOT / f for f in ("csrc", "zokern", "python_tests", "bench", "docs", "examples")]
    found = [p for f in folders for kind in ("*.py", "*.cpp", "*.hpp", "*.cu", "*.cuh", "*.sh") for p in f.rglob(kind)]
    return sorted([*found, ROOT / "setup.py"])


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_short_and_named_for_its_noun(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in ("util", "utils", "helper", "helpers", "misc", "common")


def test_nothing_imports_the_outer_rooms():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & {"bench", "python_tests", "examples"}, path


ABOVE = ("engines", "trajectory", "hf", "finetune", "evolve", "cli")
ABOVE_OPTIM = [path for name in ABOVE for path in sorted((PACKAGE / name).rglob("*.py"))]


@pytest.mark.parametrize("path", ABOVE_OPTIM, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_above_asks_which_optimizer_it_is(path):
    """An optimizer declares what it is (zokern/optim/contract.py): no class of one in isinstance or issubclass, no name compared."""
    kinds = {cls.__name__ for cls in optimizers().values()} | {"Trained", "Stateful"}
    names = {cls.name for cls in optimizers().values()} | {cls.__name__ for cls in optimizers().values()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            used = {getattr(inner, "id", getattr(inner, "attr", "")) for inner in ast.walk(node.args[1])}
            assert not used & kinds, f"{path.relative_to(ROOT)}:{node.lineno}"
        if isinstance(node, ast.Compare):
            compared = {getattr(inner, "value", None) for side in (node.left, *node.comparators) for inner in ast.walk(side)}
            assert not {value for value in compared if isinstance(value, str)} & names, f"{path.relative_to(ROOT)}:{node.lineno}"
