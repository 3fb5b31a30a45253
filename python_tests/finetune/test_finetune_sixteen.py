"""Weights in 16 bits on the command line: how they are perturbed and rounded, and that a run is made again to the bit."""

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

import transformers  # noqa: E402
from command_line import changed, equal, zokern  # noqa: E402

from zokern import MeZO, Streamed  # noqa: E402
from zokern.finetune.optimizers import make, with_rates  # noqa: E402

FULL = ["--dtype", "bfloat16", "--adapter", "full", "--lr", "1e-3", "--schedule", "constant"]
# options -> what the log says of it
MODES = {
    "": ("streamed", "stochastic"),
    "--rounding nearest": ("streamed", "nearest"),
    "--perturbation copied": ("copied", "nearest"),
    "--perturbation copied-own --optimizer zo-adam": ("copied-own", "stochastic"),
    "--perturbation in-place": ("in-place", "nearest"),
    "--optimizer mezo-svrg": ("streamed", "stochastic"),
    "--optimizer forward-gradient": ("in-place", "stochastic"),
    "--dtype float32 --perturbation copied": ("copied", "nearest"),
    "--dtype float32": ("in-place", "nearest"),
    "--adapter lora": ("in-place", "nearest"),
}


def settings_of(run):
    return json.loads((run / "run.json").read_text())["settings"]


def logged(run):
    group = json.loads((run / "trajectory.jsonl").read_text().split("\n", 1)[0])["groups"][0]
    return group["perturbation"], group["rounding"]


@pytest.mark.parametrize("given", MODES)
@pytest.mark.filterwarnings("error:there are weights in 16 bits:RuntimeWarning")
def test_a_run_is_gone_on_with_and_replayed_to_the_bit(few, tmp_path, given):
    run, whole = tmp_path / "run", tmp_path / "whole"
    zokern("finetune", *few, *FULL, *given.split())
    zokern("finetune", "--resume", run, "--steps", "6")
    zokern("finetune", "--config", run / "run.json", "--out", whole)
    assert equal(run, whole) and logged(run) == logged(whole) == MODES[given]
    if "svrg" not in given:  # whose log tells of a flush where it went on
        assert (run / "trajectory.jsonl").read_bytes() == (whole / "trajectory.jsonl").read_bytes()
    zokern("replay", run, "--out", tmp_path / "again", "--passes-per-sweep", "4")
    assert equal(run, tmp_path / "again")
    assert "perturbation={}, rounding={}".format(*MODES[given]) in zokern("info", run)


def test_a_file_may_say_it(few, tmp_path):
    (tmp_path / "a.yaml").write_text("perturbation: copied\nrounding: nearest\n")
    zokern("finetune", "--config", tmp_path / "a.yaml", *few, *FULL)
    assert logged(tmp_path / "run") == ("copied", "nearest")
    assert {"perturbation": "copied", "rounding": "nearest"}.items() <= settings_of(tmp_path / "run").items()


def test_a_run_of_before_is_gone_on_with_in_place(few, tmp_path):
    """Its run.json knows neither setting, where a newer one says that nothing was said."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    zokern("finetune", *few, *FULL)
    assert settings_of(run)["perturbation"] is settings_of(run)["rounding"] is None
    zokern("finetune", *few, *FULL, "--perturbation", "in-place", "--overwrite")
    record = json.loads((run / "run.json").read_text())
    del record["settings"]["perturbation"], record["settings"]["rounding"]
    (run / "run.json").write_text(json.dumps(record))
    zokern("finetune", "--resume", run, "--steps", "6")
    zokern("finetune", *few, *FULL, "--perturbation", "in-place", "--steps", "6", "--out", whole)
    assert equal(run, whole) and (settings_of(run)["perturbation"], settings_of(run)["rounding"]) == ("in-place", "nearest")


REFUSED = {
    "--perturbation beside": "--perturbation beside: pass one of in-place, streamed, copied, copied-own",
    "--rounding up": "--rounding up: pass one of nearest, stochastic",
    "--rounding stochastic --dtype float32": "--rounding stochastic: the weights are kept in float32, which is stored as it is: leave it",
    "--rounding stochastic --adapter lora": "--rounding stochastic: the weights are kept in float32, which is",
    "--rounding stochastic --perturbation copied": "--rounding stochastic: the weights are kept in float32, which",
    "--perturbation streamed --optimizer forward-gradient": "--perturbation streamed: a forward gradient is taken at theta, and",
    "--perturbation streamed --optimizer hybrid --split intra:1:0.5": "--perturbation streamed does not go with --split intra:1:0.5, which",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_refused_is_one_line(few, tmp_path, given):
    error = zokern("finetune", *few, *FULL, *given.split(), code=2)
    assert error.strip().split("\n")[-1].startswith(f"error: {REFUSED[given]}") and not (tmp_path / "run").exists()


@pytest.mark.parametrize("split, kind", [("depth:1", Streamed), ("inter:1", Streamed), ("lisa:1:2", Streamed), ("intra:1:0.5", "copied")])
def test_the_zeroth_order_half_of_a_hybrid(settings, split, kind):
    """Streamed, but where parameters are cut, which are then none of the model's."""
    run = with_rates(changed(settings, optimizer="hybrid", split=split, dtype="bfloat16", adapter=("full",)).checked())
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=64)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**small)).bfloat16()
    zo = make(run, model)[1]["zo"]
    assert zo.func is MeZO
    given = zo.keywords["perturbation"]
    assert given == kind if isinstance(kind, str) else isinstance(given, kind) and given.model is model
    assert make(run, model.float())[1]["zo"].keywords["perturbation"] is None
