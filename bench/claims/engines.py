"""docs/engines.md: what perturbing costs inside vLLM's workers, and a run there beside one in transformers."""

from .claim import on

claim = on("docs/engines.md")
OURS, PUBLISHED, PLAIN = "zokern on vLLM", "as published, on vLLM", "zokern on transformers"


@claim(
    "to a point and back took {point:.2f} s in float32 and {point16:.2f} s in bfloat16, {times:.0f} and {times16:.0f} times less than the "
    "published way; the update of 30 members {update:.2f} s and {update16:.2f} s, {updates:.0f} and {updates16:.0f} times less. After "
    "{count} perturbations {changed:.1%} of the elements in bfloat16 and {changed32:.1%} in float32 were others than before by the "
    "published way, and none by ours",
    "engines-smollm2.jsonl",
)
def passes(records):
    figures = {}
    for dtype, mark in (("fp32", ""), ("bf16", "16")):
        of = records.of(dtype=dtype)
        ours, theirs = (of.one(op="a point and back", candidate=name) for name in (OURS, PUBLISHED))
        figures |= {f"point{mark}": ours["median_s"], f"times{mark}": theirs["median_s"] / ours["median_s"]}
        ours, theirs = (of.one(op="update of 30 members", candidate=name) for name in (OURS, PUBLISHED))
        figures |= {f"update{mark}": ours["median_s"], f"updates{mark}": theirs["median_s"] / ours["median_s"]}
        assert of.one(op="drift", candidate=OURS)["changed"] == 0
    changed = {dtype: records.one(dtype=dtype, op="drift", candidate=PUBLISHED)["changed"] for dtype in ("bf16", "fp32")}
    return figures | {"changed": changed["bf16"], "changed32": changed["fp32"], "count": records[0]["drift"]}


@claim(
    "{members} members that answer {rows} prompts with {new} tokens at most wrote {ours:.0f} tokens a second on vLLM, in float32, and "
    "{plain:.0f} on transformers, in bfloat16 {ours16:.0f} and {plain16:.0f}; {share:.1%} and {share16:.1%} of the iteration on vLLM was "
    "in passes over the weights, {theirs:.0%} and {theirs16:.0%} by the published way",
    "engines-smollm2.jsonl",
)
def iteration(records):
    figures = {name: records[0][name] for name in ("members", "rows", "new")}
    for dtype, mark in (("fp32", ""), ("bf16", "16")):
        ours, plain, theirs = (records.one(dtype=dtype, op="iteration", candidate=name) for name in (OURS, PLAIN, PUBLISHED))
        figures |= {f"ours{mark}": ours["tokens_per_second"], f"plain{mark}": plain["tokens_per_second"]}
        figures |= {f"share{mark}": ours["share_moving"], f"theirs{mark}": theirs["share_moving"]}
    return figures
