"""Counts what the GPU will execute: compiles the Triton kernels for sm_80, sm_90 and sm_100, which needs no GPU, disassembles
them, and counts every instruction of the steady-state loop (whole blocks, 16-byte accesses) per element of theta.

    python bench/sass.py --arch 90 --dtype bf16 --terms 1 2
    python bench/sass.py --json sass.jsonl

A count is the whole body of the loop over blocks divided by the elements that a thread handles in one turn, addressing,
uniform datapath and branch included. With terms = n the loop over terms is nested in it: `each term` is its body, `each block` the rest.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # it would replace the compiler, and is read when triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout need not be installed

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zokern.kernels.triton import accumulate

DTYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
SIGNATURE = {
    "spans": "*i64",
    "keys": "*i32",
    "coefficients": "*fp32",
    "decay": "*fp32",
    "terms": "i32",
    "groups": "i32",
    "one": "i32",
}
# Opcode -> the pipe that issues it, first match wins. A move by IMAD or HFMA2 is a move that ptxas put on the FMA pipe.
PIPES = {
    "move": r"MOV|IMAD\.MOV|HFMA2|CS2R",
    "fma": r"FFMA|FMUL|FADD",
    "imad.wide": r"IMAD\.WIDE",
    "imad": r"IMAD",
    "convert": r"I2F|F2F|HADD2\.F32|F2I",
    "uniform": r"U[A-Z]|R2UR|S2UR",
    "memory": r"LD|ST|ATOM|RED|BAR",
    "control": r"BRA|CALL|JMP|BSSY|BSYNC|EXIT|RET|WARPSYNC|NOP",
    "alu": r"LOP3|IADD|VIADD|SHF|LEA|PRMT|SEL|ISETP|PLOP3|FSEL|FSETP|IABS|POPC|LOP|SGXT|BMSK|P2R|R2P|MUFU",
}


def compile_kernel(arch: int, dtype: str, terms: str, decay: bool):
    """The kernel as ``add_noise_`` launches it."""
    constants = {
        "DTYPE": DTYPES[dtype],
        "TERMS": 0 if terms == "n" else int(terms),
        "DECAY": decay,
        "BLOCK": accumulate.BLOCK,
        "SLOW": accumulate.SLOW,
    }
    source = ASTSource(accumulate.add_noise_kernel, {**SIGNATURE, **dict.fromkeys(constants, "constexpr")}, constants)
    options = {"num_warps": accumulate.WARPS, "enable_fp_fusion": False}
    with redirect_stdout(StringIO()):  # Triton prints the whole PTX when ptxas refuses it
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def run_tool(name: str, *arguments: str) -> str:
    """Runs a tool of Triton's wheel."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def disassemble(cubin: bytes) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """Instructions in order; label -> index of the instruction after it; resource -> amount (REG, STACK, SHARED, LOCAL)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = run_tool("nvdisasm", "-c", file.name)
        usage = run_tool("cuobjdump", "-res-usage", file.name)
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*(?:/\*[0-9a-f]+\*/)\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    return instructions, labels, {name: int(n) for name, n in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}


def opcode(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def loops(instructions: list[str], labels: dict[str, int]) -> list[range]:
    """Each backward jump closes a loop; shortest first."""
    found = []
    for n, instruction in enumerate(instructions):
        target = re.search(r"\b(?:BRA|CALL|JMP).*`\((\.L_\w+)\)", instruction)
        if target and labels.get(target[1], n + 1) < n:  # a jump to itself is the padding after EXIT
            found.append(range(labels[target[1]], n + 1))
    return sorted(found, key=len)


def count(instructions: list[str]) -> dict[str, int]:
    pipes = Counter()
    for instruction in instructions:
        name = opcode(instruction)
        pipes[next((pipe for pipe, pattern in PIPES.items() if re.match(pattern, name)), "other")] += 1
    return {pipe: pipes[pipe] for pipe in (*PIPES, "other") if pipe != "other" or pipes[pipe]}


def measure(arch: int, dtype: str, terms: str, decay: bool) -> dict:
    """One line of the table."""
    kernel = compile_kernel(arch, dtype, terms, decay)
    instructions, labels, usage = disassemble(kernel.asm["cubin"])
    every = loops(instructions, labels)
    wide = [loop for loop in every if any("STG.E.128" in instructions[n] for n in loop)]
    if not wide:
        raise RuntimeError("no loop stores 16 bytes at a time: the vectorised path is lost")
    steady = wide[0]
    nested = [loop for loop in every if steady.start <= loop.start and loop.stop < steady.stop]
    if len(nested) != (terms == "n"):
        raise RuntimeError(f"{len(nested)} loops inside the loop over blocks: count by hand")
    inner = [instructions[n] for loop in nested for n in loop]
    outer = [instructions[n] for n in steady if not any(n in loop for loop in nested)]
    elements = accumulate.BLOCK // (32 * accumulate.WARPS)
    return {
        "op": "add_noise_",
        "arch": arch,
        "dtype": dtype,
        "terms": terms,
        "decay": decay,
        "elements_per_thread": elements,
        "loop": len(outer),
        "loop_per_term": len(inner),
        "per_element": len(outer) / elements,
        "per_element_and_term": len(inner) / elements,
        "pipes": count(outer),
        "pipes_per_term": count(inner),
        "accesses": dict(Counter(opcode(i) for i in outer + inner if re.match(r"(LD|ST)[GSL]", opcode(i)))),
        "registers": usage["REG"],
        "spills": sum(bool(re.match("LDL|STL", opcode(i))) for i in instructions),
        "stack_bytes": usage["STACK"],
        "shared_bytes": kernel.metadata.shared,
        "convert_layouts": kernel.asm["ttgir"].count("ttg.convert_layout"),
        "triton": triton.__version__,
    }


def table(lines: list[dict]) -> str:
    pipes = list(PIPES)
    head = "arch dtype terms decay count loop /element".split() + [*pipes, "other"] + "regs spills cvt smem accesses".split()
    rows = [head]
    for line in lines:
        name = [f"sm_{line['arch']}", line["dtype"], line["terms"], "yes" if line["decay"] else "no"]
        tail = [str(line[key]) for key in ("registers", "spills", "convert_layouts", "shared_bytes")]
        tail += [", ".join(f"{n} {access}" for access, n in line["accesses"].items())]
        parts = [("each block", "loop", "per_element", "pipes")]
        if line["terms"] == "n":
            parts.append(("each term", "loop_per_term", "per_element_and_term", "pipes_per_term"))
        for what, loop, each, by_pipe in parts:
            per_pipe = [f"{line[by_pipe].get(pipe, 0) / line['elements_per_thread']:.2f}" for pipe in (*pipes, "other")]
            rows.append([*name, what, str(line[loop]), f"{line[each]:.2f}", *per_pipe, *tail])
            name, tail = [""] * 4, [""] * 5
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=[80, 90, 100], help="compute capabilities (80 90 100)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--terms", nargs="+", choices=["1", "2", "n"], default=["1", "2", "n"], help="n: the loop for any number")
    parser.add_argument("--decay", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--json", type=Path, help="append one JSON line a kernel to this file")
    arguments = parser.parse_args()

    lines, failures = [], []
    for arch in arguments.arch:
        for dtype, terms, decay in ((d, t, c) for d in arguments.dtype for t in arguments.terms for c in arguments.decay):
            try:
                lines.append(measure(arch, dtype, terms, decay == "yes"))
            except Exception as error:
                said = str(error).strip().splitlines() or [type(error).__name__]
                reason = next((line for line in said if "fatal" in line), said[0])
                failures.append(f"triton {triton.__version__} gives no count for sm_{arch} {dtype} terms={terms} decay={decay}: {reason}")
    elements = accumulate.BLOCK // (32 * accumulate.WARPS)
    print(f"triton {triton.__version__}; a block is {accumulate.BLOCK} elements, {elements} a thread; columns by pipe are per element")
    if lines:
        print(table(lines))
    print(*failures, sep="\n", end="\n" if failures else "")
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
