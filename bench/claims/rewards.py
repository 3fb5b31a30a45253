"""docs/rewards.md: what zokern evolve gains, and what the noise costs it."""

from statistics import mean, stdev

from .claim import on, power

claim = on("docs/rewards.md")


@claim(
    "every parameter in float32, {population} mirrored members, {rows} prompts an iteration, sigma {sigma}, lr {lr}: the mean reward on "
    "{held_out} held-out rows rose from {before:.3f} to {after:.3f} (standard deviation of three seeds {deviation:.3f})",
    "rewards-smollm2.jsonl",
)
def rewards(runs):
    one, after = runs[0], [r["after"]["reward"] for r in runs]
    settings = {name: one[name] for name in ("population", "rows", "held_out")} | {name: power(one[name]) for name in ("sigma", "lr")}
    return settings | {"before": mean(r["before"]["reward"] for r in runs), "after": mean(after), "deviation": stdev(after)}


@claim(
    "in an iteration of {members} members took {seconds:.2f} s on two cores, {times:.0f} times less than the published way (seed, "
    "`torch.randn` for each tensor and add, three times a member) in the same run, and {share:.1f} % of what the members took to write "
    "{rows} completions of {new} tokens each; in a run with four tokens each, {share_of_four:.1f} %",
    "populations-epyc-2cpu.jsonl",
)
def passes_of_a_population(records):
    long, short = (records.one(candidate="zokern.EvolutionStrategies", new=new) for new in (16, 4))
    figures = {name: long[name] for name in ("members", "rows", "new")} | {"seconds": long["median_s"], "times": long["speedup"]}
    return figures | {"share": 100 * long["share_of_generation"], "share_of_four": 100 * short["share_of_generation"]}
