"""Options by all their names: those of the Hugging Face Trainer, those of earlier versions, and those that optimizers declare."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("typer")

from command_line import changed, equal, zokern  # noqa: E402
from peft.optimizers import create_loraplus_optimizer  # noqa: E402

from zokern.cli.options import configured  # noqa: E402
from zokern.errors import BadInput  # noqa: E402
from zokern.finetune import Settings  # noqa: E402
from zokern.finetune.optimizers import make, with_rates  # noqa: E402
from zokern.finetune.options import options_of, title  # noqa: E402
from zokern.optim import ZerothOrder, contract  # noqa: E402
from zokern.optim.settings import COMMON, STATE_DTYPE  # noqa: E402

ROOT = Path(__file__).parents[2]
OLD = ROOT / "python_tests/vectors/run_settings_before_task_type.json"  # run.json's settings, as zokern wrote them when it was --ask
TRAINERS = {
    "lr": ("learning_rate", "1e-3"),
    "steps": ("max_steps", "2"),
    "batch_size": ("per_device_train_batch_size", "4"),
    "accumulate": ("gradient_accumulation_steps", "2"),
    "eval_every": ("eval_steps", "1"),
    "save_every": ("save_steps", "2"),
    "schedule": ("lr_scheduler_type", "constant"),
    "rank": ("lora_r", "4"),
    "lr_ratio": ("loraplus_lr_ratio", "2"),
    "virtual_tokens": ("num_virtual_tokens", "7"),
    "out": ("output_dir", "run"),
}


def test_other_names_of_an_option_are_those_of_trainer_and_peft():
    trainer = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    adapters = {f"lora_{f.name}" for f in dataclasses.fields(peft.LoraConfig)} | {
        f.name for f in dataclasses.fields(peft.PromptTuningConfig)
    }
    adapters |= set(inspect.signature(create_loraplus_optimizer).parameters)
    found = {option.name: option.aliases for option in options_of(Settings).values() if option.aliases}
    assert found == {name: (alias,) for name, (alias, _) in TRAINERS.items()}
    assert {alias for alias, _ in TRAINERS.values()} <= trainer | adapters


def test_trainers_names_reach_the_run(few, tmp_path, monkeypatch):
    """On the command line, where of an option that is given twice the last one holds, and in a file."""
    monkeypatch.chdir(tmp_path)
    values = {alias: value for alias, value in TRAINERS.values() if alias != "num_virtual_tokens"}
    given = [text for alias, value in values.items() for text in (title(alias), value)]
    zokern("finetune", *few, "--max-steps", "9", "--adapter", "lora", *given, "--steps", "3", "--max-steps", "2")
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    expected = dict(lr=1e-3, steps=2, batch_size=4, accumulate=2, eval_every=1, save_every=2, schedule="constant", rank=4, lr_ratio=2)
    assert {name: settings[name] for name in expected} == expected and settings["out"] == "run"
    (tmp_path / "all.yaml").write_text("".join(f"{alias}: {value}\n" for alias, value in values.items()))
    assert configured(tmp_path / "all.yaml", "finetune", options_of(Settings)) == expected | {"out": "run"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("max_steps: 2\nsteps: 3\n", "'steps' is there twice as 'max_steps': remove one"),
        ("learning-rate: 2.0\nlearning_rate: 3.0\n", "'learning_rate' is there twice as 'learning-rate': remove one"),
        ("learning-rat: 2.0\n", "'learning-rat' is no option of finetune (did you mean 'learning_rate'?)"),
        ("max_steps: two\n", "'max_steps' two: pass an integer"),
        ("momentum: true\n", "'momentum' is True: pass a number"),
    ],
)
def test_names_in_a_file_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        configured(tmp_path / "a.yaml", "finetune", options_of(Settings))
    assert message in str(error.value)


def test_settings_of_an_earlier_version_are_read():
    """Every option stands in them, null or false where nobody gave it, and --task-type by its name of then."""
    record = json.loads(OLD.read_text())
    settings = Settings.of(record)
    expected = dict(model="a/model", task="sst2", task_type="masked", optimizer="zo-adam", betas=(0.8, 0.9), q=2, lr=1e-3, eps=1e-2)
    then = dict(perturbation="in-place", rounding="nearest")  # as all runs were, when there was no option for it
    assert settings == Settings.flat(expected | then | dict(device="cpu", out="run")).checked()
    assert settings.optimizer_settings == {"betas": (0.8, 0.9), "q": 2, **then}
    again = settings.record()
    known = record | then | {"task_type": "masked"}
    assert again == {name: known.get(name) for name in again}
    with pytest.raises(BadInput, match="'task_type' is missing"):
        Settings.of({name: value for name, value in record.items() if name != "ask"})


def test_a_run_of_an_earlier_version_is_gone_on_with_replayed_and_configures_another(few, tmp_path):
    zokern("finetune", *few, "--lr", "1e-3", "--q", "2")
    run, place = tmp_path / "run", tmp_path / "run" / "run.json"
    record = json.loads(place.read_text())
    old = json.loads(OLD.read_text())
    settings = {name: record["settings"].get("task_type" if name == "ask" else name, False if old[name] is False else None) for name in old}
    place.write_text(json.dumps(record | {"settings": settings}))
    zokern("replay", run, "--out", tmp_path / "again")
    zokern("finetune", "--config", place, "--out", tmp_path / "configured")
    assert equal(run, tmp_path / "again") and equal(run, tmp_path / "configured")
    (run / "metrics.json").unlink()
    zokern("finetune", "--resume", run, "--steps", "5")
    assert json.loads(place.read_text())["settings"]["task_type"] == "head"


def test_flags_that_are_on_can_be_taken_off(few, tmp_path):
    def recorded(*given):
        zokern("finetune", *few, "--optimizer", "zo-adam", "--overwrite", *given)
        log = (tmp_path / "run" / "trajectory.jsonl").read_text()
        settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
        return json.loads(log.split("\n", 1)[0])["groups"][0]["bias_correction"], settings.get("bias_correction")

    assert [recorded(), recorded("--bias-correction"), recorded("--no-bias-correction")] == [(True, None), (True, True), (False, False)]
    (tmp_path / "a.yaml").write_text("bias_correction: false\n")
    assert recorded("--config", tmp_path / "a.yaml") == (False, False)


def test_settings_that_the_run_has_of_its_own():
    with pytest.raises(BadInput, match="optimizer_settings holds 'lr', .* pass Settings.lr=...."):
        Settings(optimizer_settings={"lr": 1e-3}).checked()
    with pytest.raises(BadInput, match="--eps is no option of --optimizer forward-gradient: leave it out, or pass .*mezo or"):
        Settings(optimizer="forward-gradient", eps=1e-3).checked()


def test_rates_and_dtypes_of_an_optimizer_are_known_by_their_declaration(settings, monkeypatch):
    """Whatever they are called: an optimizer with a second learning rate and a dtype, which no option of before has the names of."""
    monkeypatch.setattr(contract, "_classes", contract._classes.copy())

    @contract.register
    class TwoRates(ZerothOrder):
        name = "two-rates"
        settings = {
            "lr_slow": dataclasses.replace(COMMON["lr"], times_lr=0.25),
            "slow_dtype": dataclasses.replace(STATE_DTYPE, shared=False),
        }

        def __init__(self, params, lr=1e-6, lr_slow=1e-7, eps=1e-3, seed=0, slow_dtype=torch.float32):
            super().__init__(params, dict(lr=lr, lr_slow=lr_slow, eps=eps, seed=seed, slow_dtype=slow_dtype))

    run = changed(settings, optimizer="two-rates", lr=4e-3, slow_dtype="bfloat16").checked()
    cls, options = make(with_rates(run), torch.nn.Linear(2, 2))
    assert cls is TwoRates and options["lr_slow"] == 1e-3 and options["slow_dtype"] is torch.bfloat16
    _, options = make(with_rates(dataclasses.replace(run, optimizer_settings={"lr_slow": 0.5})), torch.nn.Linear(2, 2))
    assert options["lr_slow"] == 0.5
    assert with_rates(changed(settings, optimizer="mezo-svrg", lr=4e-3).checked()).optimizer_settings["lr_full"] == pytest.approx(4e-2)


COMMANDS = """
import json, sys
from command_line import zokern
print(json.dumps([zokern(*given, code=code) for given, code in json.loads(sys.argv[1])]))
"""


def test_an_optimizer_of_another_package_is_an_option(few, tmp_path):
    """Installed, with an entry point and no edit here: it trains, its setting is an option with help and range, its log is replayed."""
    installed = tmp_path / "outside-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[zokern.optimizers]\nsign-momentum = own_optimizer:SignMomentum\n")
    given = ["finetune", *map(str, few), "--optimizer", "sign-momentum", "--lr", "4e-3", "--momentum", "0"]
    commands = [
        ([*given, "--power", "1"], 0),
        (["replay", str(tmp_path / "run"), "--out", str(tmp_path / "again")], 0),
        ([*given, "--power", "2", "--out", str(tmp_path / "no")], 2),
        ([*given, "--delta", "0.5", "--out", str(tmp_path / "no")], 2),
        (["finetune", "--help"], 0),
    ]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "python_tests"), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "300"}
    call = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said[2] == "error: --power 2.0: pass a number in [0, 1]\n"
    assert said[3].startswith("error: --delta is no option of --optimizer sign-momentum: leave it out, or pass ")
    assert said[3].endswith(" or zo-adam\n")
    told = " ".join(said[4].split())
    assert "--power" in told and "sign-momentum: Of the projected gradient's size: 0 is the sign alone (a number in [0, 1])." in told
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["power"] == 1 and not (tmp_path / "no").exists()
    zokern("finetune", *few, "--out", tmp_path / "mezo", "--lr", "4e-3")
    assert equal(tmp_path / "run", tmp_path / "again")
    assert all(a.allclose(b, atol=1e-6) for a, b in zip(*(_model(tmp_path / name).parameters() for name in ("run", "mezo"))))


def _model(folder):
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)
