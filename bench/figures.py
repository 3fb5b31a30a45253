"""Pictures of records: each one of a suite, from records and nothing else."""

from pathlib import Path

from . import curves, kernels, modes, resident, runs, step
from .cases import Precision
from .table import by_case

BARS = {kernels.OURS: "C0", kernels.TORCH: "C1", kernels.LITERAL: "C3"}
STEPS = {
    modes.OURS: "C0",
    modes.STREAMED: "C5",
    modes.COPIED: "C6",
    step.DEFERRED: "C9",
    step.GRAPH: "C2",
    step.PUBLISHED: "C3",
    step.SGD: "C1",
    step.ADAM: "C4",
}
METHODS = {
    step.FORWARDS: "0.6",
    modes.OURS: "C0",
    modes.STREAMED: "C5",
    modes.COPIED: "C6",
    step.PUBLISHED: "C3",
    step.SGD: "C1",
    step.ADAM: "C4",
}
SAID = {  # names of records, as a reader is told them
    "mul_": "floor: theta.mul_(c), a read and a write",
    "copy": "floor: a copy, a read and a write",
    kernels.LITERAL: "MeZO's line, out of place",
}
MARKS = {"fp32": "o", "bf16": "s", "fp16": "^"}


def draw(records, folder: Path) -> list[Path]:
    """Every picture that the records have the suites for. -> the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    pictures = {"noise": ("kernels", noise), "share": ("kernels", share), "step": ("step", steps), "memory": ("memory", peaks)}
    for name, (suite, picture) in pictures.items():
        if mine := [r for r in records if r["suite"] == suite]:
            drawn.append(folder / f"{name}.png")
            picture(mine).savefig(drawn[-1], dpi=150)
    for name, problem in {"least-squares": "least squares", "digits": "digits", "minilm": "MiniLM, SST-2"}.items():
        if any(op == problem for op, _ in runs.by_method(records)):
            drawn.append(folder / f"{name}.png")
            curves.curves(records, problem).savefig(drawn[-1], dpi=150)
    if any(op == Precision.problem for op, _ in runs.by_method(records)):
        drawn.append(folder / "sixteen-bits.png")
        curves.curves(records, Precision.problem, "linear", "loss of held-out rows").savefig(drawn[-1], dpi=150)
    if mine := [r for r in records if r["suite"] == "rewards"]:
        drawn.append(folder / "rewards.png")
        curves.rewards(mine).savefig(drawn[-1], dpi=150)
    for op in sorted({r["op"] for r in records if r["suite"] == "accuracy"}):
        if mine := [r for r in records if r["suite"] == "accuracy" and r["op"] == op and r.get("searched") is False]:
            drawn.append(folder / f"accuracy-{op.lower().replace(', ', '-').replace(' ', '-')}.png")
            curves.accuracy(mine).savefig(drawn[-1], dpi=150)
    if runs.by_alpha(records):
        drawn.append(folder / "effective-rank.png")
        curves.effective_rank(records).savefig(drawn[-1], dpi=150)
    return drawn


def largest(records) -> list[dict]:
    """The cases of one term on the largest tensor, one a dtype."""
    mine = [r for r in records if r["suite"] == "kernels" and r["terms"] == 1 and r["op"] == "add_noise_"]
    n = max(r["n"] for r in mine)
    return by_case([r for r in mine if r["n"] == n])


def noise(records):
    """Nanoseconds an element of each way to add noise, by dtype, over the floor that any pass in place has."""
    cases = largest(records)
    figure, axes = sheet((8, 3.6), xlabel="nanoseconds an element: less is better")
    for row, case in enumerate(reversed(cases)):
        for k, (name, color) in enumerate((name, color) for name, color in BARS.items() if name in case):
            value = case[name]["ns_per_element"]
            axes.barh(row + 0.25 - 0.25 * k, value, 0.23, color=color, label=SAID.get(name, name) if not row else None)
            axes.annotate(f" {value:.2g}", (value, row + 0.25 - 0.25 * k), va="center", fontsize="small")
        floor = next(case[name] for name in kernels.FLOOR.values() if name in case)
        axes.vlines(
            floor["ns_per_element"], row - 0.4, row + 0.4, color="0.3", linestyle=":", label=None if row else SAID[floor["candidate"]]
        )
    axes.set_yticks(range(len(cases)), [case[kernels.OURS]["dtype"] for case in reversed(cases)])
    axes.margins(x=0.15)
    return titled(figure, axes, f"theta += c z on {cases[0][kernels.OURS]['n']:,} elements", records)


def share(records):
    """The floor's time over that of one fused pass, by size and dtype."""
    figure, axes = sheet((8, 4.2), xlabel="elements of a tensor", xscale="log", ylabel="time of the floor / time of the pass")
    cases = by_case([r for r in records if r["op"] == "add_noise_" and r["terms"] == 1])
    for name, color in ((kernels.OURS, "C0"), (kernels.TRITON, "C2"), (kernels.RANDN4X, "C4"), (kernels.TORCH, "C1")):
        for dtype, mark in MARKS.items():
            points = sorted((c[name]["n"], c[name]["share_of_floor"]) for c in cases if name in c and c[name]["dtype"] == dtype)
            if points:
                axes.plot(*zip(*points), color=color, marker=mark, label=f"{name}, {dtype}")
    floor = next(name for case in cases for name in kernels.FLOOR.values() if name in case)
    axes.axhline(1, color="0.3", linestyle=":", label=SAID[floor])
    axes.set_ylim(bottom=0)
    return titled(figure, axes, "theta += c z in one pass", records)


def steps(records):
    """A step in units of one forward pass."""
    cases = by_case(records)
    figure, axes = sheet((8, 1.6 + 1.2 * len(cases)), xlabel="time of a step, in forward passes: less is better")
    bars(axes, cases, STEPS, lambda r: r["step_in_forwards"], "{:.2f}")
    axes.axvline(2, color="0.3", linestyle=":", label="two forward passes, without an optimizer")
    return titled(figure, axes, "a step", records)


def peaks(records):
    """Peak memory, and what the papers report."""
    cases = [case for case in by_case(records) if METHODS.keys() & case.keys() and next(iter(case.values()))["op"] != resident.OP]
    figure, axes = sheet((8, 1.2 + 0.7 * len(cases)), xlabel="peak memory of a step, GB (log scale)", xscale="log")
    bars(axes, cases, METHODS, lambda r: r["peak_bytes"] / 1e9, "{:.3g}")
    bars(axes, cases, METHODS, lambda r: r["reported_gb"], point=True)
    return titled(figure, axes, "peak memory", records)


def bars(axes, cases, colors, value, how=None, point=False):
    """One group a case, one bar with its value (or one point) a candidate, in the order of the colors."""
    seen = set()
    for row, case in enumerate(reversed(cases)):
        names = [name for name in colors if name in case and value(case[name]) is not None]
        high = 0.8 / max(1, len(names))
        for k, name in enumerate(names):
            at = row + 0.4 - high * (k + 0.5)
            if point:
                axes.plot(value(case[name]), at, "kx", label=None if "x" in seen else "as the papers report")
                seen.add("x")
            else:
                axes.barh(at, value(case[name]), 0.9 * high, color=colors[name], label=None if name in seen else name)
                axes.annotate(f" {how.format(value(case[name]))}", (value(case[name]), at), va="center", fontsize="small")
                seen.add(name)
    axes.set_yticks(range(len(cases)), [label(case) for case in reversed(cases)], fontsize="small")
    axes.margins(x=0.12)


def label(case) -> str:
    one = next(iter(case.values()))
    how = f", {one['op']}" if one["suite"] == "memory" else "" if "gpu" in one["machine"] else f", threads: {one['threads']}"
    return f"{one['model']}, {one['dtype']}\n{one['batch']}x{one['tokens']}{how}"


def sheet(size, **settings):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot(**settings)


def titled(figure, axes, title, records):
    figure.suptitle(f"{title}, {where(records)}", fontsize="medium")
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(fontsize="small", loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def where(records) -> str:
    ours = next((r for r in records if r["candidate"] in (kernels.OURS, modes.OURS)), records[0])
    machine = ours["machine"]
    threads = f"threads: {ours['threads']}" if ours["threads"] and len({r["threads"] for r in records}) == 1 else ""
    return ", ".join(filter(None, (machine.get("gpu", machine["cpu"]), threads, f"{ours['backend']} {ours['isa'] or ''}".strip())))
