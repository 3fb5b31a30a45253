"""Files that were damaged: what reads them gives what they held, or one line that says what is wrong, and nothing has moved then."""

import copy
import json
import shutil
from functools import cache

import pytest
import torch
import trajectory_cases
from attack import tiny
from attack.strength import dice, times

from zokern import Trajectory, record
from zokern.errors import BadInput

LOGS = ["MeZO", "ZOAdam", "MeZOSVRG replay", "MeZO defer", "ForwardGradient", "MeZO blocks"]
WILD = [None, True, "x", "", -1, 0, 3, 2**64, 1e308, 5e-324, [], [0.5], {}, {"tensor": "x", "dtype": "x"}, [[]]]


def bit(data, throw, other):
    i = throw.randrange(len(data))
    return data[:i] + bytes([data[i] ^ 1 << throw.randrange(8)]) + data[i + 1 :]


def cut(data, throw, other):
    return data[: throw.randrange(len(data))]


def empty(data, throw, other):
    return b""


def zeros(data, throw, other):
    """A block that never reached the disk."""
    i = throw.randrange(len(data))
    n = min(throw.choice([16, 512, 4096]), len(data) - i)
    return data[:i] + bytes(n) + data[i + n :]


def inserted(data, throw, other):
    i = throw.randrange(len(data))
    return data[:i] + bytes([throw.randrange(256)]) + data[i:]


def lines(data, throw, other):
    """One of them gone, twice there, or in another's place."""
    rows = data.splitlines(keepends=True)
    i, j = (throw.randrange(len(rows)) for _ in range(2))
    rows[i : i + 1] = throw.choice([[], [rows[i]] * 2, [rows[j]]])
    return b"".join(rows)


def joined(data, throw, other):
    i = throw.randrange(len(data))
    return data[:i] + other[i:]


def exchanged(data, throw, other):
    return other


DAMAGES = (bit, bit, bit, cut, empty, zeros, inserted, lines, joined, exchanged)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """(optimizer, seed) -> (log of a short run, weights after each step)."""
    folder, found = tmp_path_factory.mktemp("logs"), {}
    for name in LOGS:
        for seed in (5, 6):
            net, path = trajectory_cases.Net(), folder / f"{len(found)}.jsonl"
            optimizer = trajectory_cases.optimizer_of(name, net, seed=seed)
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)
            taken = [trajectory_cases.weights(net)]
            with record(optimizer, path, {"by": name}):
                taken += trajectory_cases.train(optimizer, net, range(8), scheduler, nan_at=3, after=lambda _: optimizer.flush())  # noqa: B023
            found[name, seed] = path, taken
    return found


def outcome(found, what, path, start, right):
    """Read and replay a log, and blame what is neither its run nor one line of error with the weights where they were."""
    net = trajectory_cases.Net()
    try:
        trajectory = Trajectory.read(path)
        trajectory.replay(net)
    except (BadInput, OSError) as error:
        found["refused"] += 1
        if "\n" in str(error):
            found.blame(f"{what}: more than a line: {error}")
        elif not trajectory_cases.same(net, start):
            found.blame(f"{what}: the weights have moved, and then: {error}")
    except Exception as error:
        found.blame(f"{what}: {type(error).__name__}: {error}")
    else:
        found["replayed"] += 1
        if right is not None and not trajectory_cases.same(net, right[len(trajectory)]):
            found.blame(f"{what}: other weights at step {len(trajectory)}")


def test_logs(logs, found, tmp_path):
    throw, path = dice("logs"), tmp_path / "log.jsonl"
    for (name, seed), (log, taken) in logs.items():
        other, others = logs[name, 11 - seed]
        texts = log.read_bytes(), other.read_bytes()
        for _ in range(times(12, 1000)):
            kind = throw.choice(DAMAGES)
            path.write_bytes(kind(texts[0], throw, texts[1]))
            found["logs"] += 1
            right = others if path.read_bytes() == texts[1] else taken
            outcome(found, f"{name}, {kind.__name__}", path, taken[0], right)
    found.judge()


def wild(value, throw):
    """-> (a copy of JSON with another value at some place, the place and the value)."""
    held, key, way = {"": copy.deepcopy(value)}, "", []
    whole = held
    while isinstance(held[key], dict | list) and held[key] and (not way or throw.random() < 0.8):
        held = held[key]
        key = throw.choice(list(held)) if isinstance(held, dict) else throw.randrange(len(held))
        way.append(key)
    held[key] = throw.choice(WILD)
    return whole[""], f"{way} = {held[key]!r}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name -> (a run, another one by its seed), each done in its folder, and without its end in another: the newest checkpoint is left."""
    pytest.importorskip("transformers")
    pytest.importorskip("typer")
    folder = tmp_path_factory.mktemp("runs")
    model = tiny.make(folder)

    @cache
    def made(name):
        both = []
        for seed in range(2):
            whole, broken = folder / f"{name} {seed}", folder / f"{name} {seed}, broken"
            code, error = command("finetune", *model, *tiny.RUNS[name], "--seed", seed, "--out", whole)
            assert code == 0, error
            shutil.copytree(whole, broken)
            for path in [broken / "metrics.json", *broken.glob("*.safetensors"), broken / "checkpoints" / f"checkpoint-{tiny.LAST}"]:
                if path.name != "initial.safetensors":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            both.append((whole, broken))
        return both

    return made


def command(*arguments):
    """-> (exit code, what is on standard error, or the exception)."""
    from typer.testing import CliRunner

    from zokern.cli import app

    done = CliRunner().invoke(app, list(map(str, arguments)))
    raised = done.exception is not None and not isinstance(done.exception, SystemExit)
    return (1, f"{type(done.exception).__name__}: {done.exception}") if raised else (done.exit_code, done.stderr)


def one_line(error):
    return error.count("error: ") == 1 and "Traceback" not in error and error.rstrip("\n").splitlines()[-1].startswith("error: ")


def damage(path, other, throw):
    """-> what was done to a file."""
    kind = throw.choice([*DAMAGES, "gone", "a folder", "wild"])
    if isinstance(kind, str) and kind != "wild" or kind == "wild" and path.suffix != ".json":
        path.unlink()
        if kind == "a folder":
            path.mkdir()
        return "gone" if kind == "wild" else kind
    if kind == "wild":
        value, what = wild(json.loads(path.read_text()), throw)
        path.write_text(json.dumps(value))
        return what
    path.write_bytes(kind(path.read_bytes(), throw, other.read_bytes()))
    return kind.__name__


@pytest.mark.parametrize("name", list(tiny.RUNS)[: times(1, len(tiny.RUNS))])
def test_folders(name, runs, found, tmp_path, monkeypatch):
    monkeypatch.setattr("zokern.finetune.report.draw", lambda *given: given[-1].touch())
    (whole, broken), (_, other) = runs(name)
    throw, judged, target = dice("folders", name), tmp_path / "judged.json", tmp_path / "replayed"
    assert command("evaluate", "--model", whole, "--metrics", judged) == (0, "")
    wanted = json.loads(judged.read_text())["held_out"]

    def right(does, out, path, damage):
        """What a command that ended well has got wrong."""
        if path.name == "run.json" and damage in ("joined", "exchanged"):
            return None  # which run it is stands there, and it is another one then
        if does == "resume":
            if path.name == "initial.safetensors" and damage == "gone":
                shutil.copy(whole / path.name, path)  # which nothing needs that goes on from a checkpoint
            return tiny.differ(out, whole)
        if does == "evaluate":
            got = json.loads(judged.read_text())["held_out"]
            return f"{got} for {wanted}" if got != wanted else None
        return "other weights" if does == "replay" and tiny.weights(target) != tiny.weights(whole) else None

    commands = {
        "resume": lambda out: ["finetune", "--resume", out],
        "evaluate": lambda out: ["evaluate", "--model", out, "--metrics", judged],
        "info": lambda out: ["info", out],
        "replay": lambda out: ["replay", out, "--out", target],
    }
    doing = ["resume"] * 5 + ["evaluate", "info"] + ["replay"] * (name != "hybrid")
    for _ in range(times(12, 300)):
        does, out = throw.choice(doing), tmp_path / "run"
        shutil.copytree(broken if does == "resume" else whole, out)
        if does == "resume" and throw.random() < 0.2:
            shutil.rmtree(out / "checkpoints")
        files = [out / file for file in ("run.json", "initial.safetensors", "trajectory.jsonl", "log.jsonl")]
        files += sorted(path for path in out.glob("checkpoints/*/**/*") if path.is_file()) * (does == "resume")
        path = throw.choice([path for path in files if (other / path.relative_to(out)).exists()])
        done = damage(path, other / path.relative_to(out), throw)
        what = f"{does} {name}, {path.relative_to(out)}, {done}"
        code, error = command(*commands[does](out))
        found["folders"] += 1
        found["refused"] += code == 2
        if code == 0:
            found.blames(what, right(does, out, path, done))
        elif code != 2 or not one_line(error):
            found.blame(f"{what}: code {code}, {error[-300:]}")
        for folder in (out, target):
            shutil.rmtree(folder, ignore_errors=True)
    found.judge()
