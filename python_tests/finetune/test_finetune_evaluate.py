"""zokern evaluate on what a run leaves behind: its adapters, its rows."""

import json
import shutil

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")
peft = pytest.importorskip("peft")

from command_line import zokern  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402


def of(path):
    return json.loads(path.read_text())


def judged(tmp_path, *given):
    zokern("evaluate", *given, "--metrics", tmp_path / "judged.json")
    return of(tmp_path / "judged.json")


def close(found, expected):
    """Float32, merged or not: a rounding of each weight."""
    return found.keys() == {*expected, "rows"} and all(found[name] == pytest.approx(expected[name], abs=1e-5) for name in expected)


@pytest.mark.parametrize("adapter", ["lora", "dora", "prefix", "prompt"])
def test_the_folder_of_an_adapter_is_judged(few, tmp_path, sst2, adapter):
    """In a run's folder and in its checkpoints it knows the run; elsewhere it is asked what it is told to be asked."""
    run = tmp_path / "run"
    zokern("finetune", *few, "--adapter", adapter, "--lr", "0.05")
    result = of(run / "metrics.json")
    assert result["after"]["loss"] != result["before"]["loss"]
    for folder in (run / "adapter", run / "checkpoints" / "checkpoint-4", run):
        found = judged(tmp_path, "--model", folder)
        assert close(found["held_out"], result["after"]) and close(found["test"], result["test"])
    shutil.copytree(run / "adapter", tmp_path / "elsewhere")
    told = ["--task", "sst2", "--data", sst2, "--max-length", "32"]
    assert close(judged(tmp_path, "--model", tmp_path / "elsewhere", *told)["validation"], result["test"])
    assert "is no run's folder" in zokern("evaluate", "--model", tmp_path / "elsewhere", code=2)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_the_adapter_of_a_prompted_model_is_judged(few, language_models, tmp_path, kind):
    run = tmp_path / "run"
    zokern("finetune", *few, "--model", language_models[kind], "--task-type", kind, "--adapter", "lora", "--lr", "0.05")
    assert close(judged(tmp_path, "--model", run / "adapter")["held_out"], of(run / "metrics.json")["after"])


def test_adapters_that_cannot_be_judged(few, tmp_path, tiny, csv_of):
    run = tmp_path / "run"
    zokern("finetune", *few, "--adapter", "lora")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run / "adapter", elsewhere)
    told = ["--data", csv_of(60), "--max-length", "32"]

    def refused(folder, *given):
        return zokern("evaluate", "--model", folder, *(given or told), code=2)

    three = tmp_path / "three.csv"
    three.write_text("text,label\n" + "".join(f"row {i},{'abc'[i % 3]}\n" for i in range(30)))
    error = refused(elsewhere, "--data", three, "--max-length", "32")
    assert "is an adapter that cannot be loaded onto" in error and "these classes, a, b, c" in error
    config = of(elsewhere / "adapter_config.json")
    (elsewhere / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}))
    assert f"'{elsewhere}' is an adapter: --model '{tmp_path / 'gone'}' does not exist" in refused(elsewhere)
    (elsewhere / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert "names no base_model_name_or_path: write it in" in refused(elsewhere)
    (elsewhere / "adapter_config.json").write_text("{")
    assert "is an adapter that cannot be loaded onto its base model (" in refused(elsewhere)
    model = AutoModelForSequenceClassification.from_pretrained(tiny)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "bare")
    assert "has no head for the classes bad, good" in refused(tmp_path / "bare")
    (elsewhere / "adapter_config.json").write_text(json.dumps(config))
    (elsewhere / "adapter_model.safetensors").write_bytes(b"nothing")
    assert "is an adapter that cannot be loaded onto" in refused(elsewhere)


def test_rows_are_those_of_finetune(few, tmp_path, sst2):
    """The rows that a run held out and tested by, for any model."""
    run = tmp_path / "run"
    zokern("finetune", *few, "--seed", "3", "--rows", "20,12,6", "--lr", "1e-2")
    expected = judged(tmp_path, "--model", run)
    told = ["--model", run, "--task", "sst2", "--data", sst2, "--rows", "20,12,6"]
    found = judged(tmp_path, *told, "--seed", "3")
    assert found["held_out"] == expected["held_out"] and found["test"] == expected["test"]
    assert (found["held_out"]["rows"], found["test"]["rows"]) == (12, 6)
    assert judged(tmp_path, *told)["held_out"]["loss"] != expected["held_out"]["loss"]
    (tmp_path / "rows.json").write_text(json.dumps({"rows": [20, 12, 6], "seed": 3}))
    assert judged(tmp_path, *told[:-2], "--config", tmp_path / "rows.json") == found
    (sample,) = [numbers for numbers in judged(tmp_path, *told[:-2], "--sample", "7").values() if isinstance(numbers, dict)]
    assert sample["rows"] == 7


def test_a_table_of_few_rows_is_judged(few, tmp_path, csv_of):
    """Fewer than a batch of training."""
    zokern("finetune", *few)
    rows = tmp_path / "six.csv"
    rows.write_text("text,label\n" + "".join(f"a {word} film,{word}\n" for word in ("negative", "positive") * 3))
    assert judged(tmp_path, "--model", tmp_path / "run", "--data", rows)["rows"]["rows"] == 6
