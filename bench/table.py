"""Records as tables of at most 120 columns: one line a case."""

import math
import textwrap

from . import budgets, finetuned, forms, kernels, memory, modes, offload, replay, resident, rounding, runs, step, trainer
from .cases import FULL, LEAN
from .runs import by_case

NOTES = {
    "kernels": """\
In nanoseconds an element, zokern's with its quartiles. of floor: the time of {floor} over zokern's.
torch: z = torch.normal(0, 1, size); theta.add_(z, alpha=c). MeZO: p.data = p.data + s * z * eps.
x: how many times faster zokern is.""",
    "forms": """\
In nanoseconds an element. of floor: the time of mul_, or of copy_ to out, over zokern's.
plain: in place, normals, one piece of memory, as many elements. x: how many times faster than torch's way.""",
    "step": """\
z: zokern, p: as published. 2f: two forwards. own: the step less two forwards; x: p over z; defer: z's, defer=True.
fwds: the step in units of one forward; graph: both in CUDA graphs; SGD, Adam: by backpropagation.
+MB: peak memory over that of the two forwards. launches: kernels and copies of one pass over the weights, z / p.""",
    "memory": """\
Peak GB of a step, weights included: measured by the GPU's allocator, or counted: the sizes of the tensors alive.
In brackets: the papers' figures. z+MB: zokern's peak over that of two forwards. lean: one with tasks.lean_loss.""",
    "replay": """\
Steps a second, K steps a pass; R=K: K steps of three passes in place, by one replay_, to the bits of training;
L=K: K steps from their log, by Trajectory.replay; torch: torch.normal and add_ for each tensor, step by step.""",
    "trainer": """\
A step in milliseconds with its quartiles, of Trainer and of a plain loop in turns; over: what Trainer takes more.""",
    "offload": """\
GB: the most memory of its own that the process held, less its libraries'; all ended with the same weights, bit for bit.""",
    "drift": """\
Steps: rms distance of the weights from where they began, in units of eps = 1e-3; 0: no bit differs.
Updates: the part that reaches the weights, or their copy (standard error), rounded as the mode does by default.
Random weights: N(0, 0.02^2).""",
}
NOTES_OF_MODES = {
    "step": """\
A step in milliseconds, perturbed in place; the others' over that.""",
    "memory": """\
MB of the peak over that of two forwards, by mode, and of the model's largest part. VmHWM: resident, as Linux counts it.""",
}


def text(records) -> str:
    if not records:
        return "no records"
    parts = [heading(records)]
    if without := [record for record in records if record.get("error")]:
        parts.append("without a result\n" + "\n".join(map(unmeasured, without)))
        records = [record for record in records if not record.get("error")]
    rows = {
        "kernels": of_kernels,
        "forms": of_forms,
        "step": of_steps,
        "memory": of_memory,
        "replay": of_replay,
        "trainer": of_trainer,
        "drift": of_drift,
        "offload": of_offload,
    }
    for suite, row in rows.items():
        cases = by_case([record for record in records if record["suite"] == suite and record["op"] != resident.OP])
        if cases:
            floor = next((name for case in cases for name in kernels.FLOOR.values() if name in case), "")
            parts.append(f"suite {suite}\n{aligned([row(case) for case in cases])}\n{NOTES[suite].format(floor=floor)}")
            parts[-1] += "".join(map(cycles, cases)) + "".join(map(late, cases)) + (fits(records) if suite == "memory" else "")
    for suite, row in {"step": of_step_by_mode, "memory": of_memory_by_mode}.items():
        if cases := [case for case in by_case([r for r in records if r["suite"] == suite]) if modes.STREAMED in case]:
            parts.append(f"suite {suite}, by mode\n{aligned([row(case) for case in cases])}\n{NOTES_OF_MODES[suite]}")
    by_rows = {
        "rounding": of_rounding,
        "optimizers": runs.of_optimizers,
        "convergence": runs.of_runs,
        "effective rank": runs.of_effective_rank,
        "methods": runs.of_methods,
        "populations": runs.of_populations,
        "rewards": runs.of_rewards,
        "variance": runs.of_variance,
        "anchors": runs.of_anchors,
        "budgets": budgets.rows,
        "finetuned": finetuned.rows,
        "variants": runs.of_variants,
        "parts": runs.of_parts,
        "peers": runs.of_peers,
    }
    for name, rows in by_rows.items():
        if found := rows(records):
            parts.append(f"{name}\n{aligned(found)}\n{runs.NOTES[name]}")
    return "\n\n".join(parts)


def heading(records) -> str:
    machine, versions, ours = records[0]["machine"], records[0]["versions"], records[0]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    work = " ".join(filter(None, (ours["backend"], ours["isa"])))
    lines = f"{machine.get('gpu', machine['cpu'])}, {machine['cores']} CPU cores, backend {work}", f"{named}, commit {ours['commit']}"
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 120))


def cycles(case) -> str:
    ours = case.get(kernels.OURS, {})
    if "clock_ghz" not in ours:
        return ""
    median, least, clock = (ours[field] for field in ("cycles_per_element", "cycles_per_element_min", "clock_ghz"))
    return f"\nin L2, one thread: {median:.2f} cycles an element (fastest rounds {least:.2f}); clock {clock:.2f} GHz, by a chain of imul"


def unmeasured(record) -> str:
    named = f"{record['suite']}, {record['op']}" + (f", {record['candidate']}" if record["candidate"] else "")
    return textwrap.fill(f"{named}: {record['error']}", 120, subsequent_indent="  ")


def late(case) -> str:
    """Whose GPU may have idled while it was timed."""
    lines = []
    for r in case.values():
        if r.get("late_rounds"):
            what = f"{r['candidate']}, {r['dtype']}, {size(r)}, terms {r['terms']}"
            lines.append(f"\nat most: {what}: the host was late in {r['late_rounds']} of {r['rounds']} rounds")
    return "".join(lines)


def of_kernels(case) -> dict[str, str]:
    ours, torch, literal = case[kernels.OURS], case[kernels.TORCH], case.get(kernels.LITERAL)
    others = {"triton": kernels.TRITON, "randn4x": kernels.RANDN4X, "randn": kernels.RANDN, "cuRAND": kernels.CURAND}
    return {
        "dtype": ours["dtype"],
        "terms": str(ours["terms"]),
        "n": size(ours),
        "threads": threads(ours),
        "zokern": f"{each(ours)} [{each(ours, 'q1_s')} {each(ours, 'q3_s')}]",
        "GB/s": f"{ours['gb_per_s']:.1f}",
        "of floor": f"{ours['share_of_floor']:.2f}",
        **{head: each(case[name]) if name in case else "" for head, name in others.items()},
        "torch": each(torch),
        "x": f"{ours['speedup']:.1f}",
        "MeZO": each(literal) if literal else "",
        "x ": f"{literal['median_s'] / ours['median_s']:.1f}" if literal else "",
        "foreach": each(case[kernels.FOREACH]) if kernels.FOREACH in case else "",
        "host us": f"{ours['host_s'] * 1e6:.0f}" if ours.get("host_s") else "",
    }


def of_forms(case) -> dict[str, str]:
    ours, plain = case[forms.OURS], case[forms.PLAIN]
    return {
        "form": ours["op"],
        "dtype": ours["dtype"],
        "terms": str(ours["terms"]),
        "n": size(ours),
        "threads": threads(ours),
        "zokern": f"{each(ours)} [{each(ours, 'q1_s')} {each(ours, 'q3_s')}]",
        "of floor": f"{ours['share_of_floor']:.2f}",
        "plain": each(plain),
        "plain of floor": f"{ours['plain_share_of_floor']:.2f}",
        "over plain": f"{ours['over_plain']:.2f}",
        "x": f"{ours['speedup']:.1f}",
    }


def each(record, field="median_s") -> str:
    """Nanoseconds an element, in three digits: a GPU takes about 0.001."""
    ns = record[field] * 1e9 / record["n"]
    return f"{ns:.3g}" if ns < 1000 else f"{ns:.0f}"


def threads(record) -> str:
    return "" if "gpu" in record["machine"] else str(record["threads"])


def size(record) -> str:
    if record["op"].startswith("add_noise_, "):
        return record["op"].removeprefix("add_noise_, ")
    return f"2^{record['n'].bit_length() - 1}" + (" in L2" if record["op"].endswith("L2") else "")


def of_steps(case) -> dict[str, str]:
    ours, published, forwards = (case[name] for name in (modes.OURS, step.PUBLISHED, step.FORWARDS))

    def both(field, shown):
        return " / ".join("-" if record[field] is None else shown(record[field]) for record in (ours, published))

    return {
        "model": ours["model"],
        "dtype": ours["dtype"],
        "tokens": f"{ours['batch']}x{ours['tokens']}",
        "threads": threads(ours),
        "2f ms": f"{forwards['median_s'] * 1e3:.1f}",
        "own ms z / p": both("optimizer_s", lambda s: f"{s * 1e3:.1f}"),
        "defer": f"{case[step.DEFERRED]['optimizer_s'] * 1e3:.1f}" if step.DEFERRED in case else "",
        "x": f"{ours['optimizer_speedup'] or math.nan:.1f}",
        "fwds z / p": both("step_in_forwards", lambda x: f"{x:.2f}"),
        **{head: f"{case[name]['step_in_forwards']:.2f}" if name in case else "" for head, name in OTHERS.items()},
        "+MB z / p": both("peak_over_forwards_bytes", lambda b: f"{b / 1e6:.0f}"),
        "launches": both("launches_per_pass", str),
    }


def of_step_by_mode(case) -> dict[str, str]:
    ours = case[modes.OURS]
    return {
        "model": ours["model"],
        "dtype": ours["dtype"],
        "tokens": f"{ours['batch']}x{ours['tokens']}",
        "threads": threads(ours),
        "in place ms": f"{ours['median_s'] * 1e3:.1f}",
        **{short: f"{case[name]['median_s'] / ours['median_s']:.2f}" for short, name in SHORT.items() if name in case},
    }


def of_memory_by_mode(case) -> dict[str, str]:
    ours = case[modes.OURS]

    def megabytes(size):
        return f"{size / 1e6:.3f}" if size is not None else ""

    return {
        "model": ours["model"],
        "dtype": ours["dtype"],
        "tokens": f"{ours['batch']}x{ours['tokens']}",
        "how": ours["op"],
        "weights": megabytes(ours["weights_bytes"]),
        "largest part": megabytes(ours.get("largest_part_bytes")),
        "in place": megabytes(ours["peak_over_forwards_bytes"]),
        **{short: megabytes(case[name]["peak_over_forwards_bytes"]) for short, name in SHORT.items() if name in case},
    }


SHORT = {"streamed": modes.STREAMED, "copied": modes.COPIED, "copied own": modes.OWN}
OTHERS = {"graph": step.GRAPH, "SGD": step.SGD, "Adam": step.ADAM}


def of_memory(case) -> dict[str, str]:
    any_one = next(iter(case.values()))

    def gigabytes(name):
        if name not in case:
            return ""
        reported = case[name]["reported_gb"]
        return f"{case[name]['peak_bytes'] / 1e9:.2f}" + (f" [{reported:g}]" if reported else "")

    return {
        "model": any_one["model"],
        "dtype": any_one["dtype"],
        "tokens": f"{any_one['batch']}x{any_one['tokens']}",
        "how": any_one["op"],
        "weights": f"{any_one['weights_bytes'] / 1e9:.2f}",
        "2 fwds": gigabytes(step.FORWARDS),
        "zokern": gigabytes(modes.OURS),
        "z+MB": f"{case[modes.OURS]['peak_over_forwards_bytes'] / 1e6:.3f}" if modes.OURS in case else "",
        "published": gigabytes(step.PUBLISHED),
        "SGD": gigabytes(step.SGD),
        "Adam": gigabytes(step.ADAM),
        "1 fwd": gigabytes(FULL),
        "lean": gigabytes(LEAN),
    }


def fits(records) -> str:
    lines = []
    for room, by_method in memory.largest(records).items():
        one = next(iter(by_method.values()))
        models = (f"{name} {by_method[name]['model'] if name in by_method else 'none'}" for name in (step.FORWARDS, step.SGD, step.ADAM))
        lines.append(f"\nthe largest that fits in {room} GB ({one['dtype']}, 1x{one['tokens']}): {', '.join(models)}")
    return "".join(lines)


def column(name, record) -> str:
    if name == replay.LOGGED:
        return f"L={record['steps']}"
    return f"{'R' if name.startswith((replay.REPLAY, 'zokern.retrace')) else 'K'}={record['terms']}"


def of_replay(case) -> dict[str, str]:
    ours = {name: record for name, record in case.items() if name != replay.TORCH}
    first = next(iter(ours.values()))
    return {
        "model": first["model"],
        "dtype": first["dtype"],
        "steps": str(first["steps"]),
        "threads": str(first["threads"]),
        **{column(name, r): f"{r['steps_per_second']:.1f}" for name, r in ours.items()},
        "torch": f"{case[replay.TORCH]['steps_per_second']:.2f}",
    }


def of_trainer(case) -> dict[str, str]:
    ours, plain = case[trainer.TRAINER], case[trainer.PLAIN]

    def shown(record):
        median, low, high = (record[field] * 1e3 for field in ("median_s", "q1_s", "q3_s"))
        return f"{median:.1f} [{low:.1f} {high:.1f}]"

    return {
        "model": ours["model"],
        "dtype": ours["dtype"],
        "tokens": f"{ours['batch']}x{ours['tokens']}",
        "threads": threads(ours),
        "Trainer ms": shown(ours),
        "plain ms": shown(plain),
        "over": f"{100 * ours['over_plain']:+.1f} %",
    }


def of_drift(case) -> dict[str, str]:
    any_one = next(iter(case.values()))

    def shown(name):
        found = case.get(name)
        if not found:
            return ""
        if "delivered" in found:
            return f"{found['delivered']:.3f} ({found['delivered_se']:.3f})"
        return "0" if found.get("bit_equal") else f"{found['drift_over_eps']:.2g}"

    return {
        "what": any_one["op"],
        "weights": any_one.get("model") or "random",
        "dtype": any_one["dtype"],
        "times": str(any_one.get("updates") or any_one["steps"]),
        "in place": shown(modes.OURS),
        "streamed": shown(modes.STREAMED),
        "copied": shown(modes.COPIED),
        "copied own": shown(modes.OWN),
        "published": shown(step.PUBLISHED),
    }


def of_offload(case) -> dict[str, str]:
    any_one = next(iter(case.values()))
    row = {"what": any_one["op"], "model": any_one["model"], "weights GB": f"{any_one['weights_bytes'] / 1e9:.2f}"}
    row["part GB"] = f"{any_one['largest_part_bytes'] / 1e9:.2f}"
    for place, short in ((offload.MEMORY, "memory"), (offload.HOST, "host"), (offload.DISK, "file")):
        found = case[place]
        row[f"{short}: GB"] = f"{(found['peak_anonymous_bytes'] - found['libraries_bytes']) / 1e9:.2f}"
        row["steps/s" if short == "memory" else f"{short} steps/s"] = f"{found['steps_per_s']:.3f}"
    return row


def of_rounding(records) -> list[dict[str, str]]:
    rows = []
    for case in by_case([r for r in records if r["suite"] == "rounding"]):
        for how in (rounding.NEAREST, rounding.DITHERED):
            dtype = next(iter(case.values()))["dtype"]
            wide, own = (case[f"{how}, computed in {computing}"] for computing in ("fp32", dtype))
            rows.append(
                {
                    "dtype": dtype,
                    "eps": f"{own['eps']:g}",
                    "points": how,
                    "n": str(len(own["projected_grads"])),
                    "along z": f"{own['direction_kept']:.3f}",
                    "cosine": f"{own['direction_cosine']:.3f}",
                    "slope": f"{wide['slope']:.3f} ({wide['slope_se']:.3f})",
                    "cosine ": f"{wide['cosine']:.3f}",
                    "slope in 16 bits": f"{own['slope']:.3f} ({own['slope_se']:.3f})",
                    " cosine": f"{own['cosine']:.3f}",
                }
            )
    return rows


def aligned(rows) -> str:
    head = [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) for row in rows)]
    lines = [head] + [[row.get(name, "") for name in head] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)
