"""pyproject.toml, the constraint files and the Makefile say one thing: every dependency has a lower bound, which `make oldest` runs,
and what is pinned lies within the bounds, on every Python."""

import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = [Requirement(line) for line in PROJECT["dependency-groups"]["build"]]
DOCS = [Requirement(line) for line in PROJECT["dependency-groups"]["docs"]]
EXTRAS = [Requirement(line) for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines]
BOUND = [r for r in [*map(Requirement, PROJECT["project"]["dependencies"]), *EXTRAS, *BUILD, *DOCS] if r.name != "zokern"]


def with_torch():
    """What the Makefile pins: torch and its Triton."""
    return dict(re.findall(r"(\w+)==([\w.]+)", re.search(r"^TORCH \?= (.*)", (ROOT / "Makefile").read_text(), re.M)[1]))


def pins(name, python):
    """What a constraint file pins, {name: version}, for a Python on Linux."""
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    here = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    return {r.name: str(r.specifier).removeprefix("==") for r in wanted if r.marker is None or r.marker.evaluate(here)}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("requirement", BOUND, ids=lambda r: r.name)
def test_pins_lie_within_the_bounds_and_the_oldest_is_the_bound(requirement, python):
    name = canonicalize_name(requirement.name)
    bounds = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    assert len(bounds) == 1, f"{requirement} has no lower bound"
    oldest, pinned = pins("oldest", python)[name], {**pins("pinned", python), **with_torch()}[name]
    assert Version(oldest) == bounds[0]
    assert requirement.specifier.contains(pinned)


def test_the_pins_leave_out_what_comes_with_a_torch():
    assert set(with_torch()) == {"torch", "triton"}
    assert not [name for name in pins("pinned", "3.11") if name.startswith(("torch", "triton", "nvidia", "cuda"))]


def test_what_builds_the_package_is_pinned():
    pinned = {r.name: r.specifier for r in BUILD}
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        assert set(requirement.specifier) <= set(pinned[requirement.name]), requirement


def test_who_installs_the_package_has_its_types_and_golden_vectors():
    packages, files = PROJECT["tool"]["setuptools"]["package-data"], ["py.typed", "noise/golden.txt"]
    assert packages == {"zokern": files} and all((ROOT / "zokern" / name).exists() for name in files)
