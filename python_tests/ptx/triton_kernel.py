"""A Triton kernel that is launched as any other, but compiled to PTX by triton_server.py and executed by machine.py."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from .machine import kernels_in

TYPES = {torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8"}
ROOT = Path(__file__).parents[2]


class Compiler:
    def __init__(self, folder, arch):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(folder)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        command = [sys.executable, Path(__file__).with_name("triton_server.py")]
        self.server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.arch, self.made = arch, {}

    def kernel(self, **wanted):
        line = json.dumps(wanted | {"arch": self.arch})
        if line not in self.made:
            print(line, file=self.server.stdin, flush=True)
            answer = json.loads(self.server.stdout.readline())
            assert not answer["shared"], "threads that share memory are not executed"
            (self.made[line],) = kernels_in(answer["ptx"]).values()
        return self.made[line]

    def close(self):
        self.server.stdin.close()
        self.server.wait()


class TritonKernel:
    """Arguments by position are read at run time, those by name when it is compiled."""

    def __init__(self, function, compiler, memory):
        self.function, self.compiler, self.memory = function, compiler, memory

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, enable_fp_fusion, **constants):
            names = [name for name in inspect.signature(self.function).parameters if name not in constants]
            kernel = self.compiler.kernel(
                module=self.function.__module__,
                name=self.function.__name__,
                signature={
                    name: TYPES[a.dtype] if isinstance(a, torch.Tensor) else "i32" for name, a in zip(names, arguments, strict=True)
                },
                constants={name: v if isinstance(v, int) else {"dtype": str(v)} for name, v in constants.items()},
                options={"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion},
            )
            values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
            values += [0] * (len(kernel.parameters) - len(values))  # Triton's own, for memory that our kernels do not use
            each = [value.to_bytes(p.size, "little") for value, p in zip(values, kernel.parameters)]
            kernel.run(self.memory, grid[0], 32 * num_warps, each)

        return launch
