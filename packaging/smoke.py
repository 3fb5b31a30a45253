"""What is installed works, tried with torch and NumPy alone. The environment's own Python runs it, from another folder than the source.

ZOKERN_CUDA=1: the CUDA kernels must be there; ZOKERN_CUDA=0: they must not.
"""

import os
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import files, metadata
from importlib.util import find_spec
from pathlib import Path

import torch

import zokern
from zokern.kernels import cpu

GOLDEN = (0x3E6DDB54, 0xBFB15685, 0x3FA26635, 0xBF5C3668, 0xBF5798C6, 0xBF1322C3, 0x3FAF1000, 0x3F020628)  # z(key 0), docs/noise_spec.md


def check(what: str, holds: bool) -> None:
    print(f"{'ok' if holds else 'FAILED'}: {what}", flush=True)
    if not holds:
        sys.exit(1)


def problem() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 10, generator=generator)
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).eval(), x, x.sum(1, keepdim=True)


def check_package() -> None:
    folder, said, paths = Path(zokern.__file__).parent, metadata("zokern"), [str(path) for path in files("zokern") or ()]
    check(f"imported from {folder}", Path(sys.prefix).resolve() in folder.resolve().parents)
    check(f"version {zokern.__version__}", zokern.__version__ == said["Version"])
    check("it has its types", "zokern/py.typed" in paths)
    check("it has its licences", sum("licenses/" in path for path in paths) == 2 and said["License-Expression"] == "Apache-2.0")
    tops = {path.split("/")[0] for path in paths if not path.startswith("..")}
    check("nothing else was installed", all(top == "zokern" or top.startswith("zokern-") for top in tops))
    others = {"transformers", "accelerate", "peft", "datasets", "sklearn", "matplotlib", "typer"} & set(sys.modules)
    check("importing it takes torch and NumPy alone", not others)


def check_backends() -> None:
    print(zokern.backends())
    check("the C++ kernels run", zokern.backends()["cpu"].startswith("available"))
    wanted = os.environ.get("ZOKERN_CUDA")
    there = find_spec("zokern._cuda") is not None
    for module in Path(zokern.__file__).parent.glob("*.so"):
        check(f"{module.name} names no folder that it was built in", b"/pybind11/" not in module.read_bytes())
    check(f"the CUDA kernels are {'there' if there else 'left out'}", wanted not in ("0", "1") or there == (wanted == "1"))
    if there:
        import zokern._cuda as cuda

        check(f"they are for {cuda.architectures}, of CUDA {cuda.version}", cuda.architectures == "sm_80 sm_90 PTX")


def check_noise() -> None:
    for name in ("cpu", "reference"):
        with zokern.use_backend(name):
            z = zokern.ops.make_noise(zokern.NoiseKey(0), 0, len(GOLDEN))
        check(f"golden noise by {name}", [int(word) & 0xFFFFFFFF for word in z.view(torch.int32)] == list(GOLDEN))


def check_threads() -> None:
    """One OpenMP, torch's; the same bits on any number of threads, and in a forked child."""
    one, two, forked = torch.zeros(3, 1 << 20)
    for threads, theta in ((1, one), (2, two)):
        torch.set_num_threads(threads)
        add_noise_to(theta)
    check("one thread and two make the same bits", torch.equal(one, two))
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text().splitlines()
        loaded = {line.split()[-1] for line in maps if "gomp" in line or "libomp" in line or "libiomp" in line}
        check(f"one OpenMP: {', '.join(loaded)}", cpu._cpu.openmp and len(loaded) == 1)
        child = os.fork()
        if not child:  # where torch itself would wait for threads that are gone
            signal.alarm(60)
            add_noise_to(forked)
            os._exit(0 if (forked.numpy() == two.numpy()).all() else 1)
        check("a forked child makes them, too", os.waitpid(child, 0)[1] == 0)


def add_noise_to(theta: torch.Tensor) -> None:
    zokern.ops.add_noise_(zokern.Layout([theta]), [(zokern.NoiseKey(1), 1.0)])


def check_training() -> None:
    model, x, y = problem()
    optimizer = zokern.MeZO(model.named_parameters(), lr=5e-3, eps=1e-3, seed=0)
    with tempfile.TemporaryDirectory() as folder, zokern.record(optimizer, Path(folder, "log.jsonl")):
        losses = [float(optimizer.step(lambda: torch.nn.functional.mse_loss(model(x), y))) for _ in range(200)]
        check(f"200 steps of MeZO: the loss goes from {losses[0]:.2f} to {losses[-1]:.2f}", losses[-1] < losses[0] / 2)
        again = problem()[0]
        zokern.Trajectory.read(Path(folder, "log.jsonl")).replay(again)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    check("its log replayed: the same bits", same)


def check_command() -> None:
    run = subprocess.run([sys.executable, "-I", "-m", "zokern", "--version"], capture_output=True, text=True)
    without = find_spec("typer") is None and run.returncode == 2 and "zokern[demo]" in run.stderr
    check(f"python -m zokern --version: {(run.stdout or run.stderr).strip()}", without or zokern.__version__ in run.stdout)


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    check_package()
    check_backends()
    check_noise()
    check_threads()
    check_training()
    check_command()
