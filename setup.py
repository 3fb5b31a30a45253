"""Builds zokern._cpu with ninja; pyproject.toml says the rest.

The compiler is $CXX, or what Python was built with. OpenMP is used where the compiler has it. No nvcc, GPU or Triton is needed.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# No contraction: every fma of the noise is written down, and no other may appear. (-Wno-*: false alarms of gcc 12's own intrinsics.)
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized"
LINK = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"


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


def ninja():
    try:
        from ninja import BIN_DIR

        return str(Path(BIN_DIR, "ninja"))
    except ImportError:
        return shutil.which("ninja") or sys.exit("zokern is built with ninja: pip install ninja")


class NinjaBuild(build_ext):
    """One build.ninja an extension: its translation units compile in parallel, and only those that changed."""

    def build_extension(self, ext):
        folder, target = Path(self.build_temp, ext.name).resolve(), Path(self.get_ext_fullpath(ext.name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        cxx = compiler()
        parallel = openmp(cxx)
        includes = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
        objects = [f"{Path(source).with_suffix('.o')}" for source in ext.sources]
        lines = [
            "rule compile",
            f"  command = {cxx} {FLAGS} {parallel} {includes} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {cxx} {LINK} $in {parallel} -o $out",
            *(f"build {o}: compile {ROOT / source}" for o, source in zip(objects, ext.sources)),
            f"build {target}: link {' '.join(objects)}",
            "",
        ]
        (folder / "build.ninja").write_text("\n".join(lines))
        subprocess.run([ninja(), "-C", str(folder)], check=True)


SOURCES = ["csrc/bind/cpu_module.cpp", "csrc/cpu/threads.cpp", *(f"csrc/cpu/isa_{isa}.cpp" for isa in ("scalar", "avx2", "avx512"))]

setup(ext_modules=[Extension("zokern._cpu", SOURCES)], cmdclass={"build_ext": NinjaBuild})
