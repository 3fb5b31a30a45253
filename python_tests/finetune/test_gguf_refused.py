"""GGUF files that cannot be used: one line with the cure, and nothing is written."""

import struct
from pathlib import Path

import pytest
import torch

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")
pytest.importorskip("typer")

import gguf_cases  # noqa: E402
from command_line import changed, zokern  # noqa: E402

from zokern.errors import BadInput  # noqa: E402
from zokern.finetune import Settings, finetune  # noqa: E402
from zokern.finetune import gguf as ours  # noqa: E402
from zokern.finetune.model import causal  # noqa: E402

ORIGINAL = "pass the original checkpoint, a folder with config.json"
AGAIN = "copy or download it again"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good file, and where the tensors' values begin in it."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    gguf_cases.write(path)
    return path.read_bytes(), gguf.GGUFReader(path).data_offset


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.gguf"


def refused(file):
    with pytest.raises(BadInput) as error:
        causal(Settings(model=str(file), adapter=("full",), device="cpu"))
    said = str(error.value)
    assert said.startswith(f"--model {str(file)!r} ") and "\n" not in said and "/zokern-" not in said
    return said.removeprefix(f"--model {str(file)!r} ")


@pytest.mark.parametrize("held", [b"", b"GG", b"version https://git-lfs.github.com/spec/v1", b"PK\3\4" + bytes(100)])
def test_a_file_that_is_named_so_and_is_none(held, file):
    file.write_bytes(held)
    fault = f"it begins with {held[:4]!r}" if held else "it is empty"
    assert refused(file) == f"is no GGUF file ({fault}): {AGAIN}, or {ORIGINAL}"


def test_a_file_that_is_not_there(file):
    assert refused(file) == "does not exist: check the path"


def test_a_file_that_is_cut_anywhere(whole, file):
    """In its numbers, its tokens, its list of tensors, its values; with the last byte gone, too."""
    held, values = whole
    for length in (4, 20, 60, 1500, values - 700, values, values + 5000, len(held) - 1):
        file.write_bytes(held[:length])
        said = refused(file)
        assert said.startswith("is a damaged GGUF file, or not all of one (") and said.endswith(f"): {AGAIN}"), length


def test_a_file_of_another_version(whole, file):
    file.write_bytes(whole[0][:4] + struct.pack("<I", 9) + whole[0][8:])
    assert "version 9" in (said := refused(file)) or "v9" in said


def test_an_architecture_that_transformers_does_not_read(file):
    gguf_cases.write(file, architecture="plamo")
    said = refused(file)
    assert said.startswith("is of an architecture that cannot be read from GGUF (") and "plamo" in said
    assert said.endswith(f"): pip install -U transformers gguf, or {ORIGINAL}")


@pytest.mark.parametrize("known", [True, False], ids=["integers", "unknown"])
def test_a_quantisation_that_cannot_be_read(known, whole, file):
    if known:
        gguf_cases.write(file, more={"blk.1.ffn_up.weight": torch.ones(64, 32, dtype=torch.int8)})
    else:
        held, name = whole[0], b"blk.1.ffn_up.weight"
        kind = held.index(name) + len(name) + 4 + 2 * 8
        file.write_bytes(held[:kind] + struct.pack("<I", 250) + held[kind + 4 :])
    said = refused(file)
    assert said.startswith("is quantised in a way that cannot be read (") and ("I8" if known else "250") in said
    assert said.endswith(f"): have llama.cpp make another of it, llama-quantize --allow-requantize IN OUT f16, or {ORIGINAL}")


def test_a_file_without_some_weights(settings, file):
    """As a part of a model in several files. With a new head, too, nothing else may be new."""
    gguf_cases.write(file, without=("blk.1.ffn_up.weight",))
    lacks = "lacks model.layers.1.mlp.up_proj.weight of the model: pass all of it"
    assert refused(file).startswith(lacks)
    with pytest.raises(BadInput, match=f"^--model '{file}' {lacks}"):
        finetune(changed(settings, model=str(file)), lambda line: None)
    assert not Path(settings.out).exists()


def test_a_file_without_a_tokenizer(file):
    gguf_cases.write(file, tokenizer=False)
    said = refused(file)
    assert said.startswith("comes without a tokenizer") and said.endswith(ORIGINAL)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_package_that_is_missing(package, file, monkeypatch):
    gguf_cases.write(file)
    monkeypatch.setattr(ours, "find_spec", lambda name: None if name == package else object())
    assert refused(file) == f"is GGUF, which is read by {package}, and that is not installed: pip install {package}"


def test_a_model_that_is_too_large(file, monkeypatch):
    def full(*given):
        raise MemoryError("Unable to allocate 1.96 TiB for an array")

    gguf_cases.write(file)
    monkeypatch.setattr("gguf.dequantize", full)
    assert refused(file).startswith("is too large for the memory here, where its weights are float32, or damaged (MemoryError: Unable to")


def test_positions_that_are_scaled_are_told(file):
    """As Llama 3.1's: transformers passes over the tensor that says so."""
    gguf_cases.write(file, more={"rope_freqs.weight": torch.full((4,), 8.0)})
    with pytest.warns(RuntimeWarning, match="scales its rotary positions, which transformers leaves out .*: texts of thousands of tokens"):
        loaded = causal(Settings(model=str(file), adapter=("full",), device="cpu"))
    assert loaded.model.config.rope_parameters["rope_type"] == "default"


def test_at_the_command_line(file, csv_of, tmp_path):
    """Of every command that takes a model; and the file is named that a folder holds."""
    gguf_cases.write(file, architecture="plamo")
    data = ["--data", csv_of(20), "--device", "cpu"]
    for command, *given in (
        ["finetune", *data, "--out", tmp_path / "run"],
        ["evolve", *data, "--prompt", "text", "--reward", "exact:label", "--rows", "4", "--out", tmp_path / "run"],
        ["evaluate", *data, "--metrics", tmp_path / "run"],
    ):
        (line,) = zokern(command, "--model", file, *given, code=2).splitlines()
        assert line.startswith(f"error: --model '{file}' is of an architecture that cannot be read from GGUF"), command
        said = zokern(command, "--model", tmp_path, *given, code=2)
        assert f"'{tmp_path}' has no config.json: pass a folder written by save_pretrained, or a model in it, '{file}'" in said
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".zokern*"))


def test_a_model_of_another_kind(settings, file, sst2):
    gguf_cases.write(file)
    with pytest.raises(BadInput, match=rf"^--model '{file}' \(LlamaConfig\) is no model for --task-type masked"):
        finetune(changed(settings, model=str(file), task="sst2", data=str(sst2), rows=(32, 16, 0), task_type="masked"), lambda line: None)
