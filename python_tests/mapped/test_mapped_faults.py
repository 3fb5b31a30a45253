"""Files that are none, cannot be used, or have no room."""

import json
import os
import resource

import pytest
import torch
from mapped_cases import some
from safetensors import torch as safetensors

from zokern.errors import BadInput, Unwritable
from zokern.mapped import MappedWeights, write


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../a"}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none(index, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadInput, match="index.json' cannot be read"):
        MappedWeights(tmp_path)


def test_no_weights(tmp_path):
    for path in (tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(BadInput, match="is no file: check the path"):
            MappedWeights(path)
    with pytest.raises(BadInput, match="holds 0 safetensors files"):
        MappedWeights(tmp_path)
    for name in "ab":
        write(tmp_path / f"{name}.safetensors", some())
    with pytest.raises(BadInput, match="holds 2 safetensors files"):
        MappedWeights(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"PK" + data, lambda data: b""])
def test_files_that_are_not_whole(damage, path):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match="is no whole safetensors file"):
        MappedWeights(path)


def test_tensors_that_cannot_be_used_where_they_lie(tmp_path):
    safetensors.save_file({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    with pytest.raises(BadInput, match="'a' is F8_E4M3: write the file again"):
        MappedWeights(tmp_path / "eight.safetensors")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header += b" " * (3 - len(header) % 4)
    (tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(BadInput, match="'a' begins at byte .*, no multiple of its 4 bytes"):
        MappedWeights(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16])
def test_tensors_that_a_mapped_file_does_not_hold(dtype, tmp_path):
    with pytest.raises(ValueError, match=rf"tensors\['b'\] is {dtype}: write it in float32"):
        write(tmp_path / "some.safetensors", {"a": torch.zeros(2), "b": torch.zeros(3).to(dtype)})
    assert not list(tmp_path.iterdir())


def test_sparse_files(path):
    data = path.read_bytes()
    with open(path, "wb") as file:
        header = 8 + int.from_bytes(data[:8], "little")
        file.write(data[:header])
        file.truncate(len(data))
    if path.stat().st_blocks * 512 >= len(data):
        pytest.skip("this file system has no sparse files")
    with pytest.raises(BadInput, match="is sparse: .* of .* bytes have a place on the disk"):
        MappedWeights(path)


@pytest.fixture
def not_root():
    """Root may write what is read-only."""
    if os.getuid():
        yield
    else:
        os.seteuid(65534)
        yield
        os.seteuid(0)


def test_a_file_that_is_read_only(path, request):
    for folder in path.parents:  # which others than root are to reach
        if not folder.stat().st_mode & 0o1:
            folder.chmod(0o755)
    path.chmod(0o444)
    request.getfixturevalue("not_root")
    with pytest.raises(Unwritable, match="cannot be written .Permission denied.*make it writable"):
        MappedWeights(path)


@pytest.fixture
def small_files():
    """No file may be longer than 64 KiB, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_room_to_write(path, small_files):
    before = path.read_bytes()
    for target in (path, path.with_name("new.safetensors")):
        with pytest.raises(Unwritable, match=f"{target.name}' cannot be written .*make room there"):
            write(target, some(scale=10))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_no_room_for_the_marker(path):
    weights, before = MappedWeights(path), path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(Unwritable, match="unsynced' cannot be written .*make room there"), weights.writing():
            raise AssertionError("never reached")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    weights.close()
    weights = MappedWeights(path)
    with weights.writing():
        pass
    weights.close()
    assert list(path.parent.iterdir()) == [path]
