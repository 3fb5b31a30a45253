"""docs/benchmarking.md: instructions that are counted for GPUs."""

from .claim import on, rows

claim = on("docs/benchmarking.md")
CUDA, TRITON = "sass-nvcc-13.0-spec2.jsonl", "sass-triton-3.7-spec2.jsonl"


def counted(records, dtype, terms="1", **kernel) -> float:
    """Instructions an element of add_noise_ on sm_90, or of each term where there may be any number of them."""
    kernel = {"noise": "normals", "out": dtype, "decay": False} | kernel
    found = records.one(op="add_noise_", arch=90, dtype=dtype, terms=terms, **kernel)
    return found["per_element_and_term" if terms == "n" else "per_element"]


@claim("| sm_90 | CUDA C++ | Triton |\n|---|---|---|\n{kernels}", CUDA, TRITON)
def instructions(cuda, triton):
    table = {}
    for dtype in ("bf16", "fp32"):
        for words, terms in (("one term", "1"), ("two terms", "2")):
            table[f"{dtype}, {words}"] = [counted(records, dtype, terms) for records in (cuda, triton)]
    # one kernel of CUDA C++ serves any number of terms with a decay and without
    table["any number of terms, each, bf16"] = [counted(cuda, "bf16", "n", decay=True), counted(triton, "bf16", "n")]
    table["fp32 written elsewhere in bf16, one term"] = [counted(records, "fp32", out="bf16") for records in (cuda, triton)]
    for dtype in ("bf16", "fp32"):
        table[f"signs, {dtype}, one term"] = [counted(records, dtype, noise="signs") for records in (cuda, triton)]
    return {"kernels": rows([name, *(f"{count:.1f}" for count in counts)] for name, counts in table.items())}


@claim("A key of AdaMeZO's window costs {each:.1f} in Triton's kernel in bf16", "sass-windowed-adam.jsonl")
def window(records):
    return {"each": records.one(backend="triton", arch=90, dtype="bf16", rule="windowed-adam")["per_element_and_term"]}


@claim(
    "momentum {momentum_fp32:.1f} with bf16 weights and fp32 state, {momentum_bf16:.1f} with bf16 state; Adam {adam_fp32:.1f} and "
    "{adam_bf16:.1f}.",
    CUDA,
)
def updates(records):
    kernels = records.of(op="update_", arch=90, dtype="bf16", terms="1", decay=True)
    cases = [(rule, state) for rule in ("momentum", "adam") for state in ("fp32", "bf16")]
    return {f"{rule}_{state}": kernels.one(rule=rule, state=state)["per_element"] for rule, state in cases}


@claim(
    "the same kernels took {ten} ([`sass-nvcc-13.0.jsonl`](../bench/results/sass-nvcc-13.0.jsonl)); with seven rounds alone {seven} "
    "([`sass-nvcc-13.0-rounds-7.jsonl`]",
    "sass-nvcc-13.0.jsonl",
    "sass-nvcc-13.0-rounds-7.jsonl",
)
def earlier_kernels(ten, seven):
    def listed(records):
        cases = [(dtype, terms) for dtype in ("bf16", "fp32") for terms in ("1", "2")]
        *first, last = (f"{counted(records, *case, noise=None, out=None):.1f}" for case in cases)
        return f"{', '.join(first)} and {last}"

    return {"ten": listed(ten), "seven": listed(seven)}
