"""Whole runs: what is done to a run that is gone on with, bit for bit, and what rewards that fail leave behind."""

import json
import math
import os
import signal
import warnings
from dataclasses import replace
from itertools import count

import pytest
import torch
from command_line import equal, tensors

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from zokern.evolve import BadInput, Settings, evolve, resume  # noqa: E402
from zokern.evolve.restore import replay  # noqa: E402
from zokern.evolve.settings import takers  # noqa: E402
from zokern.evolve.train import Training  # noqa: E402

TIMES = {"seconds", "noise_seconds", "tokens_per_second"}
OF_ES = dict(sigma=0.05, population=4)
KINDS = {
    "float32": {},
    "bfloat16": dict(dtype="bfloat16"),
    "float16, static cache": dict(dtype="float16", cache="static"),
    "lora, bfloat16": dict(adapter=("lora",), dtype="bfloat16"),
    "prefix": dict(adapter=("prefix",)),
    "drawn": dict(temperature=1.5),
    "mirrored": dict(optimizer_settings=OF_ES | dict(mirrored=True, shaping="ranks", weight_decay=0.1), lr=0.05),
    "streamed": dict(optimizer_settings=OF_ES | dict(perturbation="streamed")),
}
KINDS |= {name: dict(optimizer=name, lr=0.01, optimizer_settings=dict(eps=0.05, q=3)) for name in takers() if name != "es"}


def vowels(completions):
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


def brief(completions):
    return [-float(len(text)) for text in completions]


def call(at, act):
    """``vowels``, whose call of that number, from 1, gives ``act(values)``."""
    calls = 0

    def vowels_then(completions):
        nonlocal calls
        calls += 1
        values = vowels(completions)
        return act(values) if calls == at else values

    vowels_then.__name__ = "vowels"
    return vowels_then


def run(settings, out, rewards=(vowels,), **more):
    return evolve(replace(settings, out=str(out), **more), lambda line: None, rewards)


def go_on(out, rewards=(vowels,), **more):
    return resume(str(out), lambda line: None, rewards=rewards, **more)


def killed(act):
    """Runs ``act`` in a process of its own, which is to be killed within."""
    if not (child := os.fork()):
        try:
            act()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def untimed(out):
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in log_of(out)]


def weights(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("**/*model.safetensors"))}


def same(a, b):
    assert weights(a) == weights(b) != {}
    assert (a / "trajectory.jsonl").read_bytes() == (b / "trajectory.jsonl").read_bytes()
    assert untimed(a) == untimed(b)
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_gone_on_with_it_is_the_run_that_never_stopped(kind, settings, tmp_path):
    settings = replace(settings, **KINDS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = run(settings, tmp_path / "whole")
    calls = result.members + (kind == "fzoo")  # which measures the weights as they are, too
    assert result.steps == 5 and not result.interrupted and any(entry.get("spread") for entry in log_of(tmp_path / "whole"))

    # The first call is of the model before the first iteration; the second iteration is the third to be judged on held-out rows.
    interrupt = call(1 + calls + 2, lambda values: signal.raise_signal(signal.SIGINT) or values)
    assert run(settings, tmp_path / "stopped", [interrupt]).interrupted
    assert len(log_of(tmp_path / "stopped")) == 4 and weights(tmp_path / "stopped") and not (tmp_path / "stopped" / "metrics.json").exists()
    assert not go_on(tmp_path / "stopped").interrupted and same(tmp_path / "stopped", tmp_path / "whole")

    kill = call(2 + 3 * calls - 1, lambda values: os.kill(os.getpid(), signal.SIGKILL))
    killed(lambda: run(settings, tmp_path / "killed", [kill]))
    assert go_on(tmp_path / "killed").steps == 5 and same(tmp_path / "killed", tmp_path / "whole")

    run(settings, tmp_path / "longer", steps=3)
    replay(str(tmp_path / "whole"), str(tmp_path / "third"), 3)
    assert weights(tmp_path / "third") == weights(tmp_path / "longer")
    assert go_on(tmp_path / "longer", steps=5).steps == 5 and weights(tmp_path / "longer") == weights(tmp_path / "whole")
    assert (tmp_path / "longer" / "trajectory.jsonl").read_bytes() == (tmp_path / "whole" / "trajectory.jsonl").read_bytes()
    assert [entry for entry in untimed(tmp_path / "longer") if "best" in entry or entry["step"] != 3] == untimed(tmp_path / "whole")


def test_killed_before_any_line_of_its_log(settings, tmp_path, monkeypatch):
    """The steps of the trajectory and the lines of the log are written one after the other."""
    run(settings, tmp_path / "whole")
    plain = Training._log
    for line in range(len(log_of(tmp_path / "whole"))):
        logged = 0

        def log(self, entry, at=line):
            nonlocal logged
            if logged == at:
                os.kill(os.getpid(), signal.SIGKILL)
            logged += 1
            plain(self, entry)

        with monkeypatch.context() as patch:
            patch.setattr(Training, "_log", log)
            killed(lambda at=line: run(settings, tmp_path / str(at)))
        with open(tmp_path / str(line) / "log.jsonl", "a") as file:
            file.write('{"step": 9, "rew')  # as a process leaves it that ends within a line
        go_on(tmp_path / str(line))
        assert same(tmp_path / str(line), tmp_path / "whole")


def test_the_log_may_be_lost(settings, tmp_path):
    run(settings, tmp_path / "run")
    whole = weights(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "log.jsonl").write_text("nothing\n")
    with pytest.raises(BadInput, match="log.jsonl' is damaged: restore it, or remove it$"):
        go_on(tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").unlink()
    said = []
    assert resume(str(tmp_path / "run"), said.append, rewards=[vowels]).steps == 5 and weights(tmp_path / "run") == whole
    assert any(line.endswith("log.jsonl' is gone: log and curve begin again at iteration 5") for line in said)
    go_on(tmp_path / "run", steps=6)
    run(settings, tmp_path / "whole", steps=6)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_stopped_before_the_first_iteration_and_twice(settings, tmp_path, monkeypatch):
    """A second Ctrl-C ends the run at once, within an iteration, with the weights of the one before."""
    plain = Training._log
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_log", lambda self, entry: plain(self, entry) or signal.raise_signal(signal.SIGINT))
        assert run(settings, tmp_path / "stopped").steps == 0
    run(settings, tmp_path / "whole")
    twice = call(1 + 4 + 2, lambda values: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        go_on(tmp_path / "stopped", [twice])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    go_on(tmp_path / "stopped")
    assert same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_best_is_kept(adapter, settings, tmp_path):
    judged, calls = {0: 0.1, 5: 0.4, 10: 0.9, 15: 0.2, 20: 0.3, 21: 0.9}, count()  # the last one of what is saved

    def scripted(completions):
        call = next(calls)
        return [judged[call]] * len(completions) if call in judged else vowels(completions)

    settings = replace(settings, adapter=(adapter,), eval_every=1, steps=4)
    result = run(settings, tmp_path / "best", [scripted], keep="best")
    assert result.best["step"] == 2 and result.kept == "best" and result.after["reward"] == pytest.approx(0.9)
    assert "best       reward 0.900 on held-out rows after iteration 2, which is saved" in result.lines()
    replay(str(tmp_path / "best"), str(tmp_path / "second"), 2)
    replay(str(tmp_path / "best"), str(tmp_path / "last"))
    assert weights(tmp_path / "best") == weights(tmp_path / "second") != weights(tmp_path / "last")


def test_several_rewards_are_weighed(settings, tmp_path):
    one, other = (run(replace(settings, reward_weights=w), tmp_path / str(w), [vowels, brief], steps=2) for w in ((1, 0.1), (10, 1)))
    assert list(one.before) == ["reward", "tokens", "rewards/vowels", "rewards/brief"]
    first, judged = (next(entry for entry in log_of(tmp_path / "(1, 0.1)") if name in entry) for name in ("best", "eval_reward"))
    assert first["reward"] == pytest.approx(first["rewards/vowels"] + 0.1 * first["rewards/brief"])
    assert judged["eval_reward"] == pytest.approx(judged["eval_rewards/vowels"] + 0.1 * judged["eval_rewards/brief"])
    assert other.before["reward"] == pytest.approx(10 * one.before["reward"])
    assert any(line.startswith("rewards/brief") for line in one.lines())


def test_names_of_functions_are_no_names_of_the_log(settings, tmp_path):
    def best(completions):
        return vowels(completions)

    def tokens(completions):
        return brief(completions)

    run(settings, tmp_path / "run", [best, tokens], steps=2)
    entry = log_of(tmp_path / "run")[1]
    assert entry["tokens"] == 4 * 4 * 4 and entry["rewards/tokens"] < 0 and entry["best"] >= entry["reward"]


def test_chat(settings, tmp_path):
    data = tmp_path / "chat.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"What is {i}?"}], "answer": str(i)} for i in range(10)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []

    def polite(completions, prompts, answer):
        seen.append((completions[0], prompts[0][-1]["role"], answer[0]))
        return vowels([message[0]["content"] for message in completions])

    run(settings, tmp_path / "run", [polite], data=str(data), steps=1)
    assert all(text[0]["role"] == "assistant" and role == "user" and answer.isdecimal() for text, role, answer in seen)
    run(settings, tmp_path / "text", ["contains:answer"], data=str(data), steps=1)


def raising(values):
    raise ZeroDivisionError("of mine")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (raising, r"reward 'vowels' raised ZeroDivisionError: of mine for "),
        (lambda values: values[:-1], r"reward 'vowels' returned 3 numbers for 4 rows \(.*line \d+.* and 1 more\)"),
        (lambda values: [*values[:-1], "good"], r"reward 'vowels' returned 'good' for .*, line \d+: return a finite number"),
        (lambda values: [None, *values[1:]], r"reward 'vowels' returned None for .*, line \d+: return a finite number"),
        (lambda values: [math.inf, *values[1:]], r"reward 'vowels' returned inf for .*, line \d+: return a finite number"),
        (lambda values: None, r"reward 'vowels' returned None: return a list with one number for each of the 4 rows"),
    ],
)
def test_a_reward_that_fails_in_the_middle(act, said, settings, tmp_path):
    """Within the third iteration: what was done stays, readable, and is gone on with."""
    run(settings, tmp_path / "whole")
    with pytest.raises(BadInput, match=f"{said}.*; the 2 iterations before are whole: zokern evolve --resume {tmp_path / 'run'}$"):
        run(settings, tmp_path / "run", [call(1 + 4 + 4 + 1 + 2, act)])
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")[:4]
    replay(str(tmp_path / "run"), str(tmp_path / "made"))
    replay(str(tmp_path / "whole"), str(tmp_path / "second"), 2)
    assert equal(tmp_path / "made", tmp_path / "second")
    with pytest.raises(BadInput, match=f"{said}[^;]*$"):  # at once: there is nothing to add
        go_on(tmp_path / "run", [call(2, act)])
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", tmp_path / "whole")


def test_a_reward_that_fails_at_once_leaves_nothing(settings, tmp_path):
    for at in (1, 3):
        with pytest.raises(BadInput, match="reward 'vowels' raised ZeroDivisionError: of mine"):
            run(settings, tmp_path / "run", [call(at, raising)])
        assert not (tmp_path / "run").exists()


def test_the_weights_are_restored_where_a_reward_fails(model, tokenizer):
    from zokern import EvolutionStrategies
    from zokern.evolve import Generator, Members, Rewards, Row

    before = [p.clone() for p in model.parameters()]
    optimizer = EvolutionStrategies(model.parameters(), sigma=0.05, population=4, maximize=True)
    rows = [Row("one", {}, "line 1"), Row("two", {}, "line 2")]
    members = Members(Generator(model, tokenizer, 3), Rewards([call(3, raising)]), rows, [[4, 5], [6]], (0, 0))
    with pytest.raises(BadInput, match="of mine"):
        optimizer.step(members)
    assert len(members.means) == 2 and optimizer.param_groups[0]["step"] == 0
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.filterwarnings("ignore:reward 'vowels' returned NaN", "ignore:step 0 had members")
def test_a_member_that_is_nan_is_dropped_and_counted(settings, tmp_path):
    result = run(settings, tmp_path / "run", [call(3, lambda values: [math.nan, *values[1:]])])
    assert (result.dropped, result.skipped) == (1, 0)
    assert any("1 members dropped for want of a finite reward" in line for line in result.lines())
    assert [entry["dropped"] for entry in log_of(tmp_path / "run") if "dropped" in entry] == [1, 0, 0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # what training has said, a replay does not say again
        replay(str(tmp_path / "run"), str(tmp_path / "made"))
    assert equal(tmp_path / "made", tmp_path / "run")


def test_all_members_nan(settings, saved, tmp_path, recwarn):
    """Iterations are skipped; ten on end are the end, of a run that can be gone on with."""

    def lost(judged=0):
        calls = count()

        def vowels_or_nan(completions):
            return vowels(completions) if next(calls) < judged else [math.nan] * len(completions)

        vowels_or_nan.__name__ = "vowels"
        return vowels_or_nan

    with pytest.raises(BadInput, match="^the rewards vowels are NaN for every held-out row: correct them, or pass --eval-data"):
        run(settings, tmp_path / "none", [lost()])
    assert not (tmp_path / "none").exists()
    recwarn.clear()
    done = run(settings, tmp_path / "short", [lost(1)], steps=4)
    assert (done.skipped, done.dropped) == (4, 16)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(tensors(tmp_path / "short").values(), tensors(saved).values(), strict=True))
    assert [str(warning.message).partition(" for ")[0] for warning in recwarn if warning.category is RuntimeWarning] == [
        "reward 'vowels' returned NaN"
    ]
    assert all(entry.get("reward", entry.get("eval_reward")) is None for entry in log_of(tmp_path / "short")[1:])
    assert json.loads((tmp_path / "short" / "metrics.json").read_text())["after"]["reward"] is None
    cure = "look at the rewards, or begin again with a smaller --lr than 0.025, or a smaller --sigma"
    with pytest.raises(BadInput, match=f"10 iterations running, up to 10, were skipped for want of finite rewards: {cure}; the 10 "):
        run(settings, tmp_path / "run", [lost(1)], steps=25)
    with pytest.raises(BadInput, match="10 iterations running, up to 20, were skipped"):
        go_on(tmp_path / "run", [lost()])
    assert go_on(tmp_path / "run").steps == 25


def test_a_held_out_row_without_a_reward_is_not_counted(settings, tmp_path):
    """So that the evaluations go on, and the best is found."""

    def picky(prompts, completions, answer):
        return [math.nan if prompt == lost else float(int(right)) for prompt, right in zip(prompts, answer)]

    lost = None
    mean_of_all = run(settings, tmp_path / "all", [picky], steps=1).before["reward"]
    from zokern.evolve.prompts import load

    held_out = load(settings.data, seed=settings.seed)[2]
    lost, values = held_out[0].prompt, [float(row.columns["answer"]) for row in held_out]
    assert mean_of_all == pytest.approx(sum(values) / 4)
    with pytest.warns(RuntimeWarning, match="reward 'picky' returned NaN .* a held-out row is not counted"):
        result = run(settings, tmp_path / "run", [picky], keep="best")
    assert result.before["reward"] == result.after["reward"] == pytest.approx(sum(values[1:]) / 3)
    assert result.best["step"] == 2 and result.dropped == 0


def test_the_curve(drawn, settings, tmp_path):
    run(settings, tmp_path / "run", steps=1)
    assert (tmp_path / "run" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_rewards_and_rows_are_those_that_the_run_began_with(settings, sums, tmp_path):
    data = tmp_path / "own.jsonl"
    data.write_text(sums.read_text())
    run(settings, tmp_path / "run", [call(6, lambda values: signal.raise_signal(signal.SIGINT) or values)], data=str(data))
    with pytest.raises(BadInput, match=r"began with rewards given in Python, vowels: pass them to zokern.evolve.resume\(folder, rewards="):
        resume(str(tmp_path / "run"))
    with pytest.raises(BadInput, match="the run began with the rewards vowels, and here are brief: pass those it began with"):
        go_on(tmp_path / "run", [brief])
    data.write_text(sums.read_text().replace("3 and 3", "three and 3"))
    with pytest.raises(BadInput, match="the rows are not those that the run began with: restore --data"):
        go_on(tmp_path / "run")
    data.write_text(sums.read_text())
    own, theirs = tmp_path / "run" / "trajectory.jsonl", tmp_path / "other" / "trajectory.jsonl"
    run(settings, tmp_path / "other", seed=1, data=str(data))
    held = own.read_bytes()
    own.write_bytes(theirs.read_bytes())
    with pytest.raises(BadInput, match=r"trajectory.jsonl' is of another run \(seed 1, here 0\): restore it"):
        go_on(tmp_path / "run")
    own.write_bytes(held)
    initial = tmp_path / "run" / "initial.safetensors"
    held = initial.read_bytes()
    initial.write_bytes(held + b"more")
    with pytest.raises(BadInput, match="initial.safetensors' is not the file that the run began with: restore it"):
        go_on(tmp_path / "run")
    initial.write_bytes(held)
    assert go_on(tmp_path / "run").steps == 5


def test_a_record_is_read_back(settings):
    for kind in KINDS.values():
        given = replace(settings, stop=("\n", "a,b"), reward=("exact:answer", "length:3"), reward_weights=(1.0, 0.5), **kind).checked()
        assert Settings.of(json.loads(json.dumps(given.record()))) == replace(given, optimizer_settings=given.optimizer_settings)
