"""python -m bench.plot RECORDS: the picture and the table of README.md, from committed records and nothing else."""

import argparse
import json
import re
import sys
from pathlib import Path

from . import drift, kernels, step
from .record import ROOT
from .table import by_case

BEGIN, END = "<!-- from records: begin -->", "<!-- from records: end -->"
BARS = {kernels.OURS: "C0", kernels.TORCH: "C1", kernels.LITERAL: "C3"}


def largest(records) -> list[dict]:
    """The cases of one term on the largest tensor, one a dtype."""
    mine = [r for r in records if r["suite"] == "kernels" and r["terms"] == 1 and r["op"] == "add_noise_"]
    n = max(r["n"] for r in mine)
    return by_case([r for r in mine if r["n"] == n])


def draw(records, path: Path) -> None:
    """Nanoseconds an element of each way to add noise, by dtype, over the floor that any pass in place has."""
    from matplotlib.figure import Figure

    cases = largest(records)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="nanoseconds an element (log scale)", xscale="log")
    for row, case in enumerate(reversed(cases)):
        for k, (name, color) in enumerate(BARS.items()):
            value = case[name]["ns_per_element"]
            axes.barh(row + 0.25 - 0.25 * k, value, 0.23, color=color, label=name if not row else None)
            axes.annotate(f" {value:.2g}", (value, row + 0.25 - 0.25 * k), va="center", fontsize="small")
        floor = next(case[name] for name in kernels.FLOOR.values() if name in case)
        axes.vlines(floor["ns_per_element"], row - 0.4, row + 0.4, color="0.3", linestyle=":", label=None if row else floor["candidate"])
    axes.set_yticks(range(len(cases)), [case[kernels.OURS]["dtype"] for case in reversed(cases)])
    axes.margins(x=0.15)
    figure.suptitle(f"theta += c z on {cases[0][kernels.OURS]['n']:,} elements, {where(records)}", fontsize="small")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def where(records) -> str:
    ours = next(r for r in records if r["candidate"] == kernels.OURS)
    machine = ours["machine"]
    return f"{machine.get('gpu', machine['cpu'])}, {ours['threads']} threads, {ours['backend']} {ours['isa'] or ''}".strip()


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
        ours, theirs = case[step.OURS], case[step.PUBLISHED]
        lines.append(
            f"| MeZO step, {ours['model']}, {ours['dtype']}, {threads(ours)} | {ours['step_in_forwards']:.2f} forwards "
            f"| {theirs['step_in_forwards']:.2f} forwards | optimizer's part {ours['optimizer_speedup']:.0f}x cheaper |"
        )
    for case in by_case([r for r in records if r["suite"] == "drift"]):
        ours, theirs = case[drift.OURS], case[drift.PUBLISHED]
        lines.append(
            f"| drift of {ours['dtype']} weights in {ours['steps']} steps with lr = 0 | {ours['drift_over_eps']:.2g} eps "
            f"| {theirs['drift_over_eps']:.2g} eps | rounding, the same for both |"
        )
    ours = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in ours["versions"].items() if version and name in ("torch", "python"))
    lines += ["", f"{where(records)}; {versions}; commit {ours['commit']}, {ours['date'][:10]}."]
    return "\n".join(lines)


def threads(record) -> str:
    return "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose part between the marks is replaced")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "noise.png")
    arguments = parser.parse_args(argv)
    records = [json.loads(line) for line in arguments.records.read_text().splitlines()]
    text = arguments.readme.read_text()
    if BEGIN not in text or END not in text:
        print(f"bench.plot: {arguments.readme} lacks the marks {BEGIN} and {END}: add them where the table belongs", file=sys.stderr)
        return 2
    draw(records, arguments.figure)
    part = f"{BEGIN}\n{markdown(records)}\n{END}"
    arguments.readme.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: part, text, flags=re.S))
    return 0


if __name__ == "__main__":
    sys.exit(main())
