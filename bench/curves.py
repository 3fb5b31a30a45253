"""Pictures of suite ``convergence``: losses against queries, and what follows the effective rank."""

import statistics

from .cases import IN_16_BITS, MEZO, SGD, SVRG
from .effective_rank import GD
from .runs import by_alpha, by_method, slow_down

COLORS = {MEZO: "C3", SVRG: "C0", SGD: "C1"} | dict(zip(IN_16_BITS, ("0.3", "C3", "C1", "C0", "C2", "C5")))


def curves(records, problem, scale="log", loss="training loss"):
    """Median over the seeds, and between the least and the most of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(xscale=scale, yscale=scale, xlabel="queries: losses of one example")
    groups = {method: runs for (op, method), runs in by_method(records).items() if op == problem}
    above = any(r["optimum"] is not None for runs in groups.values() for r in runs)
    axes.set_ylabel(f"{loss}, above the optimum" if above else loss)
    for method, runs in groups.items():
        along = [[(q, y - (r["optimum"] or 0)) for q, y in r["curve"] if (q or scale == "linear") and y] for r in runs]
        queries = [q for q, _ in min(along, key=len)]  # the same for all seeds, but for those that have diverged
        losses = [[y for _, y in points] for points in zip(*along)]
        settings = ", ".join(f"{name} {value:g}" for name, value in runs[0]["settings"].items())
        axes.plot(queries, [statistics.median(each) for each in losses], color=COLORS[method], label=f"{method}\n{settings}")
        axes.fill_between(queries, [min(each) for each in losses], [max(each) for each in losses], color=COLORS[method], alpha=0.2)
    one = next(iter(groups.values()))[0]
    seeds = len(next(iter(groups.values())))
    figure.suptitle(
        f"{problem}: {one['n']:,} parameters, {one['examples']} examples, batch {one['batch']}, {seeds} seeds", fontsize="small"
    )
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def effective_rank(records):
    """The toy's figure: 1 / lr and the slow-down against the effective rank, and MeZO's losses in gradient descent's time."""
    from matplotlib.figure import Figure

    cases = list(by_alpha(records).values())
    ranks = [case[MEZO]["effective_rank"] for case in cases]
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(ranks, [1 / case[MEZO]["lr"] for case in cases], "o-", color=COLORS[MEZO], label="1 / best lr of MeZO")
    middle.plot(ranks, [slow_down(case) for case in cases], "o-", color=COLORS[MEZO], label="MeZO's steps / descent's")
    for axes in (left, middle):
        axes.plot(ranks, ranks, ":", color="0.3", label="effective rank")
        axes.set(xscale="log", yscale="log", xlabel="effective rank")
        axes.xaxis.set_minor_formatter(lambda value, place: "")
        axes.yaxis.set_minor_formatter(lambda value, place: "")
        axes.legend(fontsize="small")
    for case in cases:
        steps, losses = zip(*case[MEZO]["curve"])
        label = f"effective rank {case[MEZO]['effective_rank']:.1f}"
        right.plot([step / case[GD]["median_steps"] for step in steps], losses, label=label)
    right.set(xscale="symlog", yscale="log", xlabel="steps / descent's steps to the tolerance", ylabel="f")
    right.legend(fontsize="small")
    figure.suptitle(f"f(x) = x'Ax / 2 in {cases[0][MEZO]['n']} dimensions, to f = {cases[0][MEZO]['tolerance']:g}", fontsize="small")
    return figure


def rewards(records):
    """Mean reward on held-out rows by iteration, a line a seed, and of each population its mean and its best member."""
    from matplotlib.figure import Figure

    one = records[0]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="iteration", ylabel="reward")
    for i, r in enumerate(records):
        made = [entry for entry in r["iterations"] if entry.get("best") is not None]
        steps, color = [entry["step"] for entry in made], f"C{i}"
        axes.plot(*zip(*r["curve"]), "o-", color=color, label=f"held-out rows, seed {r['seed']}")
        axes.plot(steps, [entry["reward"] for entry in made], ":", color=color)
        axes.plot(steps, [entry["best"] for entry in made], color=color, alpha=0.3)
    axes.plot([], [], ":", color="0.3", label="mean of a population")
    axes.plot([], [], color="0.3", alpha=0.3, label="its best member")
    what = f"{one['population']} members, {one['rows']} rows each, sigma {one['sigma']:g}, lr {one['lr']:g}"
    figure.suptitle(f"{one['op']}: {one['n']:,} parameters, {what}", fontsize="small")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def accuracy(records):
    """Accuracy on test rows by queries: the mean over the seeds, and between the least and the most of them; a star where the mean of the
    validation losses is least. Left out are learning rates at which nothing was learnt."""
    from matplotlib.figure import Figure

    groups = {}
    for r in records:
        groups.setdefault((r["candidate"], r["queries"], r["settings"]["lr"]), []).append(r)
    one = records[0]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="queries: losses of one example, in thousands", ylabel="accuracy on test rows")
    axes.set_xscale("symlog", linthresh=1)
    groups = {named: runs for named, runs in groups.items() if any(r["best_at"] for r in runs)}
    methods = sorted({method for method, *_ in groups})
    longer: dict[str, int] = {}  # runs of a method that are drawn already
    for (method, _, lr), runs in sorted(groups.items(), reverse=True):
        color, style = f"C{methods.index(method)}", ("-", "--", ":")[min(2, longer.get(method, 0))]
        longer[method] = longer.get(method, 0) + 1
        points = [*zip(*(r["curve"] for r in runs))]
        queries = [each[0]["queries"] / 1e3 for each in points]
        found = [[p["test_accuracy"] for p in each] for each in points]
        means = [statistics.mean(each) for each in found]
        axes.plot(queries, means, style, color=color, label=f"{method}, lr {lr:g}, runs: {len(runs)}")
        axes.fill_between(queries, [min(each) for each in found], [max(each) for each in found], color=color, alpha=0.2)
        best = min(range(len(points)), key=lambda k: statistics.mean(p["validation_loss"] for p in points[k]))
        axes.plot(queries[best], means[best], "*", color=color, markersize=10)
    axes.axhline(statistics.mean(r["curve"][0]["test_accuracy"] for r in records), color="0.3", linestyle=":", label="zero-shot")
    rows = "{} training, {} validation, {} test rows".format(*one["rows"])
    figure.suptitle(f"{one['op']}: {one['n']:,} parameters, {rows}, {len({r['seed'] for r in records})} seeds", fontsize="small")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
