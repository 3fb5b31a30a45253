"""The arrows of docs/architecture.md, walked over the source: a room imports downward only, and no file outgrows a reader."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "zokern"

# A room may import the rooms in its entry (and itself). Rooms above optim come last.
BELOW = {
    "version": set(),
    "_cpu": set(),
    "_cuda": set(),
    "noise": set(),
    "kernels": {"noise", "_cpu", "_cuda"},
    "layout": {"kernels", "noise"},
    "ops": {"kernels", "layout", "noise"},
    "signals": set(),
    "perturb": {"ops", "layout", "kernels", "noise"},
    "tangents": {"ops", "layout", "kernels", "noise"},
    "estimate": {"signals", "perturb", "ops", "layout", "kernels", "noise"},
    "layers": set(),
    "optim": {"signals", "estimate", "perturb", "tangents", "layers", "ops", "layout", "kernels", "noise"},
}
BELOW["capture"] = set(BELOW)
EVERYTHING = set(BELOW) | {"zokern", "errors", "documents"}
ABOVE = {
    "errors": set(),
    "documents": {"errors"},
    "tasks": {"errors", "documents"},
    "trajectory": EVERYTHING,
    "hf": EVERYTHING | {"tasks", "trajectory"},
    "finetune": EVERYTHING | {"tasks", "trajectory", "hf"},
    "cli": EVERYTHING | {"finetune", "tasks", "trajectory", "hf"},
    "__main__": {"cli"},
    "__init__": EVERYTHING | {"trajectory"},
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
        else:
            continue
        yield from ((node.lineno, name.split(".")) for name in found if name.split(".")[0] == "zokern")


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_run_one_way(path):
    allowed = {**BELOW, **ABOVE}[room(path)] | {room(path)}
    for line, (_, *rest) in imports(path):
        target = rest[0] if rest else "zokern"
        if target not in BELOW and target not in ABOVE:
            target = "zokern"  # a name that the package exports
        assert target in allowed, f"{path.relative_to(ROOT)}:{line} imports {target}; {room(path)} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_backend_imports_another(path):
    inside = path.relative_to(PACKAGE / "kernels").with_suffix("").parts[0]
    for line, (_, *rest) in imports(path):
        if rest[:1] == ["kernels"] and inside != "__init__":
            assert rest[1:2] in ([inside], ["spans"], ["passes"], ["tables"]), (
                f"{path.relative_to(ROOT)}:{line} reaches sideways to {'.'.join(rest)}"
            )


@pytest.mark.parametrize("path", sorted((PACKAGE / "noise").rglob("*.py")), ids=lambda p: p.name)
def test_the_noise_needs_no_torch(path):
    names = {alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names}
    assert "torch" not in names and (path.name != "spec.py" or not names)


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
