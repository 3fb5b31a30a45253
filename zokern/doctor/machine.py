"""The processor, the GPUs, the compiler for them, and the environment variables that kernels obey; which kernels run here."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch

from ..errors import first_line
from ..kernels import NAMES, Backend
from ..kernels.source import INSTALL
from .finding import FAULT, MISSING, OK, Finding

OBEYED = ("ZOKERN_BACKEND", "ZOKERN_CPU_ISA", "TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
MODULES = {"cpu": "zokern._cpu", "cuda": "zokern._cuda", "triton": "triton"}  # what a backend imports


def machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processor", OK, f"{_processor()}; {cores} cores for this process; torch and zokern use {threads()}")
    driver = _driver()
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            of = torch.cuda.get_device_properties(i)
            yield Finding(f"GPU {i}", OK, f"{of.name}, {of.total_memory / 2**30:.0f} GiB, compute capability {of.major}.{of.minor}")
    else:
        yield Finding("GPU", MISSING, *_why_no_gpu(driver))
    if driver:
        yield Finding("NVIDIA driver", OK, driver)
    yield _nvcc()
    if given := [f"{name}={os.environ[name]}" for name in OBEYED if name in os.environ]:
        yield Finding("environment", OK, " ".join(given))


def threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)}"


def kernels() -> Iterator[Finding]:
    """The backends of ``zokern.backends()``, and whether a pass finds the one that is asked for."""
    available = []
    for name in NAMES:
        try:
            status = import_module(f"zokern.kernels.{name}").status()
        except Exception as error:  # of what another compiler, driver or library has broken
            yield Finding(name, FAULT, first_line(error), INSTALL)
            continue
        says, _, cure = status.rpartition(": ")
        if status.startswith("available"):
            available.append(name)
            of_cpu = f", {threads()} by OpenMP" if name == "cpu" and "OpenMP" not in status else ""
            yield Finding(name, OK, status + of_cpu)
        elif status.startswith("no "):  # GPU
            built = f"; {MODULES[name]} is {'built' if find_spec(MODULES[name]) else 'not built'}" if name == "cuda" else ""
            yield Finding(name, MISSING, status + built, _why_no_gpu(_driver())[1])
        else:
            broken = find_spec(MODULES[name]) and status.startswith(("not built", "not installed"))
            yield Finding(name, FAULT if broken or name == "cpu" else MISSING, says, cure)
    if (forced := os.environ.get("ZOKERN_BACKEND")) and forced not in available:
        says = f"ZOKERN_BACKEND={forced} asks for a backend that is not available"
        yield Finding("ZOKERN_BACKEND", FAULT, says, f"unset it, or set one of {', '.join(available)}")


def available() -> dict[str, Backend]:
    """The backends that run here, by name."""
    found: dict[str, Backend] = {}
    for name in NAMES:
        with suppress(Exception):  # which ``kernels`` tells
            module = import_module(f"zokern.kernels.{name}")
            if module.status().startswith("available"):
                found[name] = cast(Backend, module)
    return found


def interpreted(module: Backend) -> bool:
    """Whether it is Triton's interpreter, which is far slower than what it stands for."""
    return module.status().endswith("interpreter")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)", info.read_text(), re.M) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def _driver() -> str | None:
    """The version of NVIDIA's driver, as nvidia-smi says it."""
    said = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said and said.splitlines()[0]


def _why_no_gpu(driver: str | None) -> tuple[str, str]:
    """-> (what torch finds, the cure)."""
    site = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES"
    if torch.version.cuda is None and torch.version.hip is None:
        if driver:
            return f"one with NVIDIA's driver {driver}, which a torch for CPUs alone does not use", f"{site}cu126, or another CUDA's"
        if Path("/dev/kfd").exists():
            return "one of AMD's, which a torch for CPUs alone does not use", f"{site}rocm6.4, or another ROCm's"
    elif driver:
        return f"torch does not reach one with driver {driver}", f"a driver for CUDA {torch.version.cuda}, or a torch for an older CUDA"
    return "none that torch finds", ""


def _nvcc() -> Finding:
    """Where setup.py looks for it."""
    homes = [os.path.join(home, "bin", "nvcc") for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    path = next(filter(None, map(shutil.which, [*homes, "nvcc", "/usr/local/cuda/bin/nvcc"])), None)
    if path and (release := re.search(r"release ([0-9.]+)", _said(path, "--version") or "")):
        return Finding("nvcc", OK, f"{release[1]}, {path}")
    says = f"{path} fails" if path else "not in $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda; only building zokern._cuda needs it"
    return Finding("nvcc", MISSING, says, f"install the CUDA toolkit or set CUDA_HOME, then {INSTALL}")


def _said(*command: str) -> str | None:
    """What a program prints; None where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
