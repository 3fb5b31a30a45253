"""zokern doctor: what is installed here, which kernels run, whether their bits are right and what they cost. It writes nothing."""

from .finding import FAULT, MISSING, OK, Finding, Section
from .report import as_json, examine, lines, verdict

__all__ = ["FAULT", "MISSING", "OK", "Finding", "Section", "as_json", "examine", "lines", "verdict"]
