"""``zokern finetune --offload``: the run without it, bit for bit; cut short and gone on with; refusals."""

import json
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")

from command_line import equal, zokern  # noqa: E402

from zokern.finetune import offload  # noqa: E402

DISK = ["--offload", "disk"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny):
    """The folder of the tiny BERT with a head for SST-2."""
    folder = tmp_path_factory.mktemp("models") / "classifier"
    shutil.copytree(tiny, folder)
    torch.manual_seed(0)
    labels = dict(num_labels=2, id2label={0: "terrible", 1: "great"}, label2id={"terrible": 0, "great": 1})
    transformers.AutoModelForSequenceClassification.from_pretrained(tiny, **labels).save_pretrained(folder)
    return folder


def metrics(run):
    found = json.loads((run / "metrics.json").read_text())
    return {name: found[name] for name in ("before", "after", "test", "best", "steps", "forwards", "skipped")}


def trajectory(run):
    header, *steps = (run / "trajectory.jsonl").read_text().splitlines()
    return steps


def left(folder):
    return [path.name for path in Path(folder).rglob(".zokern*")]


@pytest.mark.parametrize(
    "kind, given",
    [
        ("head", ["--perturbation", "streamed", "--keep", "best", "--lr", "1e-3"]),
        ("head", ["--perturbation", "streamed", "--optimizer", "mezo-svrg", "--anchor", "replay", "--q", "2", "--lr", "1e-4"]),
        ("causal", ["--task-type", "causal", "--dtype", "bfloat16", "--lr", "1e-3", "--blocks"]),
        ("masked", ["--task-type", "masked", "--dtype", "float16", "--rounding", "nearest", "--q", "2", "--lr", "1e-3"]),
    ],
)
def test_the_same_run_in_a_file(kind, given, few, classifier, language_models, tmp_path):
    model = classifier if kind == "head" else language_models[kind]
    given = [*few, *given, "--model", model]
    plain, run = tmp_path / "plain", tmp_path / "run"
    zokern("finetune", *given, "--out", plain)
    said = zokern("finetune", *given, *DISK)
    assert equal(plain, run) and metrics(plain) == metrics(run) and trajectory(plain) == trajectory(run)
    assert not left(run) and "memory" in said
    zokern("replay", run, "--out", tmp_path / "again")
    step = json.loads((run / "metrics.json").read_text())["best"]["step"] if "best" in given else 4
    zokern("replay", run, "--out", tmp_path / "kept", "--step", step)
    assert equal(run, tmp_path / "kept") and not left(tmp_path / "again") and not left(tmp_path / "kept")
    for folder in (plain, run):
        zokern("evaluate", "--model", folder, "--metrics", tmp_path / f"{folder.name}.json")
    found, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "plain"))
    assert {**found, "model": 0} == {**expected, "model": 0}


def test_interrupted_and_gone_on_with(few, classifier, tmp_path, monkeypatch):
    from zokern.finetune import train

    given, run = [*few, "--perturbation", "streamed", "--model", classifier, "--lr", "1e-3", "--save-every", "1"], tmp_path / "run"
    zokern("finetune", *given, "--out", tmp_path / "plain")
    seen, ends = [], train.Training.on_step_end

    def stop(self, args, state, control, **kwargs):
        ends(self, args, state, control, **kwargs)
        seen.extend(path.name for path in run.glob(".zokern-weights*"))
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "on_step_end", stop)
        zokern("finetune", *given, *DISK, code=130)
    assert not (run / "metrics.json").exists() and not left(run)
    assert {*seen} == {".zokern-weights.safetensors", ".zokern-weights.safetensors.unsynced"}
    zokern("finetune", "--resume", run)
    assert equal(tmp_path / "plain", run) and trajectory(tmp_path / "plain") == trajectory(run)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.json").unlink()
    zokern("finetune", "--resume", run)
    assert equal(tmp_path / "plain", run) and not left(run)
    zokern("finetune", "--resume", run, "--steps", "5")
    assert metrics(run)["steps"] == 5 and not left(run)


def test_a_record_of_before(few, classifier, tmp_path):
    """Of a zokern that knew no --offload."""
    zokern("finetune", *few, "--model", classifier)
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record["settings"].pop("offload", 0) is None
    path.write_text(json.dumps(record))
    zokern("finetune", "--resume", tmp_path / "run", "--steps", "5")


@pytest.mark.parametrize(
    "given, said",
    [
        (["--optimizer", "hybrid"], "--optimizer hybrid with --offload disk: it takes derivatives"),
        (["--optimizer", "forward-gradient"], "--optimizer forward-gradient with --offload disk: it takes derivatives"),
        (["--optimizer", "zo-adam"], "--optimizer zo-adam with --offload disk keeps state in memory, as much as the weights: pass mezo"),
        (["--optimizer", "mezo-svrg"], "with --offload disk would keep a copy of the weights in memory: pass --anchor replay"),
        (["--perturbation", "in-place"], "--perturbation in-place with --offload disk, whose weights are streamed: leave it out"),
        (["--adapter", "lora"], "--adapter lora with --offload disk, which trains the model's own weights: pass --adapter full"),
        (["--head", "probe"], "--head probe with --offload disk: fit it in a run of --adapter head"),
        (["--offload", "host"], "--device cpu with --offload host: the weights are there already: leave out --offload"),
        (["--offload", "cloud"], "--offload cloud: pass one of host, disk"),
        ([], "lacks 'classifier.weight' of the model: call BertForSequenceClassification.from_pretrained("),
    ],
)
def test_what_is_refused(given, said, few, tmp_path):
    """The last one for its new head."""
    assert said in " ".join(zokern("finetune", *few, *DISK, *given, code=2).split())
    assert not (tmp_path / "run").exists()


def test_a_file_of_no_room(few, classifier, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zokern.mapped.file._write_values", full)
    assert "No space left on device" in zokern("finetune", *few, *DISK, "--model", classifier, code=2)
    assert not (tmp_path / "run").exists()


def test_own_memory():
    memory = offload.OwnMemory()
    memory.EVERY = 0.001
    with memory.watched():
        before = torch.ones(30 << 20)
        threading.Event().wait(0.05)
        del before
    assert 120 < memory.peak_mib
