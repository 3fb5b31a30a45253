"""``zokern evolve`` and what the other commands make of its runs, by the command line."""

import json
import shutil
import sys

import pytest
import torch
from command_line import equal, tensors, zokern

transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")

REWARDS = """
import pathlib
import signal

def vowels(completions):
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]

def words(completions, prompts, **columns):
    return [len(text.split()) for text in completions]

def fails(completions):
    raise LookupError("no such judge")

def interrupts(completions):
    calls.append(0)  # in the second iteration, once
    if len(calls) == 1 + 4 + 2 and not told.exists():
        told.touch()
        signal.raise_signal(signal.SIGINT)
    return vowels(completions)

calls, told = [], pathlib.Path(__file__).with_suffix(".told")

async def later(completions):
    return [0.0 for _ in completions]
"""
TIMED = ("seconds", "noise_seconds", "tokens_per_second")


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "judges.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture
def given(saved, sums, rewards):
    """The options of a small run, but for --out."""
    small = ["--rows", "4", "--max-new-tokens", "4", "--steps", "4", "--eval-every", "2", "--device", "cpu"]
    return ["evolve", "--model", saved, "--data", sums, "--reward", f"{rewards}:vowels", *small, *"--population 4 --sigma 0.05".split()]


@pytest.mark.parametrize("name", ["judges_here.py", "judges_here", "deep.judges_there"])
def test_a_run_is_gone_on_with_from_anywhere(given, name, tmp_path, monkeypatch):
    """Its rewards are looked for where it began, too, by a path or a name that is relative to that."""
    (tmp_path / "deep").mkdir()
    for file in ("judges_here.py", "deep/judges_there.py"):
        (tmp_path / file).write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    options = [f"{name}:vowels" if str(option).endswith(":vowels") else option for option in given]
    zokern(*options, "--out", "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for module in {"judges_here", "deep", "deep.judges_there"} & {*sys.modules}:
        monkeypatch.delitem(sys.modules, module)
    zokern("evolve", "--resume", "../run", "--steps", "6")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 6
    if name.endswith(".py"):
        (tmp_path / name).unlink()
        said = zokern("evolve", "--resume", "../run", "--steps", "8", code=2)
        assert f"reward '{name}:vowels': {name} does not exist in {tmp_path}, {tmp_path / 'elsewhere'}: check the path" in said


@pytest.fixture
def run(given, tmp_path):
    """The folder of a run that is done."""
    zokern(*given, "--out", tmp_path / "run")
    return tmp_path / "run"


def log_of(run):
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in TIMED} for entry in entries]


def settings_of(run):
    return json.loads((run / "run.json").read_text())["settings"]


def error_of(*arguments):
    """The line with which a command ends that refuses what it is given."""
    *_, line = zokern(*arguments, code=2).rstrip("\n").rpartition("\r")[2].splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_a_run_says_what_it_did(given, tmp_path, saved, sums, rewards):
    run = tmp_path / "run"
    said = zokern(*given, "--reward", "contains:answer", "--reward-weights", "1,0.5", "--out", run)
    for line in (
        f"{saved} on {sums}: 16 training prompts, 4 held out; es, full, 14,928 parameters, lr 0.025, sigma 0.05",
        f"rewards/{rewards}:vowels ",
        "rewards/contains:answer ",
        "4 iterations of 4 members, 256 tokens, ",
        f"load with  AutoModelForCausalLM.from_pretrained({str(run)!r})",
    ):
        assert line in said
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["steps"], metrics["members"], metrics["generated"], metrics["dropped"]) == (4, 4, 256, 0)
    assert 0 < metrics["noise_share"] < 1 and metrics["rewards"] == [f"{rewards}:vowels", "contains:answer"]
    assert [entry["step"] for entry in log_of(run)] == [0, 1, 2, 2, 3, 4, 4]
    model = transformers.AutoModelForCausalLM.from_pretrained(run)
    assert all(torch.equal(p, tensors(run)[name]) for name, p in model.named_parameters())
    again = zokern("info", run)
    assert "EvolutionStrategies" in again and json.loads(zokern("info", run / "trajectory.jsonl", "--json"))["steps"] == 4


def test_a_record_is_a_configuration(run, given, tmp_path, rewards):
    """What it says of its own folder is not taken, and the command line goes before it."""
    zokern("evolve", "--config", run / "run.json", "--out", tmp_path / "again")
    assert equal(run, tmp_path / "again") and log_of(run) == log_of(tmp_path / "again")
    zokern("evolve", "--config", run / "run.json", "--out", tmp_path / "other", "--seed", "1", "--stop", "e", "--stop", "a,b")
    assert settings_of(tmp_path / "other")["stop"] == ["e", "a,b"] and not equal(run, tmp_path / "other")
    (tmp_path / "own.yaml").write_text(f"reward: ['{rewards}:words']\nstop: x\ntemperature: 0.5\n")
    zokern(*given, "--config", tmp_path / "own.yaml", "--out", tmp_path / "yaml")
    named = settings_of(tmp_path / "yaml")
    assert (named["reward"], named["stop"], named["temperature"]) == ([f"{rewards}:vowels"], ["x"], 0.5)


@pytest.mark.parametrize("more", [["--temperature", "1"], ["--temperature", "1", "--mirrored"], []], ids=" ".join)
def test_the_same_command_makes_the_same_run(more, given, tmp_path):
    for name in ("one", "other"):
        zokern(*given, *more, "--out", tmp_path / name)
    zokern(*given, *more, "--batch-size", "1", "--out", tmp_path / "apart")
    one, other, apart = (log_of(tmp_path / name) for name in ("one", "other", "apart"))
    assert one == other and equal(tmp_path / "one", tmp_path / "other")
    assert one == apart  # whatever rows are answered together


def test_sixteen_bits_are_copied_without_a_warning(given, tmp_path, recwarn):
    zokern(*given, "--dtype", "bfloat16", "--out", tmp_path / "run")
    header = json.loads((tmp_path / "run" / "trajectory.jsonl").read_text().splitlines()[0])
    assert header["groups"][0]["perturbation"] == "copied" and not [w for w in recwarn if w.category is RuntimeWarning]


def test_replay_makes_any_iteration(run, given, tmp_path):
    zokern(*given, "--steps", "3", "--out", tmp_path / "three")
    zokern("replay", run, "--step", "3", "--out", tmp_path / "third")
    assert equal(tmp_path / "three", tmp_path / "third")
    zokern("replay", run / "trajectory.jsonl", "--out", tmp_path / "all")
    assert equal(run, tmp_path / "all")
    best = json.loads((run / "metrics.json").read_text())["best"]["step"]
    zokern("replay", run, "--step", "best", "--out", tmp_path / "best")
    zokern("replay", run, "--step", best, "--out", tmp_path / "same")
    assert equal(tmp_path / "best", tmp_path / "same")
    assert error_of("replay", run, "--step", "9", "--out", tmp_path / "no") == "--step 9: the trajectory has 4 steps: pass 0 to 4"
    assert not (tmp_path / "no").exists()


def test_the_model_of_a_run_is_a_model(run, given, tmp_path):
    """For another run of this command, and for the others, as far as they know what to do with it."""
    zokern(*given, "--model", run, "--adapter", "lora", "--out", tmp_path / "second")
    zokern(*given, "--model", tmp_path / "second", "--steps", "1", "--out", tmp_path / "third")
    table = tmp_path / "films.csv"
    table.write_text("text,label\n" + "".join(f"a {word} film {i},{word}\n" for i in range(20) for word in ("good", "bad")))
    small = ["--data", table, "--max-length", "32", "--batch-size", "8", "--device", "cpu"]
    zokern("finetune", "--model", run, *small, "--steps", "2", "--no-check", "--out", tmp_path / "tuned")
    assert "accuracy" in zokern("evaluate", "--model", tmp_path / "tuned")
    assert "comes without lm_head.weight, which would be random: pass a causal" in error_of(*given, "--model", tmp_path / "tuned")
    assert error_of("evaluate", "--model", run).startswith(
        f"--model {str(run)!r} is a run of zokern evolve, and was judged by its rewards, which are in its log.jsonl: pass --task or --data"
    )
    assert "has no head for the classes bad, good" in error_of("evaluate", "--model", run, "--data", table)
    assert error_of("finetune", "--resume", run) == f"{str(run)!r} holds a run of zokern evolve: pass the --out of one of zokern finetune"
    assert error_of("evolve", "--resume", tmp_path / "tuned").endswith(
        "holds a run of zokern finetune: pass the --out of one of zokern evolve"
    )
    assert f"the record of a run, for evolve: pass the run's folder, {run}, as --model" in error_of(
        "finetune", "--config", run / "run.json"
    )
    zokern(*given, "--adapter", "prefix", "--out", tmp_path / "prefix")
    assert "is an adapter, and a base model is needed here" in error_of(*given, "--model", tmp_path / "prefix")


def test_evaluate_takes_it_by_a_task(run, tmp_path):
    rows = "".join(f"a {word} film {i}\t{label}\n" for i in range(4) for label, word in enumerate(("bad", "good")))
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text(f"sentence\tlabel\n{rows}")
    given = ["evaluate", "--model", run, "--task", "sst2", "--data", tmp_path, "--task-type", "causal", "--max-length", "64"]
    assert "accuracy" in zokern(*given)


def test_folders_that_hold_something(run, given, tmp_path):
    held = (run / "model.safetensors").read_bytes()
    assert error_of(*given, "--out", run) == f"--out {str(run)!r} exists and is not empty: pass another folder, or --overwrite"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    assert "holds no earlier run (run.json is missing)" in error_of(*given, "--out", other, "--overwrite")
    assert "is in --out" in error_of(*given, "--model", run, "--out", run, "--overwrite")
    assert (run / "model.safetensors").read_bytes() == held
    zokern(*given, "--steps", "1", "--out", run, "--overwrite")
    assert len(log_of(run)) == 3 and (run / "model.safetensors").read_bytes() != held


def test_going_on(run, given, tmp_path):
    assert "that run is done (metrics.json is there): pass a larger --steps" in error_of("evolve", "--resume", run)
    assert "--steps 2 with --resume" in error_of("evolve", "--resume", run, "--steps", "2")
    assert error_of("evolve", "--resume", run, "--rows", "2").endswith("takes --steps alone: leave out --rows")
    assert "holds no run of zokern evolve (run.json is missing)" in error_of("evolve", "--resume", tmp_path)
    shutil.move(run, tmp_path / "moved")
    zokern("evolve", "--resume", tmp_path / "moved", "--steps", "6")
    zokern(*given, "--steps", "6", "--out", tmp_path / "whole")
    assert equal(tmp_path / "moved", tmp_path / "whole") and log_of(tmp_path / "moved") == log_of(tmp_path / "whole")


def test_ctrl_c(given, tmp_path):
    """The iteration is made, the model is saved, and the exit code says that it was not all."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    given = [str(value).replace(":vowels", ":interrupts") for value in given]
    zokern(*given, "--out", run, code=130)
    assert [entry["step"] for entry in log_of(run)] == [0, 1, 2, 2] and not (run / "metrics.json").exists()
    assert "--overwrite, or --resume" in error_of(*given, "--out", run)
    zokern("replay", run, "--out", tmp_path / "made")
    assert equal(run, tmp_path / "made")
    assert "4 iterations of 4 members, 256 tokens" in zokern("evolve", "--resume", run)
    zokern(*given, "--out", whole)
    assert equal(run, whole) and log_of(run) == log_of(whole)


def test_what_is_no_causal_model(tokenizer, given, tmp_path):
    small = dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    t5 = transformers.T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    for model, said in (
        (transformers.BertForMaskedLM(transformers.BertConfig(**small)), "looks at later tokens to tell the next one: pass a causal"),
        (
            transformers.BertModel(transformers.BertConfig(**small)),
            "comes without cls.predictions.bias, which would be random: pass a causal",
        ),
        (transformers.T5ForConditionalGeneration(t5), "(T5Config) is no causal model: pass a model that AutoModelForCausalLM knows"),
    ):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assert said in error_of(*given, "--model", folder, "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--reward JUDGES:nobody", "has no 'nobody': pass a function that is there"),
        ("--reward JUDGES:fails", "reward 'JUDGES:fails' raised LookupError: no such judge for "),
        ("--reward JUDGES:later", "is asynchronous, which is not supported: pass a function that returns its numbers"),
        ("--reward nowhere.py:f", "reward 'nowhere.py:f': nowhere.py does not exist: check the path"),
        ("--reward exact:", "reward 'exact:' is not whole: write exact:COLUMN"),
        ("--reward exact:label", "line 1 has nothing in the column 'label', which a reward needs: beside the prompt it has answer"),
        ("--reward exacts:answer", "(did you mean 'exact'?)"),
        ("--reward-weights 1,2", "reward weights [1.0, 2.0] do not fit 1 rewards: pass one finite number for each"),
        ("--prompt question", "--prompt 'question' is no column of "),
        ("--rows 17", "--rows 17 is more than the 16 training rows: pass at most 16"),
        ("--max-new-tokens 126", "tokens of the prompt and --max-new-tokens 126 are more than the 128 positions of the model: shorten the"),
        ("--population 1", "--population 1: pass an integer >= 2"),
        ("--population 5 --mirrored", "--population 5 with --mirrored True: members are pairs: pass an even number"),
        ("--optimizer mezo", "--optimizer mezo: pass one of adamezo, es, "),
        ("--optimizer fzoo", "is no option of --optimizer fzoo: leave it out, or pass es"),
        ("--momentum 0.9", "--momentum is no option of --optimizer es: leave it out"),
        ("--shaping best", "--shaping best: pass one of z-score, ranks, none"),
        ("--temperature -1", "--temperature -1.0: pass a number >= 0"),
        ("--stop=", "--stop '' ends a text before it begins: leave it out, or pass a text"),
        ("--adapter head", "--adapter head: a model that writes has no head of its own"),
        ("--rank 4", "--rank is of LoRA and DoRA: pass --adapter lora, or leave it out"),
        ("--cache static --adapter prefix", "cannot hold the virtual tokens of peft's prefix and prompt tuning: pass 'dynamic'"),
        ("--perturbation elsewhere", "--perturbation elsewhere: pass one of in-place, "),
        ("--data EMPTY", "is empty: pass a file with rows"),
        ("--data HEADER", "holds no rows: pass a file with a header and rows"),
        ("--data ONE", "holds one row, and one is to be held out: add rows, or pass --eval-data"),
        ("--data PLAIN", "has no column that is clearly the prompt: pass --prompt with one of its columns: sum, answer"),
        ("--data LONG", "line 2: "),
        ("--model ./nowhere", "does not exist: check the path"),
    ],
)
def test_what_is_refused(more, said, given, rewards, tmp_path):
    """In a line, and nothing is written."""
    files = {
        "EMPTY": "",
        "HEADER": "prompt,answer\n",
        "ONE": "prompt,answer\na,b\n",
        "PLAIN": "sum,answer\n1 + 1,2\n2 + 2,4\n",
        "LONG": f"prompt,answer\n{'1 + ' * 300},2\n2 + 2,4\n" + "3,3\n" * 10,
    }
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
        more = more.replace(name, str(tmp_path / f"{name}.csv"))
    line = error_of(*given, "--out", tmp_path / "run", *more.replace("JUDGES", str(rewards)).split())
    assert said.replace("JUDGES", str(rewards)) in line, line
    assert not (tmp_path / "run").exists()


def test_what_is_missing(saved, sums):
    assert error_of("evolve") == "--model is missing: pass a causal language model's folder, GGUF file or hub id"
    assert error_of("evolve", "--model", saved) == "--data is missing: pass a file or a hub data set"
    assert error_of("evolve", "--model", saved, "--data", sums).startswith("--reward is missing: pass one or more, such as exact:answer")
