"""Trainer of a sharded model, cut by from_pretrained (tensor parallel, FSDP2) or by accelerate's FSDP2: the run of one process."""

import hf_sharded_worker as worker
import pytest
import torch
from hf_cases import farthest, same
from processes import results

import zokern

HOW = ("native", "fsdp2", "tp")
# |difference| of weights from those of one process. float32: a loss near 5 is rounded otherwise by some 5e-7, over 2 eps = 2e-2, times
# lr |z| = 4e-3, in each of 4 steps. bfloat16: weights near 2 are 2**-7 apart, and losses differ by rounding.
APART = {torch.float32: 1e-6, torch.bfloat16: 2**-5}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("sharded")
    worker.save_base(out / "base")
    worker.save_base(out / "tied", tie_word_embeddings=True)
    return out


@pytest.fixture(scope="module")
def one(out):
    return {name: worker.run(out, "whole", name) for name in worker.CASES}


@pytest.fixture(scope="module", params=HOW)
def runs(request, out, one):
    """-> (how the model is cut, what each of two processes found)."""
    return request.param, results(worker.__file__, 2, out, request.param, name=request.param)


@pytest.mark.parametrize("name", worker.CASES)
def test_they_train_as_one_process_does(name, runs, one):
    how, found = runs
    expected, dtype = one[name], worker.CASES[name][2]
    first, second = (each[name] for each in found)
    assert same(first["weights"], second["weights"]) and first["losses"] == second["losses"]
    plain = how == "native" and "LoRA" in name  # an adapter that was added to a model that was cut before
    assert ("DTensor" in first["kinds"]) != plain and farthest(first["weights"], expected["weights"]) < APART[dtype]
    assert first["losses"] == pytest.approx(expected["losses"], rel=1e-6 if dtype == torch.float32 else 5e-3)
    assert bool(first["theta"]) == (dtype == torch.bfloat16)  # a sharded model in 16 bits is not streamed


@pytest.fixture(scope="module")
def shared_out(out, one):
    return results(worker.__file__, 2, out, "directions", name="directions")


@pytest.mark.parametrize("name", worker.CASES)
def test_processes_that_share_out_directions(name, shared_out, one):
    """They are one process, bit for bit, and each evaluates half as often."""
    for found in shared_out:
        each = found[name]
        for what in ("weights", "resumed", "saved"):
            assert same(each[what], one[name]["weights"])
        assert each["losses"] == one[name]["losses"] and each["calls"] * 2 == one[name]["calls"]


@pytest.mark.parametrize("name", worker.CASES)
def test_what_they_save_is_whole_and_goes_on(name, runs):
    """In the model's folder, in checkpoints of Trainer, and in a log that is replayed on the whole model."""
    how, found = runs
    for each in found:
        assert same(each[name]["saved"], each[name]["weights"]) and same(each[name]["resumed"], each[name]["weights"])


@pytest.mark.parametrize("name", worker.CASES)
def test_one_log_is_replayed_on_the_whole_model(name, runs, out):
    how, found = runs
    model = worker.model_of(out / "base", "whole", name)
    zokern.Trajectory.read(out / f"{how}-{name.replace(', ', '-')}.jsonl").replay(model)
    assert same(dict(model.named_parameters()), found[0][name]["weights"])


@pytest.mark.parametrize("name", worker.CASES)
def test_each_row_is_predicted_once(name, runs, one):
    """Also where several processes have the same rows, of which Trainer would count each."""
    for each in runs[1]:
        assert each[name]["predicted"] == one[name]["predicted"] and torch.equal(each[name]["labels"], one[name]["labels"])
        assert each[name]["before"] == pytest.approx(one[name]["before"], rel=5e-3)  # batches that are filled up count as others do


def test_weights_that_were_tied_after_they_were_cut_are_refused(runs):
    how, found = runs
    if how != "native":
        pytest.skip("transformers alone ties them afterwards, and it cuts them into DTensors with FSDP2")
    for each in found:
        assert "was tied to another after fully_shard, which keeps two copies of it" in each["tied"]
