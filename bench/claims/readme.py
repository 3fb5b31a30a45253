"""README.md: the three rows of its first screen."""

from .. import modes, step
from .claim import on

claim = on("README.md")


@claim(
    "| a step on SmolLM2-135M, bfloat16, 16 times 48 tokens | {ours:.2f} forward passes | {theirs:.2f} forward passes |",
    "modes-epyc-2cpu.jsonl",
)
def steps(records):
    found = records.of(suite="step", model="SmolLM2-135M", dtype="bf16", batch=16, tokens=48, threads=2)
    made = {name: found.one(candidate=name)["step_in_forwards"] for name in (modes.STREAMED, step.PUBLISHED)}
    return {"ours": made[modes.STREAMED], "theirs": made[step.PUBLISHED]}


@claim(
    "| memory for a step on OPT-13B, bfloat16, 4 times 400 tokens (Adam: {adam:.0f} GB) "
    "| {ours:.1f} GB, that of a forward pass | {theirs:.1f} GB |",
    "epyc-2cpu.jsonl",
)
def peaks(records):
    """zokern's step needs no more than its forward passes: suite ``memory`` measures it where there are kernels to run."""
    found = records.of(suite="memory", op="counted", model="OPT-13B", dtype="bf16", batch=4, tokens=400)
    run = records.of(suite="memory", op="run, counted", dtype="bf16").one(candidate=modes.OURS)
    assert run["peak_over_forwards_bytes"] <= 4  # a loss
    names = {"ours": step.FORWARDS, "theirs": step.PUBLISHED, "adam": step.ADAM}
    return {title: found.one(candidate=name)["peak_bytes"] / 1e9 for title, name in names.items()}


@claim("| bfloat16 weights after 1,000 steps with lr = 0 | {ours} | off by {theirs:.2f} eps |", "drift-smollm2.jsonl")
def drifts(records):
    found = records.of(suite="drift", dtype="bf16", model=None, steps=1000)
    return {
        "ours": "the same bits" if found.one(candidate=modes.STREAMED)["bit_equal"] else "off",
        "theirs": found.one(candidate=step.PUBLISHED)["drift_over_eps"],
    }
