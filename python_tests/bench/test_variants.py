"""Suite ``variants``: every edit fits the sources of today, and what is built is one module beside another."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import variants  # noqa: E402
from bench.edits import AGAIN  # noqa: E402
from bench.variants import BASE, ONLY_TIMED, VARIANTS, Variant, edited, included, within  # noqa: E402
from zokern.kernels import cuda, spans  # noqa: E402

TIMED = Variant("what is timed alone", ONLY_TIMED, "")
TILES = Variant("other tiles", (("passes.hpp", "kTile = 4096", "kTile = 8192"),), "")


@pytest.fixture
def csrc(tmp_path):
    return shutil.copytree(variants.CSRC, tmp_path / "csrc")


@pytest.mark.parametrize("first", [(), (TIMED,)], ids=["all kernels", "those that are timed"])
@pytest.mark.parametrize("variant", [TIMED, *VARIANTS], ids=lambda variant: variant.name)
def test_every_edit_fits_once(csrc, variant, first):
    if first == (variant,):
        return
    for one in first:
        edited(one, csrc)
    texts = {path: path.read_text() for path in csrc.rglob("*.*")}
    files, settings = edited(variant, csrc)
    assert {path.relative_to(csrc).as_posix() for path, text in texts.items() if path.read_text() != text} == files
    assert len(files) + len(settings) > 0 or variant.name == AGAIN
    assert all(getattr(module, name) != value for module, name, value in settings)


def test_names_are_unique_and_something_is_predicted():
    names = [variant.name for variant in VARIANTS]
    assert len({*names, BASE, variants.FLOOR}) == len(names) + 2
    assert all(variant.predicted.endswith(".") for variant in VARIANTS)


@pytest.mark.parametrize(
    "edit",
    [
        ("noise.hpp", "kThreads", "kMany"),  # more than once
        ("noise.hpp", "kThreads = 64", "kThreads = 32"),
        ("zokern.kernels.spans.BLOCK", "409", "8192"),  # a part of its value
    ],
)
def test_what_does_not_fit_is_named(csrc, edit):
    with pytest.raises(ValueError, match=f"mine: {edit[0]} has '{edit[1]}' . times, not once"):
        edited(Variant("mine", (edit,), ""), csrc)


def test_what_a_file_includes(csrc):
    reached = included("cuda/add_noise.cu", csrc)
    assert {"cuda/add_noise_kernel.hpp", "cuda/vector.hpp", "cuda/passes.hpp", "noise/passes.hpp", "noise/normal.hpp"} <= reached
    assert not {"cuda/update_kernel.hpp", "noise/rules.hpp"} & reached
    assert "cuda/vector.hpp" not in included("bind/cuda_module.cpp", csrc)


def test_values_are_swapped_while_a_call_runs():
    before, seen = (cuda._cuda, spans.PROGRAMS), []

    def call():
        seen.append((cuda._cuda, spans.PROGRAMS))
        raise KeyError

    with pytest.raises(KeyError):
        within([(cuda, "_cuda", 1), (spans, "PROGRAMS", 2)], call)()
    assert seen == [(1, 2)] and (cuda._cuda, spans.PROGRAMS) == before


def test_flags_are_those_of_the_build():
    text = (ROOT / "setup.py").read_text()
    assert all(flag in text for flag in variants.FLAGS.split())


def test_two_are_loaded_side_by_side(tmp_path):
    """Whatever the names of files that were loaded before. One that does not compile, or fit, costs itself."""
    try:
        compiler = variants.Compiler("90")
    except RuntimeError as error:
        pytest.skip(str(error))
    wrong = Variant("wrong", (("noise.hpp", "kThreads = 128", "kThreads = nothing"),), "")
    misfit = Variant("misfit", (("noise.hpp", "kThreads = 1000", "kThreads = 1"),), "")
    (tmp_path / "first").mkdir()
    found = variants.build([TILES, wrong, misfit], tmp_path / "first", compiler)
    assert list(found) == [BASE, "other tiles", "wrong", "misfit"]
    base, other = (found[name].values[0][2] for name in (BASE, "other tiles"))
    assert (base.tile, other.tile) == (4096, 8192) and base.add_noise_ is not other.add_noise_
    assert base.architectures == "sm_90" and "nothing" in found["wrong"] and "misfit" in found["misfit"]
    again = tmp_path / "second" / "0"
    again.mkdir(parents=True)
    third = variants.loaded(Path(shutil.copy(tmp_path / "first" / "1" / "_cuda.so", again)))
    assert third.tile == 8192 and base.tile == 4096 and third is not other


def test_without_a_gpu_nothing_is_pretended(capsys, monkeypatch):
    (case,) = variants.cases(torch.device("cpu"), quick=True)
    module = lambda: type("module", (), {"add_noise_": lambda: None})  # noqa: E731
    ready = {name: variants.Built(set(), [(cuda, "_cuda", module())]) for name in (BASE, "other")} | {"lost": "why"}
    monkeypatch.setattr(variants, "built", lambda architecture, few: ready)
    assert variants.measure(case, torch.device("cpu")) == []
    assert "nothing is timed: 2 modules" in capsys.readouterr().err
    ready[BASE] = "nvcc is away"
    with pytest.raises(RuntimeError, match="nvcc is away"):
        variants.measure(case, torch.device("cpu"))


def test_cases():
    on_gpu = torch.device("cuda")
    assert [(c.what, c.dtype, c.terms) for c in variants.cases(on_gpu)][:2] == [("add_noise_", "bf16", 1), ("add_noise_", "bf16", 2)]
    assert {c.dtype for c in variants.cases(on_gpu, dtypes=["fp32"])} == {"fp32"}
    assert all(c.n == 1 << 30 for c in variants.cases(on_gpu)) and all(c.variants == 2 for c in variants.cases(on_gpu, quick=True))
