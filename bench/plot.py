"""python -m bench.plot RECORDS: the pictures of docs/figures, from committed records alone; a table of docs/benchmarking.md."""

import argparse
import json
import sys
from pathlib import Path

from . import drift, figures, kernels, modes, step
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
    ours = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in ours["versions"].items() if version and name in ("torch", "python"))
    kernels_alone = [r for r in records if r["op"] == "add_noise_"]
    lines += ["", f"{where(kernels_alone)}; {versions}; commit {ours['commit']}, {ours['date'][:10]}."]
    return "\n".join(lines)


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
