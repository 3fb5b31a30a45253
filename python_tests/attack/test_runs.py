"""Runs of ``zokern finetune`` and ``zokern evolve`` that are killed, interrupted, left without space, or meet in one folder, and are gone
on with, end as the one that nothing happened to, bit for bit."""

import shutil
import signal
import sys
import time
from functools import cache

import pytest
from attack import tiny
from attack.forks import Forks
from attack.strength import dice, times

pytest.importorskip("transformers")
pytest.importorskip("typer")
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs a C compiler, and Linux")
NAMES = ["evolve", *list(tiny.RUNS)[: times(1, len(tiny.RUNS))]]


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forks")
    model = tiny.make(folder)
    forks = Forks(folder, ["finetune", *model, "--out", folder / "warm"])
    forks.given = {name: ["finetune", *model, *more] for name, more in tiny.RUNS.items()}
    forks.given["evolve"] = ["evolve", *tiny.make_writer(folder)]
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def whole(forks):
    """name -> (the arguments, the folder, how it ended) of a run that nothing happens to."""

    @cache
    def run(name, *more):
        out, given = forks.folder / f"whole, {name}{' '.join(more)}", [*forks.given[name], *more]
        ended = forks.run(*given, "--out", out, below=out)
        assert ended.code == 0, ended.error
        return given, out, ended

    return run


def again(given, out):
    """What goes on with a run, or begins it where it had not begun."""
    return [given[0], "--resume", out] if (out / "run.json").exists() else [*given, "--out", out]


def ends_badly(ended, out):
    """How, where a command has neither made the run's last step nor found it made."""
    if ended.code and not ((out / "metrics.json").exists() and "that run is done" in (ended.line or "")):
        return f"code {ended.code}, {ended.error[-300:]}"
    return None


@pytest.mark.parametrize("name", NAMES)
def test_killed(name, forks, whole, found, tmp_path):
    """The first one once its last checkpoint is complete, the second while the end of that is written, others anywhere; and where they go
    on, again."""
    given, untouched, ended = whole(name)
    throw, events = dice("kill", name), len(ended.events)
    last = 1 + max((i for i, event in enumerate(ended.events) if f"checkpoint-{tiny.LAST}/" in event), default=0)
    for chain in range(times(3, 25)):
        out, places, code = tmp_path / str(chain), [], -signal.SIGKILL
        while code == -signal.SIGKILL:
            if len(places) == times(2, 5):
                place = -1
            else:
                place = last + 1 - chain if chain < 2 and not places else throw.randint(0, events)
            command = forks.start(*again(given, out), below=out, kill=place)
            if not place:  # at any moment of time
                command.reach(throw.randint(1, events))
                command.send(signal.SIGKILL)
            ended = command.wait()
            code = ended.code
            places.append(" ".join(ended.events[-1:]).replace(str(out), ""))
            found["kills"] += code == -signal.SIGKILL
        found["runs"] += 1
        what = f"{name}, {chain}, killed at {places[:-1]}"
        found.blames(what, ends_badly(ended, out) or tiny.differ(out, untouched))
    found.judge()


@pytest.mark.parametrize("name", NAMES)
def test_without_space(name, forks, whole, found, tmp_path):
    given, untouched, ended = whole(name)
    throw, size = dice("space", name), sum(int(event.split()[-1]) for event in ended.events)
    for i in range(times(2, 40)):
        out, room = tmp_path / str(i), throw.randint(0, size if i % 2 else 20_000)
        ended = forks.run(*given, "--out", out, below=out, room=room)
        found["disks"] += 1
        found["full"] += ended.code != 0
        what = f"{name}, {room} of {size} bytes"
        if ended.code and not (ended.line and str(out) in ended.line and "space" in ended.line):
            found.blame(f"{what}: code {ended.code}, {ended.error.splitlines()[-1]}")
        if (out / "run.json").exists() and not (out / "initial.safetensors").exists():
            found.blame(f"{what}: run.json is there, initial.safetensors is not")
        if ended.code:
            ended = forks.run(*again(given, out))
        found.blames(f"{what}, afterwards", ends_badly(ended, out) or tiny.differ(out, untouched))
    found.judge()


@pytest.mark.parametrize("how", ["new", "resumed"])
def test_two_at_once(how, forks, whole, found, tmp_path):
    one, other = whole("mezo"), whole("mezo", "--seed", "1")
    throw, events = dice("two", how), len(one[2].events)
    for i in range(times(2, 30)):
        out = tmp_path / str(i)
        if how == "new":
            both = [[*given, "--out", out] for given, *_ in (one, other)]
        else:
            forks.run(*one[0], "--out", out, below=out, kill=throw.randint(events // 4, events // 2))
            both = [["finetune", "--resume", out]] * 2
        first = forks.start(*both[0], below=out)
        first.reach(throw.choice([0, throw.randint(0, events // 4)]))
        ended = [command.wait() for command in (first, forks.start(*both[1]))]
        codes = [one.code for one in ended]
        found["pairs"] += 1
        if sorted(codes) != [0, 2] or not ended[codes.index(2)].line:
            found.blame(f"{how}, {i}: codes {codes}, {[one.error[-200:] for one in ended if one.code]}")
        else:
            untouched = (one, other)[codes.index(0) if how == "new" else 0][1]
            found.blames(f"{how}, {i}: the other was told {ended[codes.index(2)].line}", tiny.differ(out, untouched))
    found.judge()


@pytest.mark.parametrize("name", NAMES)
def test_interrupted(name, forks, whole, found, tmp_path):
    """Ctrl-C once, or twice in a hurry."""
    given, untouched, ended = whole(name)
    throw, events = dice("Ctrl-C", name), len(ended.events)
    for i in range(times(2, 30)):
        out, twice = tmp_path / str(i), bool(i % 2)
        command = forks.start(*given, "--out", out, below=out)
        command.reach(throw.randint(0, events * 3 // 4))
        command.send(signal.SIGINT)
        if twice:
            time.sleep(throw.uniform(0, 0.02))
            command.send(signal.SIGINT)
        ended = command.wait()
        found["interrupts"] += ended.code == 130
        what = f"{name}, {i}{', twice' if twice else ''}"
        raw = "Traceback" in ended.error.partition("Exception ignored")[0]  # Python's own words when it is interrupted at its exit
        if raw or ended.code not in (0, 130) and not (twice and ended.code == -signal.SIGINT):
            found.blame(f"{what}: code {ended.code}, {ended.error[-300:]}")
        if not (out / "metrics.json").exists():
            ended = forks.run(*again(given, out))
        bad = None if (out / "metrics.json").exists() else ends_badly(ended, out)
        if name == "bfloat16, defer":  # where each save rounds, so that one more makes another run: it is what its log says
            forks.run("replay", out, "--out", made := tmp_path / f"{i}, again")
            bad = bad or (tiny.weights(made) != tiny.weights(out) and "other weights than its log makes") or None
        else:
            bad = bad or tiny.differ(out, untouched, losses=False)
        found.blames(f"{what}, gone on with", bad)
    found.judge()


def test_a_replay_that_is_killed(forks, whole, found, tmp_path):
    _, untouched, _ = whole("mezo")
    given = ["replay", untouched, "--out"]
    events = len(forks.run(*given, tmp_path / "all", below=tmp_path / "all").events)
    throw = dice("replay")
    for i in range(times(1, 30)):
        out = tmp_path / str(i)
        found["kills"] += forks.run(*given, out, below=out, kill=throw.randint(1, events)).code == -signal.SIGKILL
        left = {path.name for path in out.glob("*")} - {".zokern-lock"}
        done = left == {path.name for path in (tmp_path / "all").iterdir()}  # it was killed at its very end
        ended = forks.run(*given, out)
        (out / ".zokern-lock").unlink(missing_ok=True)
        if ended.code and not done or (out / "model.safetensors").read_bytes() != (untouched / "model.safetensors").read_bytes():
            found.blame(f"{i}: code {ended.code}, {ended.error[-300:]}")
        elif sorted(p.name for p in out.iterdir()) != sorted(p.name for p in (tmp_path / "all").iterdir()):
            found.blame(f"{i}: {sorted(p.name for p in out.iterdir())}")
    found.judge()
