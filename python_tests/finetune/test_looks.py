"""What a user sees: tables and a bar on a terminal, lines elsewhere, nothing with --quiet, JSON with --json."""

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

from command_line import zokern  # noqa: E402

from zokern.cli import looks  # noqa: E402
from zokern.finetune import job  # noqa: E402
from zokern.finetune.progress import evaluations, record  # noqa: E402

ROOT = Path(__file__).parents[2]
HOSTILE = "[bold]x[/bold] \x1b[2J"
VISIBLE = "[bold]x[/bold] \\x1b[2J"
DRAWN = re.compile(r"[\r\x1b\u2500-\u259f]")  # carriage returns, escapes, boxes and bars

# One process imports what takes long; each of its children runs the command, on a terminal or with its streams in files.
ON_TERMINALS = """
import fcntl, json, os, pty, struct, sys, termios, warnings
import torch, transformers, accelerate, peft, sklearn.metrics, matplotlib.figure
from zokern.finetune import report
report.draw = lambda *given: given[-1].touch()
warnings.filterwarnings("ignore", ".*multi-threaded, use of fork")
for width, error, given in json.loads(sys.argv[1]):
    said, (read, write) = b"", os.openpty() if width else os.pipe()
    if width:
        fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    if not os.fork():
        os.dup2(write, 1)
        os.dup2(write if width else os.open(error, os.O_WRONLY | os.O_CREAT), 2)
        os.close(read), os.close(write)
        from zokern.__main__ import main
        sys.argv = ["zokern", *given]
        main()
    os.close(write)
    try:
        while part := os.read(read, 1 << 16):
            said += part
    except OSError:  # how a terminal ends
        pass
    print(json.dumps([os.waitstatus_to_exitcode(os.wait()[1]), said.decode()]), flush=True)
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes of a stream a terminal of 80 columns without colours."""
    for name, value in (("COLUMNS", "80"), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    return lambda name="stdout": monkeypatch.setattr(sys, name, Terminal()) or getattr(sys, name)


def seen(text):
    """Without escapes, as lines."""
    return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", text).replace("\r", "\n").split("\n")


def test_a_run_on_a_terminal_in_a_file_quiet_and_as_json(few, tmp_path):
    run = [*few, "--lr", "1e-2", "--out"]
    cases = [  # columns of a terminal, or none; options
        (80, [*run, tmp_path / "a"]),
        (0, [*run, tmp_path / "b"]),
        (80, [*run, tmp_path / "c", "--quiet"]),
        (0, [*run, tmp_path / "d", "--json"]),
    ]
    given = [(width, str(tmp_path / f"{i}.err"), ["finetune", *map(str, options)]) for i, (width, options) in enumerate(cases)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TERM": "xterm",
        "NO_COLOR": "1",
    }
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-c", ON_TERMINALS, json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    (_, drawn), (_, plain), (_, quiet), (_, as_json) = found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in found] == [0] * 4, found
    errors = {i: (tmp_path / f"{i}.err").read_text() for i in (1, 3)}

    colours = {int(code) for codes in re.findall(r"\x1b\[([\d;]*)m", drawn) for code in codes.split(";") if code}
    assert colours <= {0, 1, 2}  # plain, bold, dim
    copied = ("saved", "load with", "best")  # lines of these, and of paths without a blank, are the terminal's to break
    assert max(len(line) for line in seen(drawn) if not line.startswith(copied) and str(tmp_path) not in line) <= 80
    assert any("step 4/4" in line and "left" in line and "━" in line for line in seen(drawn))
    assert any(line.startswith("step 4  held-out accuracy 0.") for line in seen(drawn)) and "─" * 30 in drawn
    (row,) = (line.split() for line in seen(drawn) if line.startswith("accuracy") or line.startswith(" accuracy"))
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert row[1:3] == [f"{metrics[when]['accuracy']:.3f}" for when in ("before", "after")]

    assert not DRAWN.search(plain + errors[1] + as_json + errors[3]) and quiet == ""
    after = json.loads((tmp_path / "b" / "metrics.json").read_text())["after"]["accuracy"]
    assert re.search(rf"^accuracy   0\.\d+ -> {after:.3f} on held-out rows$", plain, re.M)
    for said in errors.values():
        lines = [line for line in said.splitlines() if line.startswith("step=")]
        assert [line.split()[:2] for line in lines] == [[f"step={step}", "of=4"] for step in (0, 2, 4)]
        assert f"eval_accuracy={after:.4g} " in lines[-1] and re.search(r" loss=\d.* per_second=[\d.]+ left=0:00:00$", lines[-1])
    assert json.loads(as_json) == json.loads((tmp_path / "d" / "metrics.json").read_text())
    assert "of 491,970 parameters trained" not in errors[3] and "mezo, full" in errors[3]
    settings = json.loads((tmp_path / "d" / "run.json").read_text())["settings"]
    assert not {"quiet", "json"} & settings.keys()


def test_every_command_speaks_json_or_not_at_all(few, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    assert zokern("finetune", *few, "--lr", "1e-2", "--quiet") == ""
    found = json.loads(zokern("evaluate", "--model", run, "--json", "--metrics", tmp_path / "m.json"))
    assert found == json.loads((tmp_path / "m.json").read_text()) and found["held_out"]["rows"] == 16
    assert json.loads(zokern("replay", run, "--step", "2", "--out", again, "--json")) == {"run": str(run), "out": str(again), "step": 2}
    assert json.loads(zokern("info", run, "--json"))["steps"] == 4
    assert zokern("evaluate", "--model", run, "--quiet") == zokern("replay", run, "--out", tmp_path / "new", "--quiet") == ""
    assert json.loads(zokern("evaluate", "--model", run, "--quiet", "--json")) == found
    for flag in ("--json", "--quiet"):
        assert zokern("finetune", *few, "--lr", "-1", flag, code=2) == "error: --lr -1.0: pass a number > 0\n"
    assert "takes --steps alone: leave out --lr" in zokern("finetune", "--resume", run, "--lr", "1", "--json", "--quiet", code=2)
    for name in ("quiet", "json"):
        (tmp_path / "run.yaml").write_text(f"{name}: true")
        assert f"'{name}' is of the command line alone" in zokern("finetune", "--config", tmp_path / "run.yaml", code=2)


def test_what_is_not_finite_is_null(capsys):
    looks.Looks(as_json=True).show({"a": math.nan, "b": (1.5, -math.inf), "c": {"d": HOSTILE}}, [], [])
    said = capsys.readouterr().out
    assert json.loads(said) == {"a": None, "b": [1.5, None], "c": {"d": HOSTILE}} and "\x1b" not in said


def test_what_others_wrote_is_no_markup(terminal):
    out = terminal()
    facts = [(HOSTILE, f"{HOSTILE} :smile: {'long ' * 30}"), ("load with", f"{HOSTILE}{'x' * 90}")]
    looks.Looks().show({}, [], facts, {HOSTILE: {HOSTILE: HOSTILE}, "other": {}})
    said = out.getvalue()
    assert said.count(VISIBLE) == 6 and "\x1b[2J" not in said and ":smile:" in said
    assert max(len(line) for line in seen(said)[:-2]) <= 80 and seen(said)[-2].endswith("x" * 90)  # which the terminal breaks
    command = f"stopped: zokern finetune --resume {'/far' * 20}"  # which the terminal breaks, too
    looks.Looks().say(command)
    assert out.getvalue().endswith(f"{command}\n")
    looks.Looks().say("many words " * 20)
    assert max(map(len, seen(out.getvalue())[-4:])) <= 80
    looks.Looks().say(HOSTILE)
    assert out.getvalue().endswith(f"{VISIBLE}\n")


def test_a_bar_shows_the_newest_numbers_and_nothing_of_markup(terminal):
    error = terminal("stderr")
    with looks.Looks().progress() as progress:
        progress("step", 0, 1000, {"eval_loss": 0.5, "eval_accuracy": 0.25})
        progress("step", 10, 1000, {"loss": math.nan, f"eval_{HOSTILE}": 1.0})
        progress("replayed", 3, 4, {})
    assert sys.stderr is error
    said = "\n".join(seen(error.getvalue()))
    assert "step     0  held-out accuracy 0.250  held-out loss 0.500" in said and "loss nan" in said
    assert f"held-out {VISIBLE} 1.000" in said and "step 10/1,000" in said and "replayed 3/4" in said
    assert error.getvalue().rindex("\x1b[?25h") > error.getvalue().rindex("\x1b[?25l")  # the cursor is there again


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_be_drawn_on_gets_lines(terminal, monkeypatch, term):
    out = terminal()
    monkeypatch.setenv("TERM", term)
    looks.Looks().show({}, ["accuracy   1"], [("accuracy", "1")])
    assert out.getvalue() == "accuracy   1\n"


def test_a_line_at_each_evaluation_and_every_minute_without_one(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(looks.time, "monotonic", lambda: now[0])
    with looks.Looks().progress() as progress:
        for step in range(8):
            progress("step", step, 100, {"loss": 0.5} | ({"eval_f1": 0.25} if step == 1 else {}))
            now[0] += 25
    assert capsys.readouterr().err.splitlines() == [
        "step=1 of=100 loss=0.5 eval_f1=0.25 per_second=0.04 left=0:41:15",
        "step=4 of=100 loss=0.5 per_second=0.04 left=0:40:00",
        "step=7 of=100 loss=0.5 per_second=0.04 left=0:38:45",
    ]


def test_without_a_command_line_evaluations_are_said(monkeypatch):
    said = []
    progress = evaluations(said.append)
    progress("step", 1, 4, {"loss": 0.5})
    progress("step", 2, 4, {"loss": 0.5, "eval_f1": 0.125})
    assert said == [record("step", 2, 4, {"loss": 0.5, "eval_f1": 0.125})] == ["step=2 of=4 loss=0.5 eval_f1=0.125"]
    monkeypatch.setenv("RANK", "1")  # of several processes the first one speaks
    say, progress = job._heard(said.append, evaluations(said.append))
    say("a line")
    progress("step", 2, 4, {"eval_f1": 0.5})
    assert len(said) == 1
