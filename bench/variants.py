"""Suite ``variants``: the CUDA kernels, compiled with small edits of their source, in turns with the unchanged ones in one process."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import machinery, util
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch

import zokern
from zokern.kernels import backend_for, cuda
from zokern.kernels.passes import check_interface
from zokern.noise import spec

from . import nvcc, record
from .edits import BASE, ONLY_TIMED, VARIANTS, Variant, edited
from .launches import NUMBERS, rounding
from .models import DTYPES
from .oracle import CHECK, EPS, SLICE, Refused, check, part
from .timing import Device, interleave

CSRC = Path(__file__).resolve().parent.parent / "csrc"
# As in setup.py, for one architecture.
FLAGS = "-std=c++17 -O3 --fmad=false -Xcompiler -fPIC,-fvisibility=hidden"
COMPILED = ("cuda/add_noise.cu", "cuda/update.cu", "bind/cuda_module.cpp")  # for a variant, where its edits reach them
UNITS = (*COMPILED, "cuda/replay.cu")  # which is not timed
LONGEST, COUNT = 300, count()  # seconds that one compilation may take; of the modules that were loaded

FLOOR = "copy"


def included(unit: str, csrc: Path) -> set[str]:
    """A file of csrc, and all of ours that it includes."""
    found, left = set(), [csrc / unit]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [(path.parent / name).resolve() for name in re.findall(r'^#include "(.*)"', path.read_text(), re.M)]
    return {path.relative_to(csrc).as_posix() for path in found}


def within(values, call):
    """The same call; while it runs, names of modules have other ``values``: (module, name, value) of each."""

    def patched():
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
        for each in values:
            setattr(*each)
        try:
            call()
        finally:
            for each in before:
                setattr(*each)

    return patched


def missing(case=None) -> str:
    """Why nothing can be compiled here; "" where it can."""
    return "" if nvcc.find() else nvcc.NONE


class Compiler:
    """nvcc for one architecture, such as "90". RuntimeError: there is none, or it fails."""

    def __init__(self, architecture: str):
        self.nvcc = nvcc.find()
        if self.nvcc is None:
            raise RuntimeError(nvcc.NONE)
        version = re.search(r"release ([0-9.]+)", self.run("--version"))[1]
        names = [f'-DZOKERN_CUDA_VERSION="{version}"', f'-DZOKERN_CUDA_ARCHITECTURES="sm_{architecture}"']
        headers = ["-isystem", sysconfig.get_path("include"), "-isystem", Path(torch.__file__).parent / "include"]  # with pybind11's
        self.options = {".cu": ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"], ".cpp": names + headers}

    def run(self, *arguments) -> str:
        done = subprocess.run([self.nvcc, *arguments], capture_output=True, text=True, timeout=LONGEST)
        if done.returncode:
            raise RuntimeError(next((line for line in done.stderr.splitlines() if "error" in line), f"nvcc ended with {done.returncode}"))
        return done.stdout

    def compiled(self, unit: str, csrc: Path) -> Path:
        target = csrc / f"{Path(unit).stem}.o"
        self.run(*FLAGS.split(), *self.options[Path(unit).suffix], "-c", csrc / unit, "-o", target)
        return target

    def linked(self, objects, target: Path) -> Path:
        self.run("-shared", "-Xlinker", "-s", "-cudart", "static", *[future.result() for future in objects], "-o", target)
        return target


class Built(NamedTuple):
    """``units``: what was compiled for it. ``values``: (module, name, value) of all that is to be swapped in, its own module first."""

    units: set[str]
    values: list


def build(variants, folder: Path, compiler: Compiler) -> dict[str, Built | str]:
    """All below ``folder``, as many at a time as there are processors. -> {name: what was built, or why not}, the unchanged one first."""
    every, compiling, linking, found = (Variant(BASE, (), ""), *variants), {}, {}, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, variant in enumerate(every):
            csrc = shutil.copytree(CSRC, folder.resolve() / str(number))
            try:
                edited(Variant("what is timed alone", ONLY_TIMED, ""), csrc)
                files, values = edited(variant, csrc)
            except ValueError as error:
                found[variant.name] = record.reason(error)
                continue
            units = set(UNITS) if variant.name == BASE else {unit for unit in COMPILED if files & included(unit, csrc)}
            compiling |= {(variant.name, unit): pool.submit(compiler.compiled, unit, csrc) for unit in units}
            found[variant.name] = Built(units, values)
        for number, variant in enumerate(every):
            if not isinstance(found[variant.name], str):
                objects = [compiling.get((variant.name, unit), compiling[BASE, unit]) for unit in UNITS]
                linking[variant.name] = pool.submit(compiler.linked, objects, folder / str(number) / "_cuda.so")
    for name, future in linking.items():
        try:
            found[name].values.insert(0, (cuda, "_cuda", loaded(future.result())))
        except Exception as error:
            found[name] = record.reason(error)
    return found


def loaded(path: Path):
    """A module of its own each time: pybind11 keeps one for each name. The last part of a name is that in PyInit__cuda."""
    loader = machinery.ExtensionFileLoader(f"variants.{next(COUNT)}._cuda", str(path))
    module = util.module_from_spec(util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    check_interface(module)
    return module


@cache
def built(architecture: str, few: int | None) -> dict[str, Built | str]:
    """The first ``few`` of VARIANTS, once in a process; a module that is loaded needs its file no longer."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = build(VARIANTS[:few], Path(folder), Compiler(architecture))
    lost = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
    print(f"bench: {len(found) - len(lost)} variants built in {time.perf_counter() - begun:.0f} s", *lost, sep="\n", file=sys.stderr)
    return found


@dataclass(frozen=True)
class Pass:
    """A pass over ``n`` elements: "add_noise_"; "signs", the same with those; "adam", with m and v in the dtype of theta. ``variants``: the
    first so many, None: all."""

    what: str
    dtype: str
    terms: int
    n: int
    budget: float
    variants: int | None = None


def cases(device, quick=False, dtypes=None) -> list[Pass]:
    """The most telling first; where there is no GPU one alone, which builds and loads."""
    n, budget, few = (1 << 16, 0.05, 2) if quick else (1 << 30, 2.5, None)
    kinds = (("add_noise_", "bf16", 1), ("add_noise_", "bf16", 2), ("adam", "bf16", 1), ("add_noise_", "fp32", 1))
    kinds += (("add_noise_", "fp32", 2), ("signs", "bf16", 1), ("adam", "fp32", 1))
    return [Pass(*kind, n, budget, few) for kind in kinds if not dtypes or kind[1] in dtypes][: None if device.type == "cuda" else 1]


def measure(case: Pass, device) -> list[dict]:
    """Build all, check each, then time. -> records, one a candidate.

    Raises:
        RuntimeError, Refused: the unchanged kernels cannot be built or used, or are wrong.
    """
    on_gpu = device.type == "cuda"
    ready = built("".join(map(str, torch.cuda.get_device_capability(device))) if on_gpu else "90", case.variants)
    if isinstance(ready[BASE], str):
        raise RuntimeError(f"the unchanged kernels are not built: {ready[BASE]}")
    lost = {name: why for name, why in ready.items() if isinstance(why, str)}
    if not on_gpu:
        modules = {id(of.values[0][2].add_noise_) for name, of in ready.items() if name not in lost}
        print(f"bench: no GPU, nothing is timed: {len(modules)} modules are loaded side by side", file=sys.stderr)
        return []
    if backend_for(device) is not cuda:
        raise RuntimeError(f"backend {backend_for(device).__name__} is in use: build zokern with nvcc, and force no other")
    theta = torch.randn(case.n, dtype=DTYPES[case.dtype], device=device).mul_(0.02)
    tensors = [theta, *(torch.zeros_like(theta) for _ in "mv" if case.what == "adam")]
    before, scratch, right, calls = [t.clone() for t in tensors], torch.empty_like(tensors[0]), None, {}
    for name, of in ready.items():
        if name in lost or of.units and COMPILED[case.what == "adam"] not in of.units:  # as the base
            continue
        try:
            for t, old in zip(tensors, before):
                t.copy_(old)
            calls[name] = within(of.values, a_pass(case, tensors))
            checked(case, tensors, calls[name])
            right = right or [t.clone() for t in tensors]
            if not all(map(torch.equal, tensors, right)):
                raise Refused("some element differs from that of the unchanged kernels")
        except Exception as error:
            if name == BASE:
                raise
            calls.pop(name, None)
            lost[name] = record.reason(error)
    del before, right
    calls[FLOOR], timer = lambda: [scratch.copy_(t) for t in tensors], Device()
    samples, predicted = interleave(calls, timer, case.budget), {variant.name: variant.predicted for variant in VARIANTS}

    def describe(name):
        seconds, counted = samples[name].median, 2 * sum(t.nbytes for t in tensors)
        fields = {"suite": "variants", "op": case.what, "dtype": case.dtype, "n": case.n, "terms": case.terms}
        fields |= {"timer": timer.name, "ns_per_element": seconds / case.n * 1e9, "gb_per_s": counted / seconds * 1e-9}
        return fields | record.backend(device, name != FLOOR) | {"predicted": predicted.get(name)}

    failed = [record.failed("variants", case, why, device, name) for name, why in lost.items()]
    return record.lines(device, samples, FLOOR, BASE, describe) + failed


def terms_of(case):
    purpose = spec.SIGNS if case.what == "signs" else spec.PERTURBATION
    return [(zokern.NoiseKey.of(CHECK.seed, step, purpose), EPS * (1 + step / 4)) for step in range(case.terms)]


def a_pass(case, tensors, first=0):
    """A call with a layout of its own, whose spans are cut at the first time. ``first``: the number of the first element."""
    layout, terms = zokern.Layout(tensors[:1], spans=[(first,)]), terms_of(case)
    if case.what != "adam":
        return lambda: zokern.ops.add_noise_(layout, terms)
    key, moments = rounding(0) if case.dtype == "bf16" else None, [[t] for t in tensors[1:]]
    return lambda: zokern.ops.update_(layout, "adam", [(CHECK, 1.0)], NUMBERS, moments, state_rounding=key)


def checked(case, tensors, call):
    """Runs ``call`` once. Refused: it has done something else than the NumPy oracle."""
    if case.what != "adam":
        return check(tensors[0], 0, terms_of(case), call)
    parts = {start: [part(t, start).clone() for t in tensors] for start in (0, case.n // 2 - 7, case.n - SLICE)}
    call()
    for start, mine in parts.items():
        with zokern.use_backend("reference"):
            a_pass(case, mine, start)()
        if not all(torch.equal(part(t, start), right) for t, right in zip(tensors, mine)):
            raise Refused(f"theta, m or v of some of elements {start} to {start + SLICE - 1} differs from the oracle's")
