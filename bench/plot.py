"""python -m bench.plot RECORDS: the pictures of docs/figures, from committed records alone; two tables of docs/benchmarking.md."""

import argparse
import json
import sys
from pathlib import Path

from . import drift, figures, kernels, modes, runs, step
from .figures import largest, where
from .record import ROOT
from .table import by_case


def markdown(records) -> str:
    """The table, with the machine, the versions and the commit that it was measured at."""
    lines = ["| | zokern | the torch way | |", "|---|---|---|---|"]
    for case in largest(records):
        ours, torch = case[kernels.OURS], case[kernels.TORCH]
        lines.append(
            f"| `theta += c z`, {ours['dtype']}, {ours['n']:,} elements | {ours['ns_per_element']:.2f} ns an element "
            f"| {torch['ns_per_element']:.2f} ns | {ours['speedup']:.0f}x, {ours['share_of_floor']:.2f} of the floor |"
        )
    for case in by_case([r for r in records if r["suite"] == "step"]):
        ours, theirs = case[modes.OURS], case[step.PUBLISHED]
        lines.append(
            f"| MeZO step, {ours['model']}, {ours['dtype']}, {threads(ours)} | {ours['step_in_forwards']:.2f} forwards "
            f"| {theirs['step_in_forwards']:.2f} forwards | optimizer's part {ours['optimizer_speedup']:.0f}x cheaper |"
        )
    for case in by_case([r for r in records if r["op"] == drift.DRIFT and not r.get("model")]):
        ours, theirs = case[modes.OURS], case[step.PUBLISHED]
        lines.append(
            f"| drift of {ours['dtype']} weights in {ours['steps']} steps with lr = 0 | {ours['drift_over_eps']:.2g} eps "
            f"| {theirs['drift_over_eps']:.2g} eps | rounding, the same for both |"
        )
    return "\n".join([*lines, "", measured([r for r in records if r["op"] == "add_noise_"])])


def peers(records) -> str:
    """The table of suite ``peers``: one line a published step, model and dtype, zokern perturbing as it does by default where it knows the
    model."""
    head = ["published step", "model", "zokern", "a step, ms: theirs / ours", "its own part, ms", "cheaper", "forwards"]
    head += ["MB over a forward", "drift, eps", "state, weights"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for theirs, ours in runs.pairs(records):
        if (runs.way(ours) == "in place") != (ours["dtype"] == "fp32"):
            continue
        cheaper = "" if ours["optimizer_speedup"] is None else f"{ours['optimizer_speedup']:.1f}x"
        told = [ours["op"], f"{ours['model']}, {ours['dtype']}", ours["candidate"].removeprefix("zokern.")]
        told += [runs.either(theirs, ours, "median_s", 1e3, " / "), runs.either(theirs, ours, "optimizer_s", 1e3, " / "), cheaper]
        told += [str(ours["forwards"]), " / ".join(runs.short(round(r["peak_over_forward_bytes"] / 1e6, 3)) for r in (theirs, ours))]
        told += [runs.either(theirs, ours, "drift_over_eps", 1, " / "), runs.states(theirs, ours, " / ")]
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join([*lines, "", measured([r for r in records if r["suite"] == "peers"])])


def measured(records) -> str:
    """On what, and of what."""
    first = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version and name in ("torch", "python"))
    return f"{where(records)}; {versions}; commit {first['commit']}, {first['date'][:10]}."


def threads(record) -> str:
    return "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="folder of the pictures")
    arguments = parser.parse_args(argv)
    records = [json.loads(line) for line in arguments.records.read_text().splitlines()]
    figures.draw([r for r in records if not r.get("error")], arguments.figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
