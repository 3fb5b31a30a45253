"""zokern._cuda as nvcc compiles it, over a runtime that executes the PTX of each launch (machine.py) on this process's memory."""

import ctypes
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

from .machine import kernels_in
from .memory import Memory

ROOT = Path(__file__).parents[2]
# As in setup.py, but to PTX alone.
FLAGS = "-std=c++17 -O3 --fmad=false -Xcompiler -fPIC,-fvisibility=hidden -gencode arch=compute_90,code=compute_90"
ON_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_void_p
)


def find_nvcc():
    """Where setup.py looks for it, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [*(f"{home}/bin/nvcc" for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def build(nvcc, folder):
    """Compiles csrc into a module and PTX in this folder, once for all processes that share it."""
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "_cuda.so").exists():
            headers = ["-isystem", sysconfig.get_path("include"), "-isystem", Path(torch.__file__).parent / "include"]  # with pybind11's
            names = ['-DZOKERN_CUDA_VERSION=""', '-DZOKERN_CUDA_ARCHITECTURES="PTX"']
            compile_with = [nvcc, *FLAGS.split(), "-c"]
            commands = [[*compile_with, "--keep", source] for source in sorted((ROOT / "csrc/cuda").glob("*.cu"))]
            commands.append([*compile_with, *headers, *names, ROOT / "csrc/bind/cuda_module.cpp"])
            commands.append([nvcc, "-std=c++17", "-Xcompiler", "-fPIC", "-c", Path(__file__).with_name("fake_runtime.cpp")])
            run(folder, commands)
            # -Bsymbolic: or what a torch for CUDA has loaded would be called, not the stand-in.
            run(folder, [[nvcc, "-shared", "-cudart", "none", "-Xlinker", "-Bsymbolic", *folder.glob("*.o"), "-o", "unfinished.so"]])
            (folder / "unfinished.so").rename(folder / "_cuda.so")


def run(folder, commands):
    """All at once."""
    running = [subprocess.Popen(c, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    for process in running:
        said, _ = process.communicate()
        assert not process.returncode, f"{process.args}\n{said}"


class Runtime:
    """What ``zokern.kernels.cuda._cuda`` is to be.

    Attributes:
        kernels: {name: Kernel}, all that were compiled.
        launches: (name, device, stream) of every launch.
        executes: whether launches are executed, and not only recorded.
        refuse: the error with which launches fail, 0 where they do not.
    """

    def __init__(self, folder):
        spec = importlib.util.spec_from_file_location("_cuda", folder / "_cuda.so")
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.library = ctypes.CDLL(str(folder / "_cuda.so"))
        self.kernels = {name: kernel for path in folder.glob("*.ptx") for name, kernel in kernels_in(path.read_text()).items()}
        self._on_launch = ON_LAUNCH(self.on_launch)
        self.library.fake_on_launch(self._on_launch)
        self.begin()

    def begin(self):
        self.memory, self.launches, self.executes, self.refuse, self.failure = Memory(), [], True, 0, None

    def on_launch(self, name, blocks, threads, arguments, device, stream):
        kernel = self.kernels[name.decode()]
        self.launches.append((kernel.name, device, stream))
        if self.executes and not self.refuse:
            try:
                values = [ctypes.string_at(arguments[k], parameter.size) for k, parameter in enumerate(kernel.parameters)]
                kernel.run(self.memory, blocks, threads, values)
            except BaseException as failure:  # which no C code may see
                self.failure = failure
                return 1
        return self.refuse

    def __getattr__(self, name):
        found = getattr(self.module, name)
        return found if not callable(found) else lambda *arguments: self.call(found, *arguments)

    def call(self, function, *arguments):
        try:
            function(*arguments)
        except RuntimeError:
            failure, self.failure = self.failure, None
            if failure is None:
                raise
            raise failure from None
