"""Training whose theta lies in a file or in host memory: the bits of training in memory, and no update that is not whole."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Transformer
from mapped_cases import assert_equal
from optimizer_cases import SVRG

import zokern
from zokern import MeZO, Streamed
from zokern.errors import BadInput, Unwritable
from zokern.estimators import source as sources
from zokern.mapped import MappedWeights, write

pytest.importorskip("safetensors")
SIXTEEN = [torch.bfloat16, torch.float16]
WORKER = Path(__file__).parent.parent / "source_worker.py"


def made(dtype=torch.float32):
    torch.manual_seed(0)
    return Transformer().eval().to(dtype)


def theta(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(model, tokens, make, steps=3, **options):
    """-> (optimizer, losses) of a run with a model's weights."""
    optimizer = make(model.named_parameters(), **{"lr": 1e-3, **options})
    return optimizer, [float(optimizer.step(lambda: model(tokens))) for _ in range(steps)]


@pytest.fixture
def path(tmp_path):
    """dtype -> the folder with the weights of the transformer."""

    def make(dtype=torch.float32):
        write(tmp_path / "weights" / "model.safetensors", dict(made(dtype).named_parameters()))
        return tmp_path / "weights"

    return make


def by_blocks(params, **options):
    params = list(params)
    return MeZO(params, blocks=[[p for _, p in params[:1]], [p for _, p in params[1:]]], **options)


MAKE = {
    "mezo": MeZO,
    "q=2": partial(MeZO, q=2),
    "one-sided": partial(MeZO, estimator="one-sided"),
    "blocks": by_blocks,
    "sparse": partial(MeZO, sparsity=0.3),
    "signs": partial(MeZO, noise="rademacher"),
    "deferred": partial(MeZO, defer=True),
    "decay": partial(MeZO, weight_decay=0.1),
    "adam": zokern.ZOAdam,
    "adamezo": partial(zokern.AdaMeZO, history=2),
    "svrg, replay": partial(SVRG, anchor="replay", lr_full=1e-3, q=2),
    "svrg, copy": partial(SVRG, anchor="copy", lr_full=1e-3, q=2),
}
ROUNDED = [("nearest", torch.float32), *((rounding, dtype) for rounding in ("nearest", "stochastic") for dtype in SIXTEEN)]
CASES = [(name, "nearest", torch.float32) for name in MAKE] + [(name, *how) for name in ("mezo", "adam", "blocks") for how in ROUNDED[1:]]


@pytest.mark.parametrize("name, rounding, dtype", CASES)
def test_a_run_in_a_file_is_the_run_in_memory(name, rounding, dtype, path, tokens, tmp_path):
    plain, model, folder = made(dtype), made(dtype), path(dtype)
    alone, losses = trained(plain, tokens, MAKE[name], rounding=rounding, perturbation=Streamed(plain))
    streamed = Streamed(model, source=folder)
    shutil.copytree(folder, tmp_path / "base")
    optimizer = MAKE[name](model.named_parameters(), lr=1e-3, rounding=rounding, perturbation=streamed)
    with zokern.record(optimizer, tmp_path / "log.jsonl"):
        found = [float(optimizer.step(lambda: model(tokens))) for _ in range(3)]
    for each in (alone, optimizer):
        each.flush()
    assert found == losses
    streamed.source.close()
    file = MappedWeights(folder)
    assert_equal(file.tensors, theta(plain))
    again, base = made(dtype), MappedWeights(tmp_path / "base")
    base.attach(again)
    with base.writing():
        zokern.Trajectory.read(tmp_path / "log.jsonl").replay(again)
    assert_equal(base.tensors, file.tensors)


def test_a_model_without_memory_and_a_file_that_is_open(path, tokens):
    model, plain, file = made().to("meta"), made(), MappedWeights(path())
    model.head.weight = model.embed.weight
    streamed = Streamed(model, source=file)
    assert streamed.source is file
    _, losses = trained(plain, tokens, MeZO, perturbation=Streamed(plain))
    assert trained(model, tokens, MeZO, perturbation=streamed)[1] == losses
    assert_equal(file.tensors, theta(plain))


def worker(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(zokern.__file__).parent.parent), str(WORKER.parent)])}
    return subprocess.run([sys.executable, WORKER, *map(str, arguments)], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("end", ["between", "measuring", "inside"])
def test_a_killed_run_is_whole_or_found_and_made_again_by_its_log(end, path, tokens, tmp_path):
    folder, log, plain = path(), tmp_path / "log.jsonl", made()
    done = worker(folder, log, 2, end)
    assert done.returncode == -9, done.stderr
    trained(plain, tokens, by_blocks, 2, perturbation=Streamed(plain))
    if end == "inside":
        with pytest.raises(BadInput, match="a process ended in the middle of an update of it: write its base weights again.*replay"):
            Streamed(made(), source=folder)
        write(folder / "model.safetensors", dict(made().named_parameters()))
        model, file = made(), MappedWeights(folder)
        file.attach(model)
        with file.writing():
            zokern.Trajectory.read(log).replay(model)
        file.close()
    assert len(zokern.Trajectory.read(log)) == 2
    assert_equal(MappedWeights(folder).tensors, theta(plain))


def test_a_saved_state_goes_on_in_another_file(path, tokens, tmp_path):
    model, plain, folder = made(), made(), path()
    optimizer, _ = trained(model, tokens, zokern.ZOAdam, 2, perturbation=Streamed(model, source=folder))
    state = pickle.loads(pickle.dumps(optimizer.state_dict()))
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors.unsynced").unlink()
    other = made()
    later = zokern.ZOAdam(other.named_parameters(), lr=1e-3, perturbation=Streamed(other, source=tmp_path / "other"))
    later.load_state_dict(state)
    later.step(lambda: other(tokens))
    copy.copy(optimizer).step(lambda: model(tokens))
    trained(plain, tokens, zokern.ZOAdam, 3, perturbation=Streamed(plain))
    assert_equal(theta(other), theta(plain))
    assert_equal(theta(model), theta(plain))


@pytest.mark.parametrize("take", [copy.deepcopy, pickle.dumps])
def test_a_file_is_not_copied_with_an_optimizer(take, path, tokens):
    model = made()
    optimizer, _ = trained(model, tokens, MeZO, 1, perturbation=Streamed(model, source=path()))
    with pytest.raises(TypeError, match="neither be copied nor pickled.*state_dict"):
        take(optimizer)
    assert torch.isfinite(optimizer.step(lambda: model(tokens)))


def test_an_update_that_cannot_be_written_is_not_made_later(path, tokens):
    """The disk is full, say, as the marker is written: the weights are as they were, and so is the step that is to be made."""
    model, plain, folder = made(), made(), path()
    optimizer, _ = trained(model, tokens, MeZO, 1, perturbation=Streamed(model, source=folder))
    marker = folder / "model.safetensors.unsynced"
    marker.unlink()
    marker.mkdir()
    before = theta(model)
    with pytest.raises(Unwritable, match="unsynced"):
        optimizer.step(lambda: model(tokens))
    assert_equal(theta(model), before)
    marker.rmdir()
    for _ in range(2):
        optimizer.step(lambda: model(tokens))
    trained(plain, tokens, MeZO, 3, perturbation=Streamed(plain))
    assert_equal(theta(model), theta(plain))


def test_an_update_that_is_refused_leaves_the_file_whole(path, tokens):
    model, folder = made(), path()
    optimizer, _ = trained(model, tokens, MeZO, 1, perturbation=Streamed(model, source=folder))
    before, lr = theta(model), optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = torch.ones(1, 2)
    with pytest.raises(ValueError, match="shape"):
        optimizer.step(lambda: model(tokens))
    assert_equal(theta(model), before)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step(lambda: model(tokens))
    optimizer._kind.source.close()
    MappedWeights(folder)


def test_bad_sources(path, tokens, tmp_path):
    with pytest.raises(TypeError, match='source=7: pass a zokern.mapped.MappedWeights, the path .* or "host"'):
        Streamed(made(), source=7)
    with pytest.raises(BadInput, match="of the model has"):
        Streamed(Transformer(8), source=path())
    Streamed(made(), source=tmp_path / "weights").source.close()  # the file that did not fit was let go
    with pytest.raises(BadInput, match="is no file"):
        Streamed(made(), source=tmp_path / "missing")
    with pytest.raises(ValueError, match='source="host": .* on the meta device .* pass source=PATH'):
        Streamed(made().to("meta"), source="host")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(ValueError, match="share memory.*tie them as one"):
        Streamed(model, source="host")


def test_a_half_by_backpropagation_is_refused(path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(config)
    write(path() / "llama.safetensors", dict(model.named_parameters()))
    zo = partial(MeZO, lr=1e-3, perturbation=Streamed(model, source=path() / "llama.safetensors"))
    with pytest.raises(ValueError, match="zo makes MeZO with zokern.Streamed.*pass MeZO instead of Hybrid"):
        zokern.Hybrid(model, zo=zo, fo=partial(torch.optim.SGD, lr=1e-3), split=zokern.splits.Depth(1))


def test_host_memory(tokens, monkeypatch):
    """On the CPU theta is there already. As if the model computed elsewhere, each part is copied first: the same bits."""
    plain, model = made(), made()
    _, losses = trained(plain, tokens, MeZO, perturbation=Streamed(plain))
    assert trained(model, tokens, MeZO, perturbation=Streamed(model, source="host"))[1] == losses
    assert_equal(theta(model), theta(plain))
    monkeypatch.setattr("zokern.estimators.streamed._elsewhere", lambda model, device: torch.device("cpu"))
    model = made()
    streamed = Streamed(model, source="host", device="cpu")
    assert streamed.offloaded and trained(model, tokens, MeZO, perturbation=streamed)[1] == losses
    assert_equal(theta(model), theta(plain))
    assert copy.deepcopy(streamed).offloaded


def test_where_a_model_computes():
    model = made()
    assert sources.device_of(model) == torch.device("cpu")
    model.blocks.to("meta")
    assert sources.device_of(model) == torch.device("cpu")
    assert sources.device_of(model.to("meta")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_theta_in_host_memory_or_a_file_while_a_gpu_computes(dtype, path, tokens):
    tokens, found = tokens.cuda(), []
    for source in (None, "host", path(dtype)):
        model = made(dtype).cuda()
        streamed = Streamed(model, source=source)
        optimizer, losses = trained(model, tokens, MeZO, perturbation=streamed)
        assert {p.device.type for p in model.parameters()} == {"cpu" if source else "cuda"}
        assert source != "host" or all(p.is_pinned() for p in model.parameters())
        with torch.no_grad(), streamed.running():
            found.append((*losses, float(model(tokens))))
    assert found[0] == found[1] == found[2]
