"""Counts what the GPU will execute: compiles the Triton or the CUDA kernels for sm_80, sm_90 and sm_100, which needs no GPU,
disassembles them, and counts every instruction of the steady-state loop (whole blocks, 16-byte accesses) per element of theta.

    python bench/sass.py --arch 90 --dtype bf16 --terms 1 2
    python bench/sass.py --backend cuda
    python bench/sass.py --rule adam --state bf16
    python bench/sass.py --passes
    python bench/sass.py --noise signs --out bf16 --pitched --stochastic
    python bench/sass.py --backend cuda --noise signs --out bf16
    python bench/sass.py --json sass.jsonl

A count is the whole body of the loop over blocks divided by the elements that a thread handles in one turn, addressing,
uniform datapath and branch included. With terms = n the loop over terms is nested in it: `each term` is its body, `each block` the rest.
--rule counts the kernels of an update instead. Where a root or a quotient needs more than the usual path, it is not counted; the CUDA
kernels for n terms hold the code of the mask too.
--passes counts the kernels of replay_: `each term` is then a value whose z is made, all that any value may ask for included.
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
from functools import cache
from io import StringIO
from itertools import product
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # it would replace the compiler, and is read when triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout need not be installed

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import nvcc
from zokern.kernels.passes import RULES as UPDATES
from zokern.kernels.passes import WINDOWED_ADAM
from zokern.kernels.spans import BLOCK
from zokern.kernels.triton import add_noise, replay, update

SOURCES = Path(__file__).resolve().parent.parent / "csrc/cuda"
CUDA_THREADS = 128  # of a block, kThreads in csrc/cuda/noise.hpp

DTYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
# As C++ compilers write them in the names of functions.
MANGLED = {"fp32": "f", "bf16": "13__nv_bfloat16", "fp16": "6__half"}
RULES = {**UPDATES, WINDOWED_ADAM.name: WINDOWED_ADAM}
MANGLED_RULES = {"sign": "4SignE", "momentum": "8MomentumE", "adam": "8AdamLikeILb0EEE", "amsgrad": "8AdamLikeILb1EEE"}
MANGLED_RULES |= {WINDOWED_ADAM.name: "12WindowedAdamE"}
POINTERS = {"spans": "*i64", "states": "*i64", "keys": "*i32", "rounding": "*i32", "instructions": "*u8"}
INTEGERS = ("terms", "n_keys", "n_instructions", "groups", "one")
MODULES = {"add_noise": add_noise, "replay": replay, "update": update}
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


def compile_triton(
    arch: int, name: str, dtype: str, terms: str, decay: bool, rule: str | None, state: str, signs: bool, pitched: bool, stochastic: bool
):  # fmt: skip
    """The kernel as ``add_noise_``, ``replay_`` or ``update_`` launches it, for tensors without masks. ``state``: the storage type of the
    states, or of what add_noise_ writes."""
    module = MODULES[name]
    kernel, constants = getattr(module, f"{name}_kernel"), {"DTYPE": DTYPES[dtype], "MASKED": False, "SLOW": module.SLOW}
    constants |= {"SIGNS": signs, "PITCHED": pitched}
    stored = {"OUT": DTYPES[state], "IN_PLACE": state == dtype}
    constants |= {} if name == "replay" else {"ROUND": stochastic and (dtype if rule else state) != "fp32"}
    constants |= {
        "add_noise": {"TERMS": 0 if terms == "n" else int(terms), "DECAY": decay, "BLOCK": BLOCK, **stored},
        "replay": {"BLOCK": BLOCK},
        "update": {"RULE": rule and RULES[rule].code, "STATE": DTYPES[state], "ONE_KEY": terms == "1", "DECAY": decay, "ROW": update.ROW},
    }[name]
    kind = lambda name: "constexpr" if name in constants else "i32" if name in INTEGERS else POINTERS.get(name, "*fp32")  # noqa: E731
    source = ASTSource(kernel, {name: kind(name) for name in kernel.arg_names}, constants)
    options = {"num_warps": module.WARPS, "enable_fp_fusion": False}
    with redirect_stdout(StringIO()):  # Triton prints the whole PTX when ptxas refuses it
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def mangled(name: str, dtype: str, terms: str, decay: bool, rule: str | None, state: str, signs: bool) -> str:
    """What only the name of one CUDA kernel matches. ``state``: the storage type of the states, or of what add_noise_ writes."""
    if name == "replay":
        return f"replay_kernelI{MANGLED[dtype]}Lb{int(signs)}ELb0E"
    second = r"S\w?_" if state == dtype != "fp32" else MANGLED[state]  # a name is written out once
    if name == "add_noise":
        return f"add_noise_kernelI{MANGLED[dtype]}{second}Lb{int(signs)}ELi{0 if terms == 'n' else terms}ELb{int(decay)}ELb0E"
    return rf"update_kernelI{MANGLED[dtype]}{second}NS_{MANGLED_RULES[rule]}Lb{int(terms == '1')}E"


def run_tool(name: str, *arguments: str) -> str:
    """Runs a tool of Triton's wheel."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


@cache
def compile_cuda(arch: int, name: str) -> tuple[bytes, str]:
    """The cubin of the kernels of one file of csrc/cuda, and nvcc's version."""
    if (found := nvcc.find()) is None:
        raise RuntimeError(nvcc.NONE)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        flags = ["-std=c++17", "-O3", "--fmad=false", f"-arch=sm_{arch}", "-cubin"]  # as in setup.py
        subprocess.run([found, *flags, SOURCES / f"{name}.cu", "-o", cubin], check=True, capture_output=True, text=True)
        said = subprocess.run([found, "--version"], check=True, capture_output=True, text=True).stdout
        return cubin.read_bytes(), re.search(r"release ([0-9.]+)", said)[1]


@cache
def built_cuda(arch: int, name: str) -> tuple[bytes, str]:
    """The same out of the installed zokern._cuda: the very code that a GPU of this architecture runs."""
    from zokern import _cuda

    with tempfile.TemporaryDirectory() as folder:
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        subprocess.run([tool, _cuda.__file__, "-xelf", f"sm_{arch}"], cwd=folder, capture_output=True, check=True)
        found = [path.read_bytes() for path in Path(folder).glob(f"*.sm_{arch}.cubin")]
    found = [cubin for cubin in found if f"{name}_kernel".encode() in cubin]
    if len(found) != 1:
        raise RuntimeError(f"zokern._cuda holds no code of {name} for sm_{arch}: count without --built")
    return found[0], _cuda.version


@cache
def tools_on(cubin: bytes) -> tuple[str, str]:
    """Disassembly and resource usage, as nvdisasm and cuobjdump print them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return run_tool("nvdisasm", "-c", file.name), run_tool("cuobjdump", "-res-usage", file.name)


def disassemble(cubin: bytes, name: str) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """Of the one function whose name matches: instructions in order; label -> index of the instruction after it; resource -> amount
    (REG, STACK, SHARED, LOCAL)."""
    text, usage = tools_on(cubin)
    sections = re.split(r"\n\s*\.section\s", text)
    (code,) = [section for section in sections if re.match(rf"\.text\.\w*{name}\w*,", section)]
    (used,) = re.findall(rf"Function \w*{name}\w*:\s*(.*)", usage)
    instructions, labels = [], {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*(?:/\*[0-9a-f]+\*/)\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    return instructions, labels, {name: int(n) for name, n in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", used)}


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


def measure(
    cuda, backend: str, arch: int, name: str, dtype: str, terms: str, decay: bool, rule=None, state: str = "fp32", signs: bool = False,
    pitched: bool = False, stochastic: bool = False,
) -> dict:  # fmt: skip
    """One line of the table. ``cuda``: where its code comes from, compile_cuda or built_cuda."""
    if backend == "triton":
        kernel = compile_triton(arch, name, dtype, terms, decay, rule, state, signs, pitched, stochastic)
        instructions, labels, usage = disassemble(kernel.asm["cubin"], f"{name}_kernel")
        elements = (BLOCK if rule is None else update.ROW) // (32 * MODULES[name].WARPS)
        about = {
            "shared_bytes": kernel.metadata.shared,
            "convert_layouts": kernel.asm["ttgir"].count("ttg.convert_layout"),
            "triton": triton.__version__,
        }
    else:
        cubin, version = cuda(arch, name)
        instructions, labels, usage = disassemble(cubin, mangled(name, dtype, terms, decay, rule, state, signs))
        elements = BLOCK // CUDA_THREADS if rule is None else 4 if dtype == state == "fp32" else 8
        about = {"shared_bytes": usage["SHARED"], "convert_layouts": 0, "nvcc": version}
    every = loops(instructions, labels)
    wide = [loop for loop in every if any("STG.E.128" in instructions[n] for n in loop)]
    if not wide:
        raise RuntimeError("no loop stores 16 bytes at a time: the vectorised path is lost")
    stores = lambda loop: sum("STG.E.128" in instructions[n] for n in loop)  # noqa: E731
    steady = max(wide, key=stores)  # a tile, and not what is left of one; the innermost of several
    nested = [loop for loop in every if steady.start <= loop.start and loop.stop < steady.stop]
    if len(nested) != (terms == "n"):
        raise RuntimeError(f"{len(nested)} loops inside the loop over blocks: count by hand")
    inner = [instructions[n] for loop in nested for n in loop]
    outer = [instructions[n] for n in steady if not any(n in loop for loop in nested)]
    return {
        "op": f"{name}_",
        "noise": "signs" if signs else "normals",
        **({"out": state} if name == "add_noise" else {}),
        **({"pitched": True} if pitched else {}),
        **({"rounding": "stochastic"} if stochastic else {}),
        **({} if rule is None else {"rule": rule, "state": state}),
        "backend": backend,
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
        **about,
    }


def table(lines: list[dict]) -> str:
    pipes = list(PIPES)
    head = "arch dtype terms decay count loop /element".split() + [*pipes, "other"] + "regs spills cvt smem accesses".split()
    rows = [head]
    for line in lines:
        dtype = " ".join(filter(None, (line.get("rule"), line.get("noise"), line["dtype"], line.get("state"), line.get("out"))))
        name = [f"sm_{line['arch']}", dtype, line["terms"], "yes" if line["decay"] else "no"]
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
    parser.add_argument("--backend", choices=["triton", "cuda"], default="triton")
    parser.add_argument("--arch", nargs="+", type=int, default=[80, 90, 100], help="compute capabilities (80 90 100)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--terms", nargs="+", choices=["1", "2", "n"], default=["1", "2", "n"], help="n: the loop for any number")
    parser.add_argument("--decay", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--built", action="store_true", help="count what zokern._cuda holds, instead of compiling csrc/cuda again")
    parser.add_argument("--json", type=Path, help="append one JSON line a kernel to this file")
    parser.add_argument("--rule", nargs="+", choices=RULES, default=[], help="count the kernels of update_: with decay, terms 1 and n")
    parser.add_argument("--passes", action="store_true", help="count the kernels of replay_")
    parser.add_argument("--noise", choices=["normals", "signs"], default="normals", help="what the kernels make")
    parser.add_argument("--out", choices=["bf16", "fp16"], help="count the kernels of add_noise_ that write so what they read in fp32")
    parser.add_argument("--pitched", action="store_true", help="count Triton's kernels for tensors of several lines")
    parser.add_argument("--stochastic", action="store_true", help="count Triton's kernels that round theta stochastically")
    parser.add_argument("--state", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"], help="storage of the rule's states")
    arguments = parser.parse_args()

    signs, dtypes = arguments.noise == "signs", ["fp32"] if arguments.out else arguments.dtype
    if arguments.backend == "cuda" and (arguments.pitched or arguments.stochastic or arguments.rule and signs):
        parser.error("--pitched, --stochastic and --noise signs of a --rule count kernels of Triton: leave --backend cuda away")
    given = product(dtypes, arguments.terms, [decay == "yes" for decay in arguments.decay])
    cases = [("add_noise", dtype, terms, decay, None, arguments.out or dtype, signs) for dtype, terms, decay in given]
    if arguments.backend == "cuda":  # more terms share a kernel with decay, and so do two of them with decay, or of signs
        cases = [case for case in cases if case[2:4] != ("2", True) and case[2:4] != ("n", False) and (case[2] != "2" or not signs)]
    if arguments.rule:
        terms = [terms for terms in arguments.terms if terms != "2"]
        cases = list(product(["update"], arguments.dtype, terms, [True], arguments.rule, arguments.state, [signs]))
        cases = [case for case in cases if RULES[case[4]].state or case[5] == "fp32"]
        cases = [case for case in cases if RULES[case[4]].of_key == 1 or case[2] == "n"]  # one kernel for any number of keys
    if arguments.passes:
        cases = list(product(["replay"], arguments.dtype, ["n"], [True], [None], ["fp32"], [signs]))
    lines, failures = [], []
    for arch, case in product(arguments.arch, cases):
        try:
            code, kind = built_cuda if arguments.built else compile_cuda, (arguments.pitched, arguments.stochastic)
            lines.append(measure(code, arguments.backend, arch, *case, *kind))
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            reason = next((line for line in said if "fatal" in line), said[0])
            failures.append(f"{arguments.backend} gives no count for sm_{arch} {' '.join(map(str, case))}: {reason}")
    if lines:
        compiler = f"triton {triton.__version__}" if arguments.backend == "triton" else f"nvcc {lines[0]['nvcc']}"
        print(f"{compiler}; columns by pipe are instructions an element; the first kernel takes {lines[0]['elements_per_thread']} a thread")
        print(table(lines))
    print(*failures, sep="\n", end="\n" if failures else "")
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
