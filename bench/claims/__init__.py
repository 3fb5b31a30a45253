"""What README and docs say was measured, computed from bench/results: ``python -m bench.claims``.

A new claim is a passage of a page with its figures left open, over the function that computes them from records::

    @claim("the mean reward rose from {before:.3f} to {after:.3f}", "rewards-smollm2.jsonl")
    def rewards(runs): ...  # -> {"before": 0.027, "after": 0.292}

``claim`` has the parts, ``check`` compares them with the pages, ``numbers`` says which numbers of a page must be claimed, and ``exempt``
names the few that need not; the other files are the pages. python_tests/bench/test_claims.py holds all of it.
"""

# ruff: noqa: F401  # importing a page's file declares its claims
from . import (
    accuracy,
    benchmarking_counted,
    benchmarking_cpu,
    benchmarking_runs,
    convergence,
    engines,
    others,
    peers,
    precision,
    processes,
    readme,
    rewards,
)
