"""The doctor's sections one after the other, as lines and as JSON."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from ..errors import first_line
from ..version import __version__
from .exact import exactness
from .finding import FAULT, Finding, Section
from .machine import kernels, machine
from .packages import packages
from .speed import speed

LOOKS = {"packages": packages, "machine": machine, "kernels": kernels, "self-test": exactness, "speed": speed}


def examine(
    with_speed: bool = True,
    show: Callable[[Section], object] = lambda section: None,
    during: Callable[[str], AbstractContextManager] = nullcontext,
) -> list[Section]:
    """Look at everything. Each section is shown as soon as it is known; ``during(title)`` is entered while it is looked at."""
    seen = []
    for title, look in LOOKS.items():
        if title != "speed" or with_speed:
            with during(title):
                seen.append(Section(title, _guarded(title, look)))
            show(seen[-1])
    return seen


def _guarded(title: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """All findings of a look that may itself fail on what is broken here."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except Exception as error:
        found.append(Finding(title, FAULT, f"could not be looked at: {first_line(error)}"))
    return found


def lines(section: Section) -> list[str]:
    """A section as plain lines."""
    width = max((len(finding.name) for finding in section.findings), default=0)
    told = [f"{f.says}: {f.cure}" if f.cure else f.says for f in section.findings]
    return [section.title, *(f"  {f.state:7}  {f.name:{width}}  {says}" for f, says in zip(section.findings, told)), ""]


def verdict(seen: Iterable[Section]) -> str:
    faults = [fault for section in seen for fault in section.faults]
    return f"{len(faults)} fault{'s' * (len(faults) > 1)}: {', '.join(faults)}" if faults else "healthy: no fault was found"


def as_json(seen: list[Section]) -> dict[str, Any]:
    faults = [fault for section in seen for fault in section.faults]
    found = {section.title: [asdict(finding) for finding in section.findings] for section in seen}
    return {"zokern": __version__, "healthy": not faults, "faults": faults, **found}
