"""The core's clock, measured: a chain of multiplications, each of which needs the one before."""

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

LINKS = 1 << 20  # multiplications in a chain: about a millisecond
CYCLES = 3 * LINKS  # imul r64, r64 takes three cycles on Intel since Nehalem (2008) and on AMD since Zen (2017)

SOURCE = """
extern "C" unsigned long long chain(unsigned long long x, long links) {
    for (long i = 0; i < links; i += 8) {
        asm volatile("imul %0, %0\\n imul %0, %0\\n imul %0, %0\\n imul %0, %0\\n"
                     "imul %0, %0\\n imul %0, %0\\n imul %0, %0\\n imul %0, %0" : "+r"(x));
    }
    return x;
}
"""


@cache
def chain():
    """A call that takes CYCLES cycles, to be timed among the candidates; None where there is no x86-64 or no compiler."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    for command in (os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"):
        if command and shutil.which(shlex.split(command)[0]):
            break
    else:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "chain.cpp"), Path(folder, "chain.so")
        source.write_text(SOURCE)
        build = subprocess.run([*shlex.split(command), "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], capture_output=True)
        if build.returncode:
            return None
        function = ctypes.CDLL(str(library)).chain
    function.argtypes, function.restype = (ctypes.c_uint64, ctypes.c_long), ctypes.c_uint64
    return lambda: function(3, LINKS)
