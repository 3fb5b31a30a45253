"""What counting bytes and instructions lets one expect of a GPU, beside what its records say: python -m bench.expected RECORDS

A pass waits for memory, or for its instructions to be issued, whichever takes longer: its share of a device copy's rate is

    at most 1, and else  issued / copied,  issued = multiprocessors * 4 * 32 * clock / instructions an element,
                                           copied = elements a second of a device copy of the same tensors, as measured

where the kernels reach 0.85 to 0.95 of what can be issued. Instructions are those of the loop on sm_90, by bench/sass.py
(bench/results/sass-nvcc-13.0-spec2.jsonl); the clock is that of the record.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from . import forms, variants
from .cases import MEZO
from .kernels import FLOOR, OURS
from .step import GRAPH

# (op, dtype of the weights, terms) -> instructions an element; of Adam with its states in the same dtype
COUNTED = {
    ("add_noise_", "bf16", 1): 25.78,
    ("add_noise_", "fp32", 1): 24.50,
    ("add_noise_", "fp16", 1): 25.78,
    ("add_noise_", "bf16", 2): 48.88,
    ("add_noise_", "fp32", 2): 47.88,
    ("signs", "bf16", 1): 6.22,
    ("signs", "fp32", 1): 4.91,
    ("out", "fp32", 1): 24.91,
    ("adam", "bf16", 1): 83.5,
    ("adam", "fp32", 1): 67.25,
}
# op -> suite, its floor, the candidate; of others suite forms
MEASURED = {"add_noise_": ("kernels", FLOOR["cuda"], OURS), "adam": ("variants", variants.FLOOR, variants.BASE)}
ISSUED = 0.85, 0.95  # of what can be issued
LANES = 4 * 32  # of a multiprocessor, a cycle
LARGE = 1 << 30


@dataclass(frozen=True)
class Expected:
    """``wanted``: the fields of the record; ``name``: its figure; ``low``, ``high``: between which it should lie, None where open."""

    what: str
    name: str
    low: float | None
    high: float | None
    wanted: dict = field(hash=False)


def of_kernels(records) -> list[Expected]:
    """By the instructions; of those cases whose floor was measured."""
    found = []
    for (op, dtype, terms), instructions in COUNTED.items():
        suite, floor, candidate = MEASURED.get(op, ("forms", forms.FLOOR, forms.OURS))
        case = {"suite": suite, "op": op, "dtype": dtype, "n": LARGE, "terms": terms}
        if (copy := one(records, case | {"candidate": floor})) and (issued := in_a_second(copy["machine"], instructions)):
            shares = [issued * part / (copy["n"] / copy["median_s"]) for part in ISSUED]
            low, high = min(0.95, shares[0]), min(1.02, shares[1])
            what = f"{op}, {dtype}, {terms} term{'s' * (terms > 1)}: share of a copy"
            found.append(Expected(what, "share_of_floor", low, high, case | {"candidate": candidate}))
    return found


def in_a_second(machine: dict, instructions: float) -> float | None:
    """Elements whose instructions the card can issue; None where the record has no clock."""
    clock, count = (machine.get(name) for name in ("clocks_sm", "multiprocessors"))
    return count * LANES * float(clock.split()[0]) * 1e6 / instructions if clock and count else None


def others() -> list[Expected]:
    """By bytes, and a model of what surrounds the passes."""
    kernel = {"suite": "kernels", "op": "add_noise_", "candidate": OURS, "n": LARGE, "terms": 1}
    step = {"suite": "step", "candidate": MEZO, "batch": 16, "dtype": "bf16"}
    replay = {"suite": "replay", "model": "OPT-1.3B", "dtype": "fp32", "candidate": "zokern, 256 a pass"}
    return [
        Expected("add_noise_, bf16: over torch.normal + add_", "speedup", 3, 5, kernel | {"dtype": "bf16"}),
        Expected("add_noise_, fp32: over torch.normal + add_", "speedup", 2, 4, kernel | {"dtype": "fp32"}),
        Expected(
            *("OPT-125M's tensors, bf16: until the call returns, s", "host_s", None, 45e-6),
            kernel | {"op": "add_noise_, OPT-125M", "dtype": "bf16", "n": None},
        ),
        *(
            Expected(
                f"{model}, 16 x 400: the optimizer's part, over the published one's", "optimizer_speedup", 5.3, 7, step | {"model": model}
            )
            for model in ("OPT-1.3B", "OPT-13B")
        ),
        Expected("OPT-13B, 16 x 400: a step in forwards", "step_in_forwards", 2.1, 2.2, step | {"model": "OPT-13B"}),
        Expected(
            *("OPT-125M, 16 x 400: a captured step in captured forwards", "step_in_forwards", None, 2.3),
            step | {"model": "OPT-125M", "candidate": GRAPH},
        ),
        Expected("OPT-13B: peak memory over two forwards', bytes", "peak_over_forwards_bytes", None, 1 << 20, step | {"model": "OPT-13B"}),
        Expected("OPT-13B: kernels and copies a pass", "launches_per_pass", 1, 2, step | {"model": "OPT-13B"}),
        Expected("replay of OPT-1.3B, fp32, 256 steps a pass: steps a second", "steps_per_second", 200, None, replay),
    ]


def one(records, wanted) -> dict | None:
    """The newest that has these fields; a field that is None is not looked at."""
    asked = {name: value for name, value in wanted.items() if value is not None}
    return next((r for r in reversed(records) if not r.get("error") and asked.items() <= r.items()), None)


def table(records) -> list[str]:
    """Lines of Markdown."""
    lines = ["| what | expected | came |", "|---|---|---|"]
    for each in of_kernels(records) + others():
        if (found := one(records, each.wanted)) and found.get(each.name) is not None:
            came = found[each.name]
            low, high = (each.low is None or came >= each.low), (each.high is None or came <= each.high)
            verdict = "" if low and high else ", below" if not low else ", above"
            lines.append(f"| {each.what} | {between(each)} | {came:.4g}{verdict} |")
    return lines


def between(each: Expected) -> str:
    if each.low is None:
        return f"{each.high:.3g} or less"
    return f"{each.low:.3g} or more" if each.high is None else f"{each.low:.3g} to {each.high:.3g}"


def main(path) -> None:
    records = [json.loads(line) for line in Path(path).read_text().splitlines()] if Path(path).exists() else []
    print("\n".join(table(records)))


if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(__doc__)
