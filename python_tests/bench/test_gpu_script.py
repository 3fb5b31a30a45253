"""bench/gpu.sh keeps its promises: its time, its files, and what becomes of a part that fails. Its commands are those of the real tools."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import __main__ as bench  # noqa: E402
from bench import gpu, models  # noqa: E402


@pytest.fixture
def run(tmp_path):
    """A run of parts on a machine with a GPU, begun so many seconds ago."""

    def make(ago=0.0, total=60.0, **tools):
        tools = {"python": shlex.quote(sys.executable), "workers": "", "ncu": None, **tools}
        return gpu.Run(tmp_path, tools, tmp_path, True, time.monotonic() - ago, total)

    return make


def python(code):
    return "{python} -c " + shlex.quote(code).replace("{", "{{").replace("}", "}}")


def part(name, code, limit=30, **more):
    return gpu.Part(name, 1, limit, f"{name}.txt", python(code), None, **more)


@pytest.mark.parametrize("parts", gpu.CALLS.values(), ids=gpu.CALLS)
def test_the_parts_fit_their_call(parts):
    assert sum(part.estimate for part in parts) <= gpu.TOTAL <= 480
    assert all(part.estimate <= part.limit for part in parts)
    files = {name for part in parts for name in (part.file, part.said or part.file)} | {gpu.SUMMARY, gpu.RECORDS, gpu.LOG}
    assert len(files) <= 8 and all(re.fullmatch(r"[\w.-]+", name) for name in files)
    assert not any("sass" in (part.command or "") for part in parts)


def test_the_page_lists_them():
    page = (ROOT / "docs/benchmarking.md").read_text().split("## Still to be measured on a GPU")[1]
    told, call = {name: [] for name in gpu.CALLS}, None
    for named, name, estimate, limit in re.findall(r"^\| (\w*) ?\| ([\w: ]+) \| (\d+) \| (\d+) \|", page.split("\n## ")[0], re.M):
        call = named or call
        told[call].append((name, int(estimate), int(limit)))
    assert told == {name: [(part.name, part.estimate, part.limit) for part in parts] for name, parts in gpu.CALLS.items()}


@pytest.mark.parametrize("part", sum(gpu.CALLS.values(), ()), ids=lambda part: part.name)
def test_the_commands_are_those_of_the_tools(part):
    """What is given to python -m bench it takes, with cases left to measure; every test marked gpu is asked for."""
    for text in filter(None, (part.command, part.dry)):
        names = {"python": "python", "records": "r.jsonl", "workers": "-n 8", "ncu": "ncu", "sanitizer": "compute-sanitizer"}
        names |= {"data": "sst2", "minilm": "minilm"}
        words = shlex.split(text.format(**names))
        if "bench" in words:
            arguments = bench.parser().parse_args(words[words.index("bench") + 1 :])
            assert arguments.suite != "all" and arguments.out == Path("r.jsonl")
        if "pytest" in words:
            asked = {ROOT / word for word in words if word.startswith("python_tests/")}
            marked = {path for path in (ROOT / "python_tests").rglob("test_*.py") if re.search(r"mark\.gpu\b", path.read_text())}
            assert len(marked) > 5 and marked - {Path(__file__)} == asked


def test_one_part_that_fails_does_not_stop_the_others(run, tmp_path, capsys):
    parts = [part("good", "print('here')"), part("bad", "raise SystemExit('no kernel image')"), part("last", "print('there')")]
    assert run().all(parts) == 1
    assert "here" in (tmp_path / "good.txt").read_text() and "there" in (tmp_path / "last.txt").read_text()
    summary = (tmp_path / "summary.txt").read_text()
    assert re.search(r"good +\d+ s  ok", summary) and re.search(r"bad +\d+ s  FAILED: exit status 1", summary)
    assert "1 parts failed" in summary and "no kernel image" in capsys.readouterr().out
    assert run().all(parts[:1]) == 0


def test_a_part_that_takes_too_long_is_stopped_with_all_that_it_started(run, tmp_path):
    code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"
    assert run().all([part("long", code, limit=2)]) == 1
    assert "FAILED: over 2 s" in (tmp_path / "summary.txt").read_text()
    started = int((tmp_path / "long.txt").read_text().split()[-1])
    for _ in range(100):  # until whoever inherits it has buried it
        status = Path(f"/proc/{started}/stat")
        if not status.exists() or ") Z" in status.read_text():
            return
        time.sleep(0.1)
    os.kill(started, signal.SIGKILL)
    pytest.fail("it runs on")


def test_nothing_is_begun_when_the_time_is_up(run, tmp_path):
    assert run(ago=55).all([part("late", "print('begun')")]) == 0
    assert "left out: 5 s were left" in (tmp_path / "summary.txt").read_text() and not (tmp_path / "late.txt").exists()


def test_no_part_gets_more_than_what_is_left(run):
    ten = part("ten", "", limit=10)
    assert run(ago=0).limit(ten) == 10
    assert run(ago=54).limit(ten) == pytest.approx(6 - gpu.GRACE, abs=0.5)
    assert run(ago=100).limit(ten) == 0


CASES = """
import os, signal, sys
first = int(sys.argv[sys.argv.index("--begin") + 1]) if "--begin" in sys.argv else 1
for n in range(first, 5):
    print(f"bench: {n} of 4: case {n}", file=sys.stderr, flush=True)
    if n == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if n == 3:
        sys.exit(3)
    print("done", n, flush=True)
"""


def test_a_process_that_dies_costs_the_case_that_it_died_in(run, tmp_path):
    assert run().all([part("bench", CASES, said=gpu.LOG)]) == 1
    assert [line for line in (tmp_path / "bench.txt").read_text().splitlines()] == ["done 1", "done 4"]
    (lost,) = [json.loads(line) for line in (tmp_path / gpu.RECORDS).read_text().splitlines()]  # the third has recorded itself
    assert lost["op"] == "case 2" and lost["error"] == "the process ended with status -11"
    assert "FAILED: exit status" in (tmp_path / "summary.txt").read_text()


def test_a_part_that_shows_nothing_has_failed(run, tmp_path):
    """A profiler that no kernel matched ends well. What an earlier part has left in the file does not count."""
    told = gpu.Part("one", 1, 30, "same.txt", python("print('3 kernels')"), None, shows=r"\d kernels")
    silent = gpu.Part("two", 1, 30, "same.txt", python("print('no kernels')"), None, shows=r"\d kernels")
    assert run().all([told]) == 0 and run().all([told, silent]) == 1
    assert "FAILED: nothing like" in (tmp_path / "summary.txt").read_text()


@pytest.mark.parametrize("workers", ["", "-n 2"])
def test_tests_whose_time_is_up_have_told_what_failed(run, tmp_path, monkeypatch, workers):
    """At once, and once more in the summary."""
    pytest.importorskip("xdist")
    asleep = "def test_fails():\n    x = 41\n    assert x == 42\n\ndef test_sleeps():\n    import time\n    time.sleep(600)\n"
    (tmp_path / "test_asleep.py").write_text(asleep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = shlex.split(f"{shlex.quote(sys.executable)} -m pytest -q -p bench.telling -p no:cacheprovider {workers} test_asleep.py")
    process, told = run().start(gpu.Part("tests", 1, 1, "tests.txt", None, None), command), tmp_path / "tests.txt"
    try:
        until = time.monotonic() + 120
        while "FAILED test_asleep.py::test_fails" not in told.read_text() and time.monotonic() < until:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(120)
    finally:
        gpu.stop(process)
    said = told.read_text()
    assert said.index("FAILED test_asleep.py::test_fails") < said.index("KeyboardInterrupt") and said.count("assert 41 == 42") >= 2


def test_a_tool_that_is_missing_is_named(run, tmp_path):
    assert run().all([gpu.Part("ncu", 1, 5, "ncu.txt", "{ncu} {python} -c 1", None)]) == 0
    assert "left out: there is no ncu here" in (tmp_path / "summary.txt").read_text()


def test_the_whole_script_leaves_its_files_and_no_others_of_its_own(tmp_path, monkeypatch, capsys):
    """From the command line to the summary, with small parts; what an earlier run has left is gone."""
    out = tmp_path / "out"
    out.mkdir()
    (out / gpu.RECORDS).write_text("old\n")
    code = python("import zokern, os; print(zokern.__file__, os.environ['BENCH_COMMIT'])")
    monkeypatch.setitem(gpu.CALLS, "kernels", (gpu.Part("one", 1, 30, "bench.txt", code, code),))
    monkeypatch.setattr(gpu, "BUILDS", tmp_path / "builds")
    monkeypatch.setenv("BENCH_COMMIT", "1234abc")
    monkeypatch.setattr(gpu, "commit", lambda: "1234abc")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert gpu.main([str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"summary.txt", "bench.txt"}
    told = (out / "bench.txt").read_text()
    assert f"{ROOT}/zokern" not in told and "/checkout/zokern" in told and "1234abc" in told
    assert "commit 1234abc" in capsys.readouterr().out and "1 s" in (out / "summary.txt").read_text()


def test_what_a_call_has_built_the_next_one_need_not(tmp_path, monkeypatch, capsys):
    """Both extensions, by the sources that they are built from and by the Python that they are for."""
    monkeypatch.setattr(gpu, "BUILDS", tmp_path / "builds")
    monkeypatch.setattr(gpu, "BUILT", part("build", "open('zokern/_cpu.so', 'w'); open('zokern/_cuda.so', 'w')"))
    monkeypatch.setattr(gpu, "BUILT", replace(gpu.BUILT, dry=gpu.BUILT.command))
    code = python("import os; print(sorted(name for name in os.listdir('zokern') if name.endswith('.so')))")
    monkeypatch.setitem(gpu.CALLS, "kernels", (gpu.BUILT, gpu.Part("look", 1, 30, "bench.txt", code, code)))
    for call in range(2):
        assert gpu.main([str(tmp_path / "out")]) == 0
        assert "['_cpu.so', '_cuda.so']" in (tmp_path / "out" / "bench.txt").read_text()
        summary = (tmp_path / "out" / "summary.txt").read_text()
        assert ("built by an earlier call" in summary, "build " in summary) == (call == 1, call == 0)
    monkeypatch.setattr(gpu, "sources", lambda names=(): "sources-other")
    assert not gpu.kept(tmp_path)


def test_a_copy_without_git_has_a_name(tmp_path, monkeypatch):
    """BENCH_COMMIT, or what its sources come to: the same in a checkout and in its copy, another one when a source differs."""
    here = gpu.sources()
    monkeypatch.setattr(gpu, "ROOT", gpu.copied(tmp_path / "copy"))
    monkeypatch.delenv("BENCH_COMMIT", raising=False)
    assert gpu.commit() == here and re.fullmatch("sources-[0-9a-f]{12}", here)
    (gpu.ROOT / "setup.py").write_text("")
    assert gpu.commit() != here
    monkeypatch.setenv("BENCH_COMMIT", "1234abc")
    assert gpu.commit() == "1234abc"


def test_the_shell_script_asks_for_a_folder():
    done = subprocess.run(["bash", ROOT / "bench/gpu.sh"], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 2 and "DIR is missing" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--profile", "12"]])
def test_every_kernel_is_launched(arguments):
    """What compute-sanitizer and ncu are given, on this machine's backend."""
    if reason := models.missing():
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # which takes its time
    done = subprocess.run([sys.executable, "-m", "bench.launches", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert arguments or "every kernel launched" in done.stdout
