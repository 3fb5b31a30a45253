"""What a GPU would execute of the Triton kernels, counted from what Triton compiles, which needs no GPU (bench/sass.py)."""

from pathlib import Path

import counted_kernels
import pytest

triton = pytest.importorskip("triton", reason="pip install triton")

# The most instructions an element in the loop over whole blocks: on an H200 about 28 to 31 fit under a copy of bfloat16,
# twice that in float32. Measured with triton 3.2 to 3.7: 25.7 to 26.2, 24.5, 48.7 to 50.2.
COUNTS = [  # arch, dtype, terms, instructions
    (90, "bf16", 1, 27),
    (90, "fp32", 1, 26),
    (90, "bf16", 2, 52),
    (80, "bf16", 1, 29),
    (100, "fp16", 1, 28),
]

# The same of other kinds of passes. Of n terms, a term. Measured with triton 3.2 to 3.7 (3.8): 6.4, 5.2, 29, 8.9, 25.4, 32.7 (34.5).
KINDS_OF_PASS = [  # arch, dtype, terms, kind, instructions
    (90, "bf16", 1, ["--noise", "signs"], 8),
    (90, "fp32", "n", ["--noise", "signs"], 6),
    (90, "bf16", 1, ["--pitched"], 31),
    (80, "bf16", 1, ["--pitched", "--noise", "signs"], 11),
    (90, "fp32", 1, ["--out", "bf16"], 27),
    (90, "bf16", 1, ["--stochastic"], 36),
]


# A value of a run of passes whose z is made, with all that any value may ask for. Measured with triton 3.7: 25.8, 28.4, 29.1, 25.4.
# (On sm_100 in float16 the ptxas of triton 3.6 spills four registers, outside the loop over values.)
RUN = [(90, "fp32", 28), (90, "bf16", 30), (80, "fp16", 31), (100, "bf16", 31)]

# Measured with triton 3.7, the third left out: 68.3, 82.4, 30.8, 42.8, 32.9, 49.1, 88.4, 23.1.
UPDATES = [  # arch, rule, dtype, state, terms, kind, instructions
    (90, "adam", "bf16", "fp32", "1", [], 76),
    (90, "adam", "fp32", "bf16", "1", [], 94),
    (90, "amsgrad", "bf16", "bf16", "n", [], None),
    (90, "momentum", "fp32", "fp32", "1", [], 45),
    (80, "momentum", "bf16", "bf16", "1", [], 55),
    (100, "momentum", "fp16", "fp32", "1", [], 45),
    (90, "momentum", "bf16", "bf16", "1", ["--stochastic"], 54),
    (90, "adam", "fp16", "fp32", "1", ["--stochastic"], 97),
    (90, "sign", "bf16", "fp32", "n", ["--stochastic"], 26),
]

# Of a key of windowed Adam, all that its moments ask for. Measured with triton 3.7: 35.9, 35.9, 35.3.
WINDOWED = [(90, "bf16", 38), (80, "fp16", 38), (90, "fp32", 38)]


def of_terms(arch, dtype, terms, kind=()):
    return ("--arch", str(arch), "--dtype", dtype, "--terms", str(terms), "--decay", "no", *kind)


def of_passes(arch, dtype):
    return ("--arch", str(arch), "--passes", "--dtype", dtype)


def of_update(arch, rule, dtype, state, terms, kind):
    return ("--arch", str(arch), "--rule", rule, "--dtype", dtype, "--state", state, "--terms", terms, *kind)


def of_window(arch, dtype):
    return of_update(arch, "windowed-adam", dtype, "fp32", "n", ())


@pytest.fixture(scope="module")
def every_count(tmp_path_factory):
    """The lines of bench/sass.py for all of these, by Triton's own compiler, and what it printed."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    for tool in ("ptxas", "cuobjdump", "nvdisasm"):
        if not (tools / tool).exists():
            pytest.skip(f"no {tool} in triton {triton.__version__}")
    commands = [of_terms(*case) for *case, _ in COUNTS]
    commands += [of_terms(*case) for *case, _ in KINDS_OF_PASS]
    commands += [of_passes(*case) for *case, _ in RUN]
    commands += [of_update(*case) for *case, _ in UPDATES]
    commands += [of_window(*case) for *case, _ in WINDOWED]
    return counted_kernels.count(tmp_path_factory.mktemp("sass"), *commands)


@pytest.fixture
def count(every_count):
    """The one line of one of these command lines."""
    lines, said = every_count

    def line_of(command):
        if int(command[1]) >= 100 and triton.__version__.startswith("3.2."):
            pytest.skip("triton 3.2 does not know sm_100")
        assert len(lines[command]) == 1, said
        (line,) = lines[command]
        assert line["spills"] == line["stack_bytes"] == line["convert_layouts"] == line["shared_bytes"] == 0
        return line

    return line_of


@pytest.mark.parametrize("arch, dtype, terms, most", COUNTS)
def test_compiled_loop(count, arch, dtype, terms, most):
    line = count(of_terms(arch, dtype, terms))
    assert line["per_element"] <= most
    assert {access.rsplit(".")[-1] for access in line["accesses"]} == {"128"}


@pytest.mark.parametrize("arch, dtype, terms, kind, most", KINDS_OF_PASS)
def test_compiled_loop_of_other_kinds(count, arch, dtype, terms, kind, most):
    line = count(of_terms(arch, dtype, terms, kind))
    assert line["per_element_and_term" if terms == "n" else "per_element"] <= most
    assert {access.rsplit(".")[-1] for access in line["accesses"] if access.startswith("STG")} == {"128"}


@pytest.mark.parametrize("arch, dtype, most", RUN)
def test_compiled_loop_of_a_run_of_passes(count, arch, dtype, most):
    line = count(of_passes(arch, dtype))
    assert line["per_element_and_term"] <= most
    assert {access.rsplit(".")[-1] for access in line["accesses"] if access.startswith("STG")} == {"128"}


@pytest.mark.parametrize("arch, rule, dtype, state, terms, kind, most", UPDATES)
def test_compiled_loop_of_an_update(count, arch, rule, dtype, state, terms, kind, most):
    line = count(of_update(arch, rule, dtype, state, terms, kind))
    assert most is None or line["per_element"] <= most
    stores = {access.rsplit(".")[-1] for access in line["accesses"] if terms == "1" or access.startswith("STG")}
    assert stores == {"128"}


@pytest.mark.parametrize("arch, dtype, most", WINDOWED)
def test_compiled_loop_of_a_window(count, arch, dtype, most):
    line = count(of_window(arch, dtype))
    assert line["per_element_and_term"] <= most
    assert {access.rsplit(".")[-1] for access in line["accesses"] if access.startswith("STG")} == {"128"}
