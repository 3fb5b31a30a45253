"""run.json and configuration files of any content: one line that says what is wrong, or settings."""

import copy
import json
import os
import random
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

from command_line import zokern  # noqa: E402

from zokern.cli.options import configured  # noqa: E402
from zokern.errors import BadInput  # noqa: E402
from zokern.finetune import Settings, finetune, output  # noqa: E402
from zokern.finetune.options import options_of  # noqa: E402
from zokern.finetune.restore import Evaluation, evaluate  # noqa: E402

MUTATIONS = 10_000 if os.environ.get("ZOKERN_LONG") else 300
DEEP = "[" * 100_000 + "]" * 100_000  # Python 3.13 reads 5,000
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.fixture(scope="module")
def record():
    """What run.json of a run holds, without the run."""
    settings = Settings.flat(dict(model="a/model", task="sst2", lr=1e-3, eps=1e-2, device="cpu", out="run", blocks=True)).checked()
    judged = {"loss": 0.5, "accuracy": 0.75}
    held = {"settings": settings.record(), "labels": ["negative", "positive"], "columns": {}, "digest": "0" * 16}
    return {**held, "zokern": "0.1.0", "backends": {"cpu": "ready"}, "before": judged, "probed": judged}


@pytest.fixture
def forged(tmp_path, record):
    """(where, value) -> a folder with run.json in which this value is forged; a str in place of where: the whole text."""

    def write(where, value=None):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        made = json.loads(json.dumps(record))
        *above, last = where if isinstance(where, tuple) else ("settings", where)
        held = made
        for name in above:
            held = held[name]
        if value is REMOVED:
            del held[last]
        else:
            held[last] = value
        (folder / "run.json").write_text(json.dumps(made, indent=1))
        return folder

    return write


REMOVED = object()
FORGED = {
    "text for a number": ("steps", "four", "--steps is 'four': pass an integer"),
    "a number for text": ("model", 7, "--model is 7: pass text"),
    "a list for text": ("optimizer", ["mezo"], "--optimizer is a list: pass text"),
    "text for a list": ("adapter", "lora", "--adapter is 'lora': pass a list"),
    "another list": ("rows", [1, "2", 3], "--rows, of which item 2 is '2': pass an integer"),
    "a fraction": ("batch_size", 4.5, "--batch-size is 4.5: pass an integer"),
    "true for a number": ("seed", True, "--seed is True: pass an integer"),
    "a number for true": ("blocks", 1, "--blocks is 1: pass true or false"),
    "null": ("steps", None, "--steps is None: pass an integer"),
    "a table": ("lr", {}, "--lr is a table: pass a number"),
    "huge": ("steps", 10**400, "--steps is an integer of 1329 bits: pass an integer of 64 bits"),
    "huge for a real": ("lr", 10**400, "--lr is an integer of 1329 bits: pass a number of 64 bits"),
    "NaN": ("lr", float("nan"), "--lr nan: pass a number > 0"),
    "infinity": ("eps", float("inf"), "--eps inf: pass a number > 0"),
    "out of range": ("batch_size", 0, "--batch-size 0: pass an integer >= 1"),
    "another choice": ("schedule", "step", "--schedule step: pass one of linear"),
    "not together": ("full_batch", 4, "--full-batch does not go with --optimizer mezo"),
    "of a newer version": ("frobnicate", 4, "'frobnicate' is no setting of this zokern: use the zokern that made it"),
    "a typo": ("batch_sise", 4, "'batch_sise' is no setting of this zokern (did you mean 'batch_size'?)"),
    "missing": ("objective", REMOVED, "'objective' is missing: use the zokern that made it"),
    "NUL": ("data", "a\0b", "--data is 'a\\x00b': pass text without NUL"),
    "half a character": ("label", "\ud800", "--label is '\\ud800': pass text without NUL and without half a character"),
    "labels": (("labels",), [1, 2], "'labels', of which item 1 is 1: pass text"),
    "no labels": (("labels",), REMOVED, "'labels' is None: pass a list"),
    "before": (("before", "loss"), "low", "'before', of which 'loss' is 'low': pass a number"),
    "digest": (("digest",), 0, "'digest' is 0: pass text"),
    "extended": (("extended",), [4, "x"], "'extended', of which item 2 is 'x': pass an integer"),
    "settings": (("settings",), [], "it holds no settings"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_record_is_named(forged, tmp_path, name):
    """By every command that reads it, with nothing written."""
    where, value, message = FORGED[name]
    run = forged(where, value)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    (run / "trajectory.jsonl").touch()
    for given in (["finetune", "--resume", run], ["evaluate", "--model", run], ["replay", run, "--step", "1", "--out", tmp_path / "new"]):
        error = zokern(*given, code=2)
        assert error.startswith(f"error: '{run / 'run.json'}'") and message in error and error.count("\n") == 1
    (run / "trajectory.jsonl").unlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


TEXTS = {
    "deep": ("run.json", '{"settings": ' + DEEP + "}", "line 1: nested too deeply"),
    "digits": ("run.json", '{"steps": ' + "9" * 5000 + "}", "line 1: not JSON"),
    "twice": ("run.json", '{"seed": 1,\n "lr": 1,\n "se\\u0065d": 2}', "line 3: 'seed' is there twice"),
    "twice around another": ("run.json", '{"a": 1,\n "a": {"b": 1,\n "b": 2}}', "line 2: 'a' is there twice"),
    "twice in its settings": ("run.json", '{"a": {"lr": 1}, "settings": {"lr": 1, "b": {},\n "lr": 2}}', "line 2: 'lr' is there twice"),
    "two names twice": ("run.json", '{"seed": 1,\n "seed": 2,\n "settings": {"lr": 1, "lr": 2}}', "line 2: 'seed' is there twice"),
    "twice, YAML": ("a.yaml", "lr: 1.0\nseed: 1\n\nlr: 2.0\n", "line 4: 'lr' is there twice"),
    "twice, in one line": ("a.yaml", "{lr: 1.0, 'lr': 2.0}", "line 1: 'lr' is there twice"),
    "two spellings": ("a.yaml", "batch_size: 1\nbatch-size: 2\n", "'batch-size' is there twice"),
    "deep, YAML": ("a.yaml", "lr: " + DEEP, "line 1: nested too deeply"),
    "no date": ("a.yaml", "seed: 2020-13-45\n", "line 1: not YAML"),
    "no number": ("a.yaml", "seed: !!int x\n", "line 1: not YAML"),
    "code": ("a.yaml", "seed: !!python/object/apply:os.getpid []\n", "line 1: not YAML"),
    "control": ("a.yaml", "seed: \x01\n", "line 1: not YAML"),
    "aliases": ("a.yaml", ALIASES.replace("i:", "text:"), "'a' is no option"),
    "aliases in an option": ("a.yaml", "betas: &a [*a]\n", "'betas', of which item 1 is a list: pass a number"),
    "half": ("a.yaml", "steps: 4.5\n", "'steps' is 4.5: pass an integer"),
    "yes for a number": ("a.yaml", "steps: yes\n", "'steps' is True: pass an integer"),
    "no for text": ("a.yaml", "label: no\n", "'label' is False: pass text"),
    "words": ("a.yaml", "steps: four\n", "'steps' four: pass an integer"),
    "maybe": ("a.yaml", "blocks: maybe\n", "'blocks' is 'maybe': pass true or false"),
    "hexadecimal": ("a.yaml", "seed: 0x" + "f" * 5000 + "\n", "'seed' is an integer of 20000 bits: pass an integer of 64 bits"),
    "other letters": ("a.yaml", b"label: caf\xe9\n", "cannot be read (it is not text)"),
    "NaN": ("a.json", '{"lr": NaN}', "--lr nan: pass a number > 0"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_forged_configuration_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file, content, message = TEXTS[name]
    Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
    error = zokern("finetune", "--config", file, code=2)
    assert message in error and error.count("\n") == 1 and len(error) < 300
    assert name == "NaN" or error.startswith(f"error: --config {file}")
    assert os.listdir() == [file]
    if file == "run.json":
        Path("trajectory.jsonl").touch()
        for given in (["finetune", "--resume", "."], ["evaluate", "--model", "."], ["replay", ".", "--step", "1", "--out", "new"]):
            assert message.partition(": ")[2] in zokern(*given, code=2)


@pytest.mark.parametrize("given", [dict(steps="4"), dict(lr=True), dict(adapter="lora"), dict(data=7), dict(rows=(1.5, 2, 3))])
def test_settings_made_in_python_are_checked_alike(given):
    """An adapter "lora" would be the four patterns l, o, r and a."""
    (name,) = given
    with pytest.raises(BadInput, match=f"^--{name}.* is .*: pass "):
        finetune(Settings(**given))
    if name in {f.name for f in fields(Evaluation)}:
        with pytest.raises(BadInput, match=f"^--{name}.* is .*: pass "):
            evaluate(Evaluation(model="m", **given))


VALUES = [None, True, False, 0, 1, -1, 3, 2**31, 2**64, -(10**400), 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "mezo", "lora"]
VALUES += ["\0", "\ud800", "\n", "\x1b[2J", "~nobody/x", "/", "." * 5000, "é" * 300, [], {}, [[]], [1, 2, 3], [0.5, "x"], ["a", "b", "c"]]
VALUES += [{"a": {"b": []}}, [None], "depth:99999999999999999999", "intra:1:0.5", "cuda:0", "hybrid", "head", "causal"]


def test_no_mutation_of_a_record_gets_by(tmp_path, record):
    """Values of any kind in any place, names that are gone, new or twice, bytes that changed."""
    seed = int(os.environ.get("ZOKERN_SEED", "0"))
    generator, path, valid = random.Random(seed), tmp_path / "run.json", 0
    options = options_of(Settings)
    for i in range(MUTATIONS):
        path.write_bytes(_mutated(generator, record))
        for read in (
            lambda: output.run_of(tmp_path)[0],
            lambda: Settings.flat(configured(path, "finetune", options)),
        ):
            try:
                settings = read().checked()
            except BadInput as error:
                assert "\n" not in str(error) and len(str(error)) < 1000, (seed, i, error)
            except Exception as error:
                raise AssertionError(f"seed {seed}, mutation {i}: {path.read_bytes()!r}") from error
            else:
                valid += 1
                assert settings.checked() == settings, (seed, i)
                assert all(type(value) is not list for value in (vars(settings) | settings.optimizer_settings).values())
                json.dumps(settings.record())
    print(f"{MUTATIONS} mutations with seed {seed}: {valid} of {2 * MUTATIONS} measurements are settings, the others are refused")
    assert 0 < valid < 2 * MUTATIONS


def _any(generator):
    return copy.deepcopy(generator.choice(VALUES))


def _mutated(generator, record):
    made = json.loads(json.dumps(record))
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        held = made if generator.random() < 0.25 else made.get("settings")
        if not isinstance(held, dict) or not held:
            break
        name, what = generator.choice(list(held)), generator.random()
        if what < 0.7:
            held[name] = _any(generator)
        elif what < 0.8:
            del held[name]
        elif what < 0.9:
            held[name + generator.choice(("s", "_", "\n", "-"))] = _any(generator)
        elif isinstance(held[name], list | dict) and held[name]:
            inside = held[name]
            inside[generator.choice(range(len(inside)) if isinstance(inside, list) else list(inside))] = _any(generator)
    data = bytearray(json.dumps(made, indent=generator.choice((None, 1))).encode())
    for _ in range(generator.choice((0, 0, 0, 1, 1, 3))):
        place, size = generator.randrange(len(data)), generator.randrange(40)
        what = generator.randrange(4)
        if what == 0:
            data[place] ^= 1 << generator.randrange(8)
        elif what == 1:
            del data[place : place + size]
        elif what == 2:
            data[place:place] = data[generator.randrange(len(data)) :][:size]
        else:
            data[place:place] = generator.choice((b"[" * 3000, b"9" * 5000, b"\xff", b"\0", b"1e999", b"NaN", b'"a":1,', b"{}", b"null"))
        if not data:
            break
    return bytes(data)
