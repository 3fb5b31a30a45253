"""Weights in files: the same bits as in memory, and changed by whole updates alone, which is seen where they are not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mapped_cases import assert_equal, perturbed, some
from safetensors import torch as safetensors

import zokern
from zokern.errors import BadInput
from zokern.mapped import MappedWeights, marker, write

WORKER = Path(__file__).parent.parent / "mapped_worker.py"


def test_what_is_written_is_what_safetensors_reads(path):
    assert_equal(safetensors.load_file(path), some())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    weights = MappedWeights(path)
    assert_equal(weights.tensors, some())
    assert weights.tensors["embed"].data_ptr() % 64 == 0
    assert (
        len({t.untyped_storage().data_ptr() for t in weights.tensors.values() if t.numel()}) == 4
    )  # nothing takes one for a view of another


def test_values_are_cast_as_they_are_written_and_asked_for_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("zokern.mapped.file.PIECE", 100)
    like = {"a": torch.empty(30, 11, dtype=torch.bfloat16, device="meta"), "b": torch.empty(5, device="meta")}
    values, asked = {"a": torch.randn(11, 30).T, "b": torch.randn(5).half()}, []
    write(tmp_path / "new" / "cast.safetensors", like, lambda name: (asked.append(name), values[name])[1])
    assert_equal(safetensors.load_file(tmp_path / "new" / "cast.safetensors"), {"a": values["a"].bfloat16(), "b": values["b"].float()})
    assert asked == ["b", "a"]
    with pytest.raises(ValueError, match=r"'b' have shape \(4,\), and \(5,\)"):
        write(tmp_path / "other.safetensors", like, lambda name: torch.zeros(4))
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.usefixtures("backend")
def test_a_pass_over_mapped_weights_is_the_pass_over_plain_ones(path):
    weights = MappedWeights(path)
    layout = zokern.Layout(sorted(weights.tensors.items()))
    with weights.writing():
        zokern.ops.add_noise_(layout, [(zokern.NoiseKey(7, 0), 0.01)])
    assert_equal(weights.tensors, perturbed(some(), [0]))
    weights.close()
    assert_equal(safetensors.load_file(path), perturbed(some(), [0]))


def work(path, end):
    environment = {**os.environ, "PYTHONPATH": str(Path(zokern.__file__).parent.parent)}
    return subprocess.run([sys.executable, WORKER, path, end], capture_output=True, text=True, env=environment)


def test_killed_between_two_updates_nothing_is_lost(path):
    assert work(path, "between").returncode == -signal.SIGKILL
    assert Path(f"{path}.unsynced").exists()
    weights = MappedWeights(path)
    assert_equal(weights.tensors, perturbed(some(), [0, 1]))
    weights.close()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_killed_in_the_middle_of_an_update_it_is_told_until_the_weights_are_brought_back(path):
    assert work(path, "inside").returncode == -signal.SIGKILL
    for _ in range(2):
        with pytest.raises(BadInput, match="a process ended in the middle of an update.*Trajectory.replay"):
            MappedWeights(path)
    write(path, some())
    weights = MappedWeights(path)
    assert_equal(weights.tensors, some())


def test_the_machine_that_stops_before_the_weights_are_on_the_disk(path, monkeypatch, tmp_path):
    weights = MappedWeights(path)
    with weights.writing():
        pass
    del weights  # as a process ends
    MappedWeights(path)._release()
    (tmp_path / "boot_id").write_text("another boot\n")
    monkeypatch.setattr(marker, "BOOT", tmp_path / "boot_id")
    with pytest.raises(BadInput, match="the machine stopped before its last updates were on the disk"):
        MappedWeights(path)
    monkeypatch.setattr(marker, "BOOT", tmp_path / "none")  # nothing tells of boots here
    with pytest.raises(BadInput, match="the machine stopped"):
        MappedWeights(path)


def test_what_is_synced_is_as_good_as_new(path, monkeypatch, tmp_path):
    weights = MappedWeights(path)
    with weights.writing():
        weights.tensors["embed"].zero_()
    weights.sync()
    assert not list(tmp_path.glob("*.unsynced"))
    with weights.writing():
        weights.tensors["embed"].fill_(2)
    weights.close()
    weights.close()
    monkeypatch.setattr(marker, "BOOT", tmp_path / "another")
    assert (MappedWeights(path).tensors["embed"] == 2).all()


def test_an_update_that_raises_is_not_gone_on_from(path):
    weights = MappedWeights(path)
    with pytest.raises(ZeroDivisionError), weights.writing():
        weights.tensors["embed"][0].zero_()
        1 / 0  # noqa: B018
    with pytest.raises(BadInput, match="an update was broken off"), weights.writing():
        raise AssertionError("never reached")
    weights.close()
    with pytest.raises(BadInput, match="in the middle of an update"):
        MappedWeights(path)


def test_one_process_at_a_time(path, tmp_path):
    weights = MappedWeights(path)
    for taken in (path, tmp_path):
        with pytest.raises(BadInput, match="open for writing already"):
            MappedWeights(taken)
    with pytest.raises(BadInput, match="open for writing already"):
        write(path, some())
    result = work(path, "closed")
    assert result.returncode == 1 and "open for writing already" in result.stderr
    kept = weights.tensors["embed"]
    weights.close()
    assert torch.equal(MappedWeights(path).tensors["embed"], kept)


def test_memory_of_the_process_s_own_stays_small(tmp_path):
    write(tmp_path / "weights.safetensors", some(scale=10_000))
    size = (tmp_path / "weights.safetensors").stat().st_size
    result = work(tmp_path / "weights.safetensors", "closed")
    assert result.returncode == 0, result.stderr
    assert size > 80 << 20 and int(result.stdout) < 2 << 10  # KiB
    assert_equal(safetensors.load_file(tmp_path / "weights.safetensors"), perturbed(some(scale=10_000), [0, 1]))


def test_shards_of_a_folder(tmp_path):
    tensors = some()
    first = {name: tensors[name] for name in ("embed", "number")}
    others = {name: t for name, t in tensors.items() if name not in first}
    write(tmp_path / "a.safetensors", first)
    write(tmp_path / "b.safetensors", others)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(first, "a.safetensors") | dict.fromkeys(others, "b.safetensors")})
    )
    weights = MappedWeights(tmp_path)
    assert_equal(weights.tensors, tensors)
    with weights.writing():
        zokern.ops.add_noise_(zokern.Layout(sorted(weights.tensors.items())), [(zokern.NoiseKey(7, 0), 0.01)])
    assert (tmp_path / "model.safetensors.index.json.unsynced").exists()
    weights.close()
    found = safetensors.load_file(tmp_path / "a.safetensors") | safetensors.load_file(tmp_path / "b.safetensors")
    assert_equal(found, perturbed(tensors, [0]))
    write(tmp_path / "b.safetensors", tensors)
    with pytest.raises(BadInput, match="b.safetensors' holds 'embed', and so does another file"):
        MappedWeights(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(BadInput, match="b.safetensors' is no file") as raised:
        MappedWeights(tmp_path)
    assert raised.tb and MappedWeights(tmp_path / "a.safetensors")  # nothing of what failed holds it
