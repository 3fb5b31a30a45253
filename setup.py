"""Builds zokern._cpu, and zokern._cuda where there is an nvcc, with ninja; pyproject.toml says the rest.

The compiler is $CXX, or what Python was built with. OpenMP is used where the compiler has it. nvcc is looked for in $CUDA_HOME,
$CUDA_PATH, PATH and /usr/local/cuda; no GPU, driver or Triton is needed. ZOKERN_CUDA=0 leaves zokern._cuda out, ZOKERN_CUDA=1 makes
its failure the build's.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# No contraction: every fma of the noise is written down, and no other may appear. (-Wno-*: false alarms of gcc 12's own intrinsics.
# NDEBUG: the assertions of Python's headers and pybind11's would name the folders that these lie in.)
FLAGS = (
    "-std=c++17 -O3 -DNDEBUG -fPIC -fvisibility=hidden -ffp-contract=off "
    "-Wall -Wextra -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized"
)
# One binary for all of Ampere and Ada, one for Hopper, and PTX that later GPUs compile when they first see it.
ARCHITECTURES = {"sm_80": "arch=compute_80,code=sm_80", "sm_90": "arch=compute_90,code=sm_90", "PTX": "arch=compute_90,code=compute_90"}
NVCC_FLAGS = "-std=c++17 -O3 --fmad=false --threads 0 -Xcompiler -fPIC,-fvisibility=hidden " + " ".join(
    f"-gencode {a}" for a in ARCHITECTURES.values()
)
# Without symbols (-s), among which nvcc has names that it makes up for each build: the same source is the same bytes.
LINK = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared -Wl,-s"


def compiler():
    for command in (os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"):
        if command and shutil.which(shlex.split(command)[0]):
            return command
    sys.exit("zokern needs a C++17 compiler: install g++ or clang++, or name one in CXX")


def openmp(cxx):
    """-fopenmp where it compiles and links, else nothing: one thread."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        probe = subprocess.run([*shlex.split(cxx), "-fopenmp", str(source), "-o", str(source.with_suffix(""))], capture_output=True)
    if probe.returncode:
        print("zokern: no OpenMP with this compiler, the CPU backend will use one thread")
    return "" if probe.returncode else "-fopenmp"


def nvcc():
    """(path, version) of an nvcc that compiles and links, or None."""
    wanted = os.environ.get("ZOKERN_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"ZOKERN_CUDA={wanted}: set 0 (leave CUDA out) or 1 (insist on it), or unset it")
    if wanted == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    named, usual = [os.path.join(h, "bin", "nvcc") for h in homes[:2] if h], os.path.join(homes[2], "bin", "nvcc")
    path = next(filter(None, map(shutil.which, [*named, "nvcc", usual])), None)
    why = "there is no nvcc in $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda"
    if path:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cu")
            source.write_text("__global__ void f() {}\nint main() { f<<<1, 1>>>(); return cudaGetLastError(); }\n")
            command = [path, *NVCC_FLAGS.split(), "-cudart", "static", str(source), "-o", str(source.with_suffix(""))]
            probe = subprocess.run(command, capture_output=True, text=True)
        if not probe.returncode:
            said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            return path, re.search(r"release ([0-9.]+)", said)[1]
        why = f"{path} fails: " + (probe.stderr.strip().splitlines() or ["no message"])[0]
    if wanted == "1":
        sys.exit(f"ZOKERN_CUDA=1, but {why}")
    print(f"zokern: without the CUDA backend, because {why}")
    return None


def ninja():
    try:
        from ninja import BIN_DIR

        return str(Path(BIN_DIR, "ninja"))
    except ImportError:
        return shutil.which("ninja") or sys.exit("zokern is built with ninja: pip install ninja")


class NinjaBuild(build_ext):
    """One build.ninja an extension: its translation units compile in parallel, and only those that changed."""

    def finalize_options(self):
        super().finalize_options()
        self.nvcc = nvcc()
        if self.nvcc is None:
            self.extensions = [extension for extension in self.extensions if extension is not CUDA]  # of each finalization anew

    def build_extension(self, ext):
        import pybind11

        folder, target = Path(self.build_temp, ext.name).resolve(), Path(self.get_ext_fullpath(ext.name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        cxx = compiler()
        includes = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
        if ext is CUDA:
            defines = f"-DZOKERN_CUDA_VERSION='\"{self.nvcc[1]}\"' -DZOKERN_CUDA_ARCHITECTURES='\"{' '.join(ARCHITECTURES)}\"'"
            options, link = defines, f"{self.nvcc[0]} -shared -Xlinker -s -cudart static $in -o $out"
        else:
            options = openmp(cxx)
            link = f"{cxx} {LINK} $in {options} -o $out"
        objects = {f"{Path(source).with_suffix('.o')}": source for source in ext.sources}
        lines = [
            "rule compile",
            f"  command = {cxx} {FLAGS} {options} {includes} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            *(
                []
                if self.nvcc is None
                else [
                    "rule cuda",
                    f"  command = {self.nvcc[0]} {NVCC_FLAGS} -MD -MF $out.d -c $in -o $out",
                    "  depfile = $out.d",
                    "  deps = gcc",
                ]
            ),
            "rule link",
            f"  command = {link}",
            *(f"build {o}: {'cuda' if source.endswith('.cu') else 'compile'} {ROOT / source}" for o, source in objects.items()),
            f"build {target}: link {' '.join(objects)}",
            "",
        ]
        (folder / "build.ninja").write_text("\n".join(lines))
        subprocess.run([ninja(), "-C", str(folder)], check=True)


SOURCES = ["csrc/bind/cpu_module.cpp", "csrc/cpu/threads.cpp", *(f"csrc/cpu/{isa}.cpp" for isa in ("scalar", "avx2", "avx512"))]

CPU = Extension("zokern._cpu", SOURCES)
CUDA = Extension("zokern._cuda", ["csrc/bind/cuda_module.cpp", *(f"csrc/cuda/{name}.cu" for name in ("add_noise", "replay", "update"))])

setup(ext_modules=[CPU, CUDA], cmdclass={"build_ext": NinjaBuild})
