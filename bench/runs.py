"""Records brought together: the rows of tables, of runs with several seeds for one, and what pictures are drawn from."""

import statistics

from . import modes, parts, peers, variance
from .cases import MEZO
from .effective_rank import GD

NOTES = {
    "rounding": """\
Both points rounded to 16 bits, n directions z. Of the direction that is measured: its part along z, its cosine with z.
Of the projected gradients beside those of points that are not rounded: slope (standard error) and cosine, with losses
computed in float32, and in the weights' dtype.""",
    "optimizers": """\
A step whose losses cost nothing. x: how many times cheaper than the same rule with z in memory.
of floor: the time of mul_ over its. state: bytes of state kept between steps, over those of the weights.""",
    "convergence": """\
Final training loss, of a pretrained model that of held-out rows, + above the optimum where it is known, and accuracy on
held-out examples: mean (standard deviation) over the seeds. A query: the loss of one example.""",
    "methods": """\
Final loss (MiniLM: training rows; SmolLM2: held-out rows) and test accuracy: mean (standard deviation) over the seeds.""",
    "populations": """\
An iteration's passes over the weights, in seconds, beside what its members write. x: how many times cheaper than as published.""",
    "rewards": """\
Mean reward on held-out rows before the first iteration and after the last one: mean (standard deviation) over the seeds.""",
    "anchors": """\
What a run took off the training loss, and test accuracy: mean (standard deviation) over the seeds, at equal queries.""",
    "budgets": """\
Final loss of all training rows and test accuracy: mean (standard deviation) over the seeds.""",
    "finetuned": """\
Accuracy on held-out and test rows. Each log was replayed on the CPU, to the same bytes.""",
    "variants": """\
In milliseconds, dtype and terms behind the pass. x: how many times faster than the kernels as they are.""",
    "variance": """\
Rows whose noise is as large as the gradient of all; as many as an anchor of all with q = 2 needs to pay; what one leaves of V.""",
    "parts": """\
To second order: what a query of a step that moves this part alone lowers the loss by, at best, over that of every parameter.""",
    "effective rank": """\
Steps of MeZO and of gradient descent to the tolerance, each at the best learning rate of a grid; medians.""",
    "peers": """\
theirs/ours: the published step and zokern's; way: where ours perturbs. own ms: the step less its forward passes; x:
their ratio. +MB: peak over that of one forward, state included. drift: of random weights by steps with lr = 0, in eps.
state: bytes kept between steps, over those of the weights. Beside LOZO, which zokern has not, is MeZO.""",
}


def by_case(records) -> list[dict]:
    """[{candidate: record}], one a case."""
    cases = {}
    for record in records:
        terms = record["terms"] if record["suite"] != "replay" else None  # there the candidates differ in them
        named = (terms, *(record.get(field) for field in ("op", "model", "batch", "tokens", "dtype", "n", "threads", "eps")))
        cases.setdefault(named, {})[record["candidate"]] = record
    return list(cases.values())


def reported(records) -> list[dict]:
    """Those of suite ``convergence`` that are runs to be reported: not the search for settings, not the toy of the effective rank."""
    return [r for r in records if r["suite"] == "convergence" and r["op"] != "effective rank" and not r["searched"]]


def by_method(records) -> dict:
    """(problem, method) -> its runs, one a seed."""
    groups = {}
    for r in reported(records):
        groups.setdefault((r["op"], r["candidate"]), []).append(r)
    return groups


def by_alpha(records) -> dict:
    """alpha -> method -> the record of its best learning rate; only where both methods have one."""
    found = {}
    for r in records:
        if r["op"] == "effective rank" and r["best"]:
            found.setdefault(r["alpha"], {})[r["candidate"]] = r
    return {alpha: methods for alpha, methods in sorted(found.items()) if {MEZO, GD} <= set(methods)}


def of_runs(records) -> list[dict[str, str]]:
    rows = []
    for (problem, method), runs in by_method(records).items():
        one = runs[0]
        settings = ", ".join(f"{name} {value:g}" for name, value in one["settings"].items())
        losses = [r["final_loss"] for r in runs]
        above = one["optimum"] is not None and None not in losses
        if above:
            losses = [r["final_loss"] - r["optimum"] for r in runs]
        rows.append(
            {
                "problem": problem,
                "method": method,
                "settings": settings,
                "runs": str(len(runs)),
                "queries": f"{one['queries'] / 1e6:.2g}M",
                "steps": str(one["steps"]),
                "loss": spread(losses, "+{:.2g}" if above else "{:.4f}"),
                "accuracy": spread([r["test_accuracy"] for r in runs], "{:.3f}") if "test_accuracy" in one else "",
            }
        )
    return rows


def spread(values, shown) -> str:
    """Mean and standard deviation over the seeds, where there are several."""
    if None in values:
        return "diverged"
    deviation = f" ({shown.removeprefix('+').format(statistics.stdev(values))})" if len(values) > 1 else ""
    return shown.format(statistics.mean(values)) + deviation


def of_effective_rank(records) -> list[dict[str, str]]:
    return [
        {
            "alpha": f"{alpha:g}",
            "effective rank": f"{case[MEZO]['effective_rank']:.1f}",
            "lr, MeZO": f"{case[MEZO]['lr']:.4f}",
            "1/lr": f"{1 / case[MEZO]['lr']:.1f}",
            "steps": f"{case[MEZO]['median_steps']:.0f}",
            "lr, descent": f"{case[GD]['lr']:.2f}",
            "its steps": f"{case[GD]['median_steps']:.0f}",
            "slow-down": f"{slow_down(case):.1f}",
        }
        for alpha, case in by_alpha(records).items()
    ]


def slow_down(case) -> float:
    """MeZO's steps over gradient descent's, each with its best learning rate."""
    return case[MEZO]["median_steps"] / case[GD]["median_steps"]


def of_optimizers(records) -> list[dict[str, str]]:
    own = [r for r in records if r["suite"] == "optimizers" and r["candidate"] != "mul_"]
    return [
        {
            "optimizer": r["op"],
            "how": r["candidate"],
            "threads": str(r["threads"]),
            "ms a step": f"{r['step_s'] * 1e3:.1f}",
            "x": "" if r["speedup"] is None else f"{r['speedup']:.1f}",
            "of floor": f"{r['share_of_floor']:.2f}",
            "state": f"{r['state_bytes'] / r['weights_bytes']:.0f}",
        }
        for r in own
    ]


def of_methods(records) -> list[dict[str, str]]:
    groups = {}
    for r in records:
        if r["suite"] == "methods" and not r["searched"]:
            groups.setdefault((r["op"], r["candidate"]), []).append(r)
    return [
        {
            "problem": problem,
            "method": method,
            "lr": f"{runs[0]['settings']['lr']:g}",
            "runs": str(len(runs)),
            "forwards": str(runs[0]["forwards"]),
            "steps": str(runs[0]["steps"]),
            "loss": spread([r["final_loss"] for r in runs], "{:.3f}"),
            "accuracy": spread([r["test_accuracy"] for r in runs], "{:.3f}"),
        }
        for (problem, method), runs in groups.items()
    ]


def of_populations(records) -> list[dict[str, str]]:
    return [
        {
            "passes": r["candidate"],
            "model": r["model"],
            "dtype": r["dtype"],
            "members": str(r["members"]),
            "s": f"{r['median_s']:.3g}",
            "of generation": f"{r['share_of_generation']:.2%}",
            "x": f"{r['speedup']:.1f}",
        }
        for r in records
        if r["suite"] == "populations"
    ]


def of_rewards(records) -> list[dict[str, str]]:
    by_candidate = {}
    for r in records:
        if r["suite"] == "rewards":
            by_candidate.setdefault(r["candidate"], []).append(r)
    return [
        {
            "task": (one := runs[0])["op"],
            "by": one["candidate"],
            "runs": str(len(runs)),
            "iterations": str(one["steps"]),
            "members": str(one["population"]),
            "rows": str(one["rows"]),
            "before": spread([r["before"]["reward"] for r in runs], "{:.3f}"),
            "after": spread([r["after"]["reward"] for r in runs], "{:.3f}"),
        }
        for runs in by_candidate.values()
    ]


def of_anchors(records) -> list[dict[str, str]]:
    groups = {}
    for r in records:
        if r["suite"] == "anchors" and r["best"]:
            groups.setdefault(r["candidate"], []).append(r)
    return [
        {
            "variant": variant,
            "lr": f"{runs[0]['settings']['lr']:g}",
            "runs": str(len(runs)),
            "steps": f"{runs[0]['steps']:,}",
            "taken off": spread(taken_off(runs), "{:.4f}"),
            "over MeZO": over(runs, groups.get("MeZO, 64 rows")),
            "accuracy": spread([r["test_accuracy"] for r in runs], "{:.3f}"),
        }
        for variant, runs in groups.items()
    ]


def of_variants(records) -> list[dict[str, str]]:
    """The fastest first, kind of pass by kind."""
    found = [r for r in records if r["suite"] == "variants"]
    kinds = list(dict.fromkeys((r["op"], r["dtype"], r["terms"]) for r in found))
    found.sort(key=lambda r: (kinds.index((r["op"], r["dtype"], r["terms"])), r["median_s"]))
    return [
        {
            "pass": f"{r['op']}, {r['dtype']}, {r['terms']}",
            "compiled": r["candidate"],
            "ms": f"{r['median_s'] * 1e3:.3f}",
            "quartiles": f"{r['q1_s'] * 1e3:.3f} {r['q3_s'] * 1e3:.3f}",
            "of copy": f"{r['share_of_floor']:.3f}",
            "x": f"{r['speedup']:.3f}",
        }
        for r in found
    ]


def over(runs, others) -> str:
    """What the runs took off the loss over what the others did, in the mean."""
    found, beside = (taken_off(each or []) for each in (runs, others))
    return "" if not beside or None in found + beside else f"{statistics.mean(found) / statistics.mean(beside):.2f}"


def taken_off(runs) -> list[float | None]:
    """What each run of suite ``anchors`` took off the loss of all training rows; None where it diverged."""
    return [None if r["final_loss"] is None else r["loss_before"] - r["final_loss"] for r in runs]


def of_variance(records) -> list[dict[str, str]]:
    return [
        {
            "problem": r["op"],
            "parameters": f"{r['n']:,}",
            "after": f"{r['steps']:,} steps of {r['batch']}" + f", {r['candidate']}" * (r["candidate"] != variance.MEZO),
            "|g|^2": f"{r['gradient_square']:.2g}",
            "V": f"{r['row_variance']:.2g}",
            "V / |g|^2": f"{r['noise_rows']:.0f}",
            "an anchor needs": f"{r['examples'] + r['batch']}",
            "V left": "" if r["changed_variance"] is None else f"{r['changed_variance'] / r['row_variance']:.2g}",
        }
        for r in records
        if r["suite"] == "variance"
    ]


def of_accuracy(records) -> list[dict[str, str]]:
    """By method, what runs of equal queries end with, and what they have after as many seconds as MeZO's take, by the seconds of a step
    that were measured in turns."""
    timed = {(r["op"], r["candidate"]): r for r in records if r["suite"] == "accuracy" and r.get("queries_a_call")}
    groups = {}
    for r in records:
        if r["suite"] == "accuracy" and r.get("searched") is False:
            groups.setdefault((r["op"], r["queries"], r["candidate"], r["settings"]["lr"]), []).append(r)
    rows = []
    for (problem, queries, method, lr), made in groups.items():
        one, time, mezo = made[0], timed.get((problem, method)), timed.get((problem, "MeZO"))
        row = {
            "problem": problem,
            "method": method,
            "lr": f"{lr:g}",
            "rows": str(one.get("batch", "")),
            "runs": str(len(made)),
            "queries": f"{queries:,}",
            "steps": f"{one['steps']:,}",
            "zero-shot": spread([r["curve"][0]["test_accuracy"] for r in made], "{:.3f}"),
            "loss": spread([r["validation_loss"] for r in made], "{:.3f}"),
            "accuracy": spread([r["test_accuracy"] for r in made], "{:.3f}"),
            **dict.fromkeys(("a query, ms", "seconds", "equal seconds", "GB"), ""),
        }
        if time and mezo:
            within = seconds_of(mezo, mezo["queries"]) / seconds_of(time, 1)
            row["a query, ms"] = f"{seconds_of(time, 1e3):.1f}"
            row["seconds"] = f"{seconds_of(time, one['queries_made']):.0f}"
            row["equal seconds"] = spread([best_within(r["curve"], within)["test_accuracy"] for r in made], "{:.3f}")
            row["GB"] = f"{time['peak_bytes'] / 1e9:.2f}"
        rows.append(row)
    return rows


def seconds_of(timed, queries) -> float:
    """Of so many queries, by a record of the time of a step."""
    return timed["median_s"] / timed["queries_a_call"] * queries


def best_within(curve, queries) -> dict:
    """The point of a curve with the least validation loss among the first so many queries."""
    seen = [point for point in curve if point["queries"] <= queries and point["validation_loss"] is not None]
    return min(seen, key=lambda point: point["validation_loss"])


def of_parts(records, batch=64) -> list[dict[str, str]]:
    """By time and part, and of all parameters together: |g|^2, V and T are sums."""
    times = {}
    for r in records:
        if r["suite"] == "parts":
            times.setdefault((r["op"], r["steps"]), []).append(r)
    rows = []
    for (_, steps), found in times.items():
        every = parts.together(found)
        for r in (*found, every):
            noise = f" ({r['trace_error']:.0f})" if "trace_error" in r else ""
            rows.append(
                {
                    "after": f"{steps} steps",
                    "part": r["candidate"],
                    "parameters": f"{r['n'] / 1e6:.2f}M",
                    "|g|^2": f"{r['gradient_square']:.2g}",
                    "V": f"{r['row_variance']:.2g}",
                    "T": f"{r['trace']:.0f}{noise}",
                    "lr": f"{parts.rate(r, batch):.0e}" if r["trace"] > 0 else "",
                    "a query": f"{parts.lowered(r, batch) / parts.lowered(every, batch):.2g}"
                    if min(r["trace"], every["trace"]) > 0
                    else "",
                }
            )
    return rows


def of_peers(records) -> list[dict[str, str]]:
    return [
        {
            "peer": ours["op"],
            "model": f"{ours['model']} {ours['dtype']}",
            "way": way(ours),
            "ms": either(theirs, ours, "median_s", 1e3),
            "own ms": either(theirs, ours, "optimizer_s", 1e3),
            "x": "-" if ours["optimizer_speedup"] is None else f"{ours['optimizer_speedup']:.1f}",
            "fwds": str(ours["forwards"]),
            "+MB": either(theirs, ours, "peak_over_forward_bytes", 1e-6),
            "drift": either(theirs, ours, "drift_over_eps"),
            "state": states(theirs, ours),
        }
        for theirs, ours in pairs(records)
    ]


def pairs(records) -> list[tuple[dict, dict]]:
    """Of suite ``peers``: (the published step's record, that of zokern's), one a way to perturb."""
    found = by_case([r for r in records if r["suite"] == "peers"])
    return [
        (case[peers.THEIRS], ours)
        for case in found
        if peers.THEIRS in case
        for name, ours in case.items()
        if name not in (peers.THEIRS, peers.FORWARD)
    ]


def way(ours) -> str:
    return "streamed" if ours["candidate"].endswith(modes.STREAMED.removeprefix(modes.OURS)) else "in place"


def either(theirs, ours, field, unit=1.0, between="/") -> str:
    return between.join(short(r[field] * unit) for r in (theirs, ours))


def short(x) -> str:
    """Two digits, all of those before the point, and of what is very small one."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.2g}" if abs(x) >= 1e-3 or not x else f"{x:.0e}"


def states(theirs, ours, between="/") -> str:
    """Bytes of state over those of the weights."""
    return between.join(f"{r['state_bytes'] / r['weights_bytes']:.2g}" for r in (theirs, ours))
