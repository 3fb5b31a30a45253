"""One JSON line a candidate of a case: what was measured, of what, on what, when."""

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import zokern
from zokern.kernels import backend_for

ROOT = Path(__file__).resolve().parent.parent
# Every record has these; null where one does not apply. A suite may add its own.
FIELDS = (
    *("suite", "op", "candidate", "backend", "isa", "dtype", "n", "terms", "threads", "timer"),
    *("median_s", "q1_s", "q3_s", "min_s", "rounds", "late_rounds", "ns_per_element", "gb_per_s", "share_of_floor", "speedup"),
    *("machine", "versions", "commit", "date"),
)


def lines(device, samples, floor, baseline, describe) -> list[dict]:
    """The records of one case.

    Args:
        samples: candidate -> Samples.
        floor, baseline: the candidates that ``share_of_floor`` (its time over this one's) and ``speedup`` (its time over this
            one's) refer to.
        describe: candidate -> the other fields.
    """
    here = where(device)
    return [
        dict.fromkeys(FIELDS)
        | {
            "candidate": name,
            "median_s": timed.median,
            "q1_s": timed.quartiles[0],
            "q3_s": timed.quartiles[2],
            "min_s": timed.min,
            "rounds": len(timed.seconds),
            "late_rounds": timed.late,
            "share_of_floor": samples[floor].median / timed.median,
            "speedup": samples[baseline].median / timed.median,
        }
        | describe(name)
        | here
        for name, timed in samples.items()
    ]


def failed(suite, case, reason, device, candidate=None) -> dict:
    """The record of a case, or of one of its candidates, that there is no result of.

    Args:
        suite: its name.
        case: as ``cases`` has it.
        reason: why, as ``reason`` tells it.
    """
    try:
        here = where(device)
    except Exception:  # a GPU that has failed answers nothing
        here = where(torch.device("cpu"))
    return dict.fromkeys(FIELDS) | {"suite": suite, "op": str(case), "candidate": candidate, "error": reason} | here


def reason(error) -> str:
    """An exception in one line. Nothing of it is kept: its traceback would hold all that was allocated when it was raised."""
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}"[:300]


def is_fault(record) -> bool:
    """Whether something is wrong: not where there was too little memory, and not where only another way to do the same did not run."""
    error = record.get("error")
    if not error or error.startswith("OutOfMemoryError"):
        return False
    return record["candidate"] is None or error.startswith("Refused")


def where(device) -> dict:
    """On what, of what and when."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"machine": machine(device), "versions": versions(), "commit": commit(), "date": now}


def append(path: Path, records: list[dict]) -> None:
    """Write them, so that they stay if this process does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def backend(device, ours: bool) -> dict:
    """Who does the work, and with which instructions."""
    if not ours:
        return {"backend": "torch", "isa": torch.backends.cpu.get_cpu_capability().lower() if device.type == "cpu" else None}
    name = backend_for(device).__name__.rpartition(".")[2]
    _, _, detail = zokern.backends()[name].partition(": ")
    return {"backend": name, "isa": detail.partition(",")[0] or None}


def machine(device) -> dict:
    """Processors and, of a GPU that was measured, the clocks that it has now, just after its work."""
    here = {"cpu": cpu(), "cores": os.cpu_count()}
    if device.type == "cuda":
        count = torch.cuda.get_device_properties().multi_processor_count
        here |= {"gpu": torch.cuda.get_device_name(), "multiprocessors": count, **gpu_state()}
    return here


@cache
def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def gpu_state() -> dict:
    query = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")
    gpu = f"GPU-{torch.cuda.get_device_properties().uuid}"  # its number would depend on CUDA_VISIBLE_DEVICES
    command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={','.join(query)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip((name.replace(".", "_") for name in query), (value.strip() for value in answer.strip().split(","))))


@cache
def versions() -> dict:
    found = {"python": platform.python_version(), "torch": torch.__version__, "zokern": zokern.__version__, "cuda": torch.version.cuda}
    found["philox rounds"] = zokern.noise.spec.ROUNDS
    for name in ("triton", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@cache
def commit() -> str:
    """``git describe --always --dirty``; what BENCH_COMMIT says of a copy without .git, else "unknown"."""
    if not (ROOT / ".git").exists():
        return os.environ.get("BENCH_COMMIT", "unknown")
    try:
        describe = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return describe.stdout.strip()
