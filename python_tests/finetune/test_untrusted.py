"""What others made, a model's folder or a run's, runs no code unless the command line says so, each time."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("typer")
peft = pytest.importorskip("peft")

from command_line import equal, zokern  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402

ROOT = Path(__file__).parents[2]
TRUST = "--trust-remote-code"
CODE = """
from pathlib import Path
import torch
from transformers import BertTokenizerFast, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

Path({marker!r}).touch()

class Config(PretrainedConfig):
    model_type = "own"
    width, vocab_size = 8, 30522

class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.EmbeddingBag(config.vocab_size, config.width)
        self.classifier = torch.nn.Linear(config.width, config.num_labels)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.zeros_(module.bias)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        return SequenceClassifierOutput(logits=self.classifier(self.words(input_ids)))

class Tokenizer(BertTokenizerFast):
    pass
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where transformers copies code that it is to run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def marker(tmp_path):
    """A file that the code of the models and files here makes, should it ever run."""
    return tmp_path / "ran"


@pytest.fixture
def own(tmp_path, tokenizer, marker):
    """A folder of a model with code of its own."""
    folder = tmp_path / "own"
    tokenizer.save_pretrained(folder)
    (folder / "code_of_own.py").write_text(CODE.format(marker=str(marker)))
    auto = {"AutoConfig": "code_of_own.Config", "AutoModelForSequenceClassification": "code_of_own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    weight = torch.randn(30522, 8, generator=torch.Generator().manual_seed(0))
    torch.save({"words.weight": weight}, folder / "pytorch_model.bin")
    return folder


def refused(*given):
    """A command that is refused, with "y" waiting at the question that transformers would ask."""
    done = subprocess.run(
        [sys.executable, "-m", "zokern", *map(str, given)],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    return done.stderr


def test_code_of_a_model_is_not_run_though_the_answer_is_yes(few, tmp_path, own, marker):
    error = refused("finetune", *few, "--model", own)
    assert f"--model '{own}' comes with Python code of its own, which is not run: read it, and pass {TRUST}" in error
    assert not marker.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("of", ["tokenizer", "class"])
def test_code_beside_a_model_that_transformers_knows(few, tmp_path, tiny, own, marker, of):
    """Classes that are known here are taken instead of the folder's."""
    shutil.copytree(tiny, tmp_path / "known")
    shutil.copy(own / "code_of_own.py", tmp_path / "known")
    name = "tokenizer_config.json" if of == "tokenizer" else "config.json"
    config = json.loads((tmp_path / "known" / name).read_text())
    if of == "tokenizer":
        config |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "code_of_own.Tokenizer"]}}
    else:
        config["auto_map"] = {"AutoConfig": "code_of_own.Config", "AutoModelForSequenceClassification": "code_of_own.Model"}
    (tmp_path / "known" / name).write_text(json.dumps(config))
    zokern("finetune", *few, "--model", tmp_path / "known")
    assert not marker.exists()


def test_trust_is_asked_for_each_time(few, tmp_path, own, marker):
    """Not taken from run.json, which may be a stranger's, nor from a configuration file."""
    run = tmp_path / "run"
    said = zokern("finetune", *few, "--model", own, TRUST, "--lr", "1e-2", "--save-every", "2")
    assert marker.exists() and f"from_pretrained('{run}', trust_remote_code=True)" in said
    assert json.loads((run / "run.json").read_text())["settings"]["trust_remote_code"] is True
    marker.unlink()
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    (run / "metrics.json").unlink()
    commands = {
        "evaluate": ["evaluate", "--model", run],
        "replay": ["replay", run, "--out", tmp_path / "again"],
        "config": ["finetune", "--config", run / "run.json", "--out", tmp_path / "new"],
        "resume": ["finetune", "--resume", run],
    }
    for given in commands.values():
        assert TRUST in zokern(*given, code=2), given
    assert not marker.exists() and not (tmp_path / "again").exists() and not (tmp_path / "new").exists()
    for given in commands.values():
        zokern(*given, TRUST)
    assert marker.exists() and equal(tmp_path / "again", run) and equal(tmp_path / "new", run)
    (tmp_path / "trusting.yaml").write_text("trust-remote-code: true\n")
    error = zokern("finetune", "--config", tmp_path / "trusting.yaml", code=2)
    assert "'trust-remote-code' is of the command line alone: remove it" in error


def test_an_adapter_runs_no_code_of_its_base(few, tmp_path, own, marker, tiny, sst2):
    model = AutoModelForSequenceClassification.from_pretrained(tiny)
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"base_model_name_or_path": str(own)}))
    error = zokern("evaluate", "--model", tmp_path / "adapter", "--task", "sst2", "--data", sst2, code=2)
    assert "is an adapter" in error and f"'{own}' comes with Python code of its own" in error and not marker.exists()


class Spiteful:
    """Unpickled it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickles_hold_numbers_alone(few, tmp_path, tiny, sst2, marker):
    """Weights of a model and of an adapter, and every pickle of a checkpoint."""
    torch.load(_pickled(tmp_path / "it", marker), weights_only=False)
    assert marker.exists()  # it would
    marker.unlink()
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    _pickled(tmp_path / "model" / "pytorch_model.bin", marker)
    assert "cannot be loaded" in zokern("finetune", *few, "--model", tmp_path / "model", code=2)
    run = tmp_path / "run"
    zokern("finetune", *few, "--adapter", "lora")
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    _pickled(tmp_path / "adapter" / "adapter_model.bin", marker)
    given = ["--task", "sst2", "--data", sst2, "--max-length", "32"]
    assert "cannot be loaded" in zokern("evaluate", "--model", tmp_path / "adapter", *given, code=2)
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    checkpoint = run / "checkpoints" / "checkpoint-2"
    pickles = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {path.name for path in pickles}
    for path in pickles:
        before = path.read_bytes()
        _pickled(path, marker)
        if path.name == "training_args.bin":
            continue  # which nobody reads
        zokern("finetune", "--resume", run, code=2)
        path.write_bytes(before)
    assert not marker.exists()


def _pickled(path, marker):
    torch.save({"it": Spiteful(marker)}, path)
    return path


def test_every_call_that_could_run_code_says_that_it_does_not():
    """In the package, its examples and benchmarks: transformers and datasets ask on standard input where they are not told."""
    for path in (path for folder in ("zokern", "examples", "bench") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called, given = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if node.func.attr in ("from_pretrained", "load_dataset") and not called.startswith("peft."):
                    if called.endswith("GenerationConfig.from_pretrained"):
                        continue  # it reads JSON alone, and would keep what it is told
                    trusted = given.get("trust_remote_code")
                    assert trusted in ("False", "trust", "settings.trust_remote_code"), f"{path}:{node.lineno} {called}"
                assert called != "torch.load" or given.get("weights_only") == "True", f"{path}:{node.lineno}"
                assert called not in ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"), f"{path}:{node.lineno}"
                assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
