"""All that a GPU must tell, in under eight minutes: bench/gpu.sh DIR

Builds a copy of this checkout, without a network, runs the GPU's tests, the benchmarks that tell the most, the profiler and the memory
checker, part by part (PARTS), and leaves at most eight files in DIR, appended to as it goes; docs/benchmarking.md says what is in them. A
part that fails does not stop the others; one that fails in the middle of its cases goes on with the next case; what is not done after
TOTAL seconds is left out. The exit status is 1 when something failed. Without a GPU the same parts run small: a dry run.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "csrc", "zokern", "bench", "python_tests")
TOTAL, DRY_TOTAL = 480, 2400  # seconds
SLOWER = 5
LEAST = 10  # seconds: with less left, no part is begun
GRACE = 3  # seconds that a part gets to end by itself once it is told to
OWN_GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}
SUMMARY, RECORDS, LOG = "summary.txt", "bench.jsonl", "log.txt"


@dataclass(frozen=True)
class Part:
    """A command, and what becomes of it.

    ``command``, ``dry``: on a GPU and without one; None: left out. Names in braces: see ``tools``.
    ``estimate``, ``limit``: seconds, on an H100; the limit is less where less is left of all, and SLOWER times as long in a dry run.
    ``file``: of DIR; what the command prints is appended to it. ``said``: what it says beside (the same file).
    """

    name: str
    estimate: float
    limit: float
    file: str
    command: str | None
    dry: str | None
    said: str | None = None


def suite(name, estimate, limit, wanted, dry="--quick", **more):
    command = "{python} -m bench --out {records}" + (f" --suite {name}" if "--suite" not in wanted else "")
    return Part(f"bench: {name}", estimate, limit, "bench.txt", f"{command} {wanted}", f"{command} {dry}", LOG, **more)


BUILD = "{python} setup.py build_ext --inplace"
TEST = "{python} -m pytest -q -p no:cacheprovider --tb=short --continue-on-collection-errors -m gpu"
ROOMS = "kernels", "ops", "optim", "trajectory", "test_streamed_gpu.py"  # where tests are marked gpu
TESTS = " ".join(f"python_tests/{room}" for room in ROOMS)
SECTIONS = "SpeedOfLight ComputeWorkloadAnalysis MemoryWorkloadAnalysis SchedulerStats WarpStateStats LaunchStats Occupancy"
PROFILE = " ".join(
    ("{ncu} --clock-control none --profile-from-start off -k 'regex:^(add_noise|update)_kernel'",)
    + tuple(f"--section {name}" for name in SECTIONS.split())
)
LAUNCHES = "{python} -m bench.launches"
PARTS = (
    Part("build", 40, 120, "build.txt", f"env ZOKERN_CUDA=1 {BUILD}", BUILD),
    Part("tests", 60, 100, "tests.txt", f"{TEST} {{workers}} -k 'not compiled_loop' {TESTS}", f"{TEST} --collect-only -qq {TESTS}"),
    suite("kernels", 50, 80, "--most 6", "--quick --backend triton --dtype bf16"),
    suite("forms", 25, 40, "--most 4", "--quick --dtype bf16"),
    suite("step", 95, 130, "--most 4"),
    Part("ncu", 20, 40, "ncu.txt", f"{PROFILE} {LAUNCHES} --profile 30", f"{LAUNCHES} --profile 12"),
    suite("replay", 25, 40, "--most 2"),
    suite("memory", 30, 50, "--dtype bf16 --most 5"),
    suite("optimizers", 35, 50, "--most 2"),
    Part(
        *("sanitizer", 30, 60, "tests.txt"),
        command=f"env PYTORCH_NO_CUDA_MEMORY_CACHING=1 {{sanitizer}} --error-exitcode 9 {LAUNCHES}",
        dry=LAUNCHES,
    ),
)


class Run:
    """The parts one after the other, in ``total`` seconds from ``begun``.

    Args:
        out: the folder of the results.
        tools: what the names in braces stand for, None where it is not here.
        folder: of the copy of the checkout that they run in.
        gpu: whether there is one.
        begun, total: on time.monotonic's clock; seconds.
    """

    def __init__(self, out, tools, folder, gpu, begun, total):
        self.out, self.tools, self.folder, self.gpu = out, tools, folder, gpu
        self.begun, self.total = begun, total
        self.failed = 0

    @property
    def left(self) -> float:
        return self.total - (time.monotonic() - self.begun)

    def say(self, line):
        print(line, flush=True)
        with (self.out / SUMMARY).open("a") as summary:
            summary.write(line + "\n")

    def plan(self, parts):
        """What is asked for, with the seconds that it should take on an H100."""
        self.say(f"{'part':<18} {'estimate':>8} {'limit':>6}  file")
        for part in parts:
            if self.command(part):
                self.say(f"{part.name:<18} {part.estimate:>6.0f} s {part.limit:>4.0f} s  {part.file}")
        self.say(f"{'in all':<18} {sum(part.estimate for part in parts):>6.0f} s, never more than {self.total:.0f} s\n")

    def all(self, parts) -> int:
        for part in parts:
            self.one(part)
        self.say(f"{time.monotonic() - self.begun:.0f} s in all, {self.failed} parts failed")
        return 1 if self.failed else 0

    def one(self, part):
        command, start = self.command(part), time.monotonic()
        if command is None:
            return
        if missing := [name for name in names_in(part.command if self.gpu else part.dry) if self.tools[name] is None]:
            return self.say(f"{part.name:<18}         left out: there is no {', '.join(missing)} here")
        if self.left < LEAST:
            return self.say(f"{part.name:<18}         left out: {self.left:.0f} s were left")
        limit = self.limit(part)
        status = self.carry_out(part, command, start + limit)
        fate = "ok" if status == 0 else f"FAILED: over {limit:.0f} s" if status is None else f"FAILED: exit status {status}"
        self.failed += status != 0
        self.say(f"{part.name:<18} {time.monotonic() - start:>6.0f} s  {fate:<24} {part.file}")
        if status != 0:
            for name in dict.fromkeys((part.said or part.file, part.file)):
                print("".join(f"    {line}\n" for line in tail(self.out / name)), end="", flush=True)

    def limit(self, part) -> float:
        return max(0.0, min(part.limit * (1 if self.gpu else SLOWER), self.left - GRACE))

    def command(self, part) -> list | None:
        text = part.command if self.gpu else part.dry
        return None if text is None else shlex.split(text.format(**self.tools))

    def carry_out(self, part, command, until) -> int | None:
        """-> the exit status, None where the time is up. Where the process ends in the middle of its cases, the next one goes on."""
        said, worst, more = self.out / (part.said or part.file), 0, []
        while True:
            before = said.stat().st_size if said.exists() else 0
            process = self.start(part, [*command, *more])
            try:
                status = process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                stop(process)
                return None
            finally:
                stop(process)
            worst = worst if worst and not status else status
            cases = re.findall(r"^bench: (\d+) of (\d+): (.*)$", said.read_text(errors="replace")[before:], re.M)
            done, count, case = cases[-1] if cases else (0, 0, "")
            if status in (0, 1, 2) or done == count or until - time.monotonic() < LEAST:
                return worst
            if status != 3:  # then it has not been able to say so itself
                self.lost(part, case, f"the process ended with status {status}")
            more = ["--begin", str(int(done) + 1)]

    def lost(self, part, case, why):
        with (self.out / RECORDS).open("a") as records:
            line = {"suite": part.name.removeprefix("bench: "), "op": case, "candidate": None, "error": why}
            records.write(json.dumps(line | {"commit": os.environ.get("BENCH_COMMIT")}) + "\n")

    def start(self, part, command) -> subprocess.Popen:
        """In a process group of its own, so that all of it can be stopped."""
        environment = os.environ | {"PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        environment |= {} if self.gpu else {"TRITON_INTERPRET": "1"}
        with (self.out / part.file).open("a") as told, (self.out / (part.said or part.file)).open("a") as said:
            print(f"== {part.name}: {shlex.join(command)}", file=said, flush=True)
            where = dict(cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=told, stderr=said)
            return subprocess.Popen(command, **where, **OWN_GROUP)


def names_in(command) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(command) if name]


def stop(process):
    """End the process and all that it has started: asked first, so that it may print what it has."""
    for how, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 1)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.poll()


def tail(path, lines=15):
    return path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []


def tools(python, out) -> dict:
    """What the names in braces of PARTS stand for, None where it is not here."""
    usual = os.pathsep.join(["/usr/local/cuda/bin", *map(str, Path("/opt/nvidia/nsight-compute").glob("*"))])
    ncu, sanitizer = (shutil.which(name) or shutil.which(name, path=usual) for name in ("ncu", "compute-sanitizer"))
    workers = subprocess.run([python, "-c", "import xdist"], capture_output=True).returncode == 0
    paths = {"python": python, "records": str(out / RECORDS), "ncu": ncu, "sanitizer": sanitizer}
    quoted = {name: path and shlex.quote(path) for name, path in paths.items()}
    return quoted | {"workers": "-n 8 --dist worksteal" if workers else ""}


def copied(folder) -> Path:
    """A copy of the checkout, so that nothing changes under whoever works in it."""
    folder.mkdir()
    leave = shutil.ignore_patterns("*.so", "__pycache__", "results")
    for name in COPIED:
        source = ROOT / name
        shutil.copytree(source, folder / name, ignore=leave) if source.is_dir() else shutil.copy(source, folder / name)
    return folder


def commit() -> str:
    """What git calls the checkout; of a copy without .git BENCH_COMMIT, or the digest of its sources, as --sources prints it."""
    if (ROOT / ".git").exists():
        said = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
        if said.returncode == 0:
            return said.stdout.strip()
    return os.environ.get("BENCH_COMMIT") or sources()


def sources() -> str:
    """One name for all that is copied and compiled or run: "sources-" and 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in COPIED:
        paths = sorted((ROOT / name).rglob("*")) if (ROOT / name).is_dir() else [ROOT / name]
        for path in paths:
            if path.suffix in (".py", ".sh", ".cpp", ".hpp", ".cu", ".toml"):
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sources-{digest.hexdigest()[:12]}"


def state() -> str:
    """The GPU's clocks and temperature, in one line."""
    asked = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"
    try:
        said = subprocess.run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, timeout=15)
        return " ".join(said.stdout.split()) or said.stderr.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", type=Path, nargs="?", help="folder of the results")
    parser.add_argument("--sources", action="store_true", help="print the digest by which records name a copy without .git, and end")
    arguments = parser.parse_args(argv)
    if arguments.sources:
        print(sources())
        return 0
    if arguments.dir is None:
        parser.error("DIR is missing: name a folder for the results")
    begun, out = time.monotonic(), arguments.dir.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in {SUMMARY, RECORDS, LOG, *(part.file for part in PARTS)}:
        (out / name).unlink(missing_ok=True)
    os.environ["BENCH_COMMIT"] = commit()
    asked = "import torch; print(*torch.cuda.get_device_capability() if torch.cuda.is_available() else '')"
    capability = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    gpu = bool(capability.stdout.strip())
    with tempfile.TemporaryDirectory() as folder:
        run = Run(out, tools(sys.executable, out), copied(Path(folder, "checkout")), gpu, begun, TOTAL if gpu else DRY_TOTAL)
        run.say(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}, commit {os.environ['BENCH_COMMIT']}")
        run.say(state() if gpu else f"no GPU here {capability.stderr.strip()[-200:]}: a dry run, its times mean nothing")
        run.plan(PARTS)
        status = run.all(PARTS)
        if gpu:
            run.say(state())
    print("".join(f"{line}\n" for line in tail(out / "bench.txt", 80)), end="")
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left running
    sys.exit(main())
