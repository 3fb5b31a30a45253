"""What an attack found is printed at the end of the run (python_tests/conftest.py), from whichever process it ran in."""

from collections import Counter

import pytest
from attack.strength import LONG, SEED


class Found(Counter):
    """Counts of what was tried and of how it ended, and a line for each thing that was wrong, so that one does not hide the others."""

    def __init__(self, title, record):
        super().__init__()
        self.title, self.record, self.wrong = title, record, []

    def blame(self, message):
        self.wrong.append(message)

    def blames(self, what, why):
        """Where there is a reason."""
        if why:
            self.blame(f"{what}: {why}")

    def judge(self):
        """At the end of a test."""
        said = ", ".join(f"{n:,} {what}" for what, n in self.items())
        self.record("attack", f"{self.title}: {said}, {len(self.wrong)} wrong (seed {SEED}{', long' if LONG else ''})")
        if self.wrong:
            pytest.fail("\n".join([f"{len(self.wrong)} wrong, the first of them:", *self.wrong[:20]]), pytrace=False)


@pytest.fixture
def found(request, record_property):
    return Found(request.node.name, record_property)
