"""Compiles Triton kernels to PTX for a GPU that need not be there: one JSON line in, one out. A process of its own, because
TRITON_INTERPRET, read when triton is imported, replaces the compiler."""

import json
import sys
from importlib import import_module

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def main():
    out, sys.stdout = sys.stdout, sys.stderr  # Triton prints the whole PTX when ptxas refuses it
    for line in sys.stdin:
        wanted = json.loads(line)
        kernel = getattr(import_module(wanted["module"]), wanted["name"])
        constants = {name: triton.language.dtype(v["dtype"]) if isinstance(v, dict) else v for name, v in wanted["constants"].items()}
        source = ASTSource(kernel, {name: wanted["signature"].get(name, "constexpr") for name in kernel.arg_names}, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", wanted["arch"], 32), options=wanted["options"])
        print(json.dumps({"ptx": compiled.asm["ptx"], "shared": compiled.metadata.shared}), file=out, flush=True)


main()
