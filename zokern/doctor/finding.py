"""What the doctor found: one line each."""

from dataclasses import dataclass, field

OK, MISSING, FAULT = "ok", "absent", "FAULT"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: of the thing.
        state: ``OK``; ``MISSING``, of what zokern does without; or ``FAULT``.
        says: its version, or what is wrong.
        cure: the command or the change that helps. Default "": nothing need be done.
        numbers: what was measured, by name and unit.
    """

    name: str
    state: str
    says: str
    cure: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Findings of one kind."""

    title: str
    findings: list[Finding]

    @property
    def faults(self) -> list[str]:
        return [f"{finding.name} ({self.title})" for finding in self.findings if finding.state == FAULT]
