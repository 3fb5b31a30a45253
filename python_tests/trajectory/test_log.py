"""Logs as they are read: whole, torn, edited, of others."""

import json
import math
import warnings
import zlib

import numpy as np
import pytest
import torch
from trajectory_cases import Net, batch, optimizer_of

from zokern import EvolutionStrategies, Trajectory, record, trajectory


@pytest.fixture
def log(recorded):
    return recorded(steps=8, nan_at=3)[0]


def rewritten(path, number, change):
    """The log with line ``number`` (from 1) changed."""
    lines = path.read_bytes().split(b"\n")
    lines[number - 1 : number] = change(lines[number - 1])
    path.write_bytes(b"\n".join(lines))


def sealed(header):
    body = json.dumps(header, separators=(",", ":"))[:-1].encode()
    return [body + b',"crc":"%08x"}' % zlib.crc32(body)]


def header_with(**changes):
    def change(line):
        header = {**json.loads(line), **changes}
        del header["crc"]
        return sealed({name: value for name, value in header.items() if value is not None})

    return change


BROKEN = {
    "not JSON": (4, lambda line: [line[:-1]], "line 4 is not JSON, or cut off"),
    "another thing": (4, lambda line: [b"[1]"], "line 4 is not JSON, or cut off"),
    "a measurement": (
        5,
        lambda line: [line.replace(b"[2.", b"[3.").replace(b"null", b"1.5")],
        "line 5 was edited: its checksum is another",
    ),
    "a setting": (6, lambda line: [line.replace(b'"lr":[0.0', b'"lr":[0.1')], "line 6 was edited"),
    "a checksum": (6, lambda line: [line[:-3] + (b'0"}' if line[-3:-2] != b"0" else b'1"}')], "line 6 was edited"),
    "no checksum": (6, lambda line: [line[:-14] + b"}"], "line 6 was edited: it does not end in a checksum"),
    "more behind it": (6, lambda line: [line[:-1] + b',"more":1}'], "line 6 was edited: it does not end in a checksum"),
    "a line less": (4, lambda line: [], "line 4 holds step 3 where step 2 is due: lines are missing or out of order"),
    "a line twice": (4, lambda line: [line, line], "line 5 holds step 2 where step 3 is due"),
    "an empty line": (4, lambda line: [b"", line], "line 4 is not JSON"),
    "the header": (1, lambda line: [line.replace(b"a test", b"a pest")], "line 1 was edited"),
    "another header": (1, lambda line: [b"{}"], "line 1 is not the header of a trajectory"),
    "another format": (1, header_with(format=2), "line 1: format 2, this zokern reads 1"),
    "another noise": (1, header_with(noise_spec=9), "line 1: noise_spec=9, this zokern makes noise 2"),
    "half a header": (1, header_with(groups=None), "line 1: it lacks 'groups'; use the zokern that wrote it"),
    "no header": (1, lambda line: [], "line 1 is not the header of a trajectory"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_log_is_refused_with_its_line(log, what):
    number, change, message = BROKEN[what]
    before = log.read_bytes()
    rewritten(log, number, change)
    assert log.read_bytes() != before
    with pytest.raises(ValueError, match=rf"run\.jsonl, {message}"):
        Trajectory.read(log)


def test_the_lines_of_another_run_are_noticed(log, recorded, tmp_path):
    """Line by line they are well made; the chain is not."""
    lines = log.read_bytes().split(b"\n")
    other = tmp_path / "other.jsonl"
    log.rename(other)
    recorded(steps=8, nan_at=3, seed=6)
    theirs = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([*lines[:4], theirs[4], *lines[5:]]))
    with pytest.raises(ValueError, match="line 5 was edited"):
        Trajectory.read(log)


def test_a_torn_last_line_is_left_out(log):
    data, whole = log.read_bytes(), Trajectory.read(log)
    assert not whole.torn and len(whole) == 8
    last = data.rstrip(b"\n").rindex(b"\n") + 1
    for end in (last + 1, last + 9, len(data) - 1):
        log.write_bytes(data[:end])
        torn = Trajectory.read(log)
        assert torn.torn and len(torn) == 7
        assert [repr(step) for step in torn.steps] == [repr(step) for step in whole.steps][:7]
    log.write_bytes(data[:20])
    with pytest.raises(ValueError, match="line 1 is cut off or missing"):
        Trajectory.read(log)


def test_a_torn_log_goes_on(log):
    data = log.read_bytes()
    log.write_bytes(data[:-5])
    net = Net()
    optimizer = Trajectory.read(log).replay(net)
    record(optimizer, log, resume=True).close()
    assert data.startswith(log.read_bytes()) and len(Trajectory.read(log)) == 7 and not Trajectory.read(log).torn


def test_what_is_read(log):
    run = Trajectory.read(log)
    assert len(run) == len(run.steps) == 8 and run.path == log and run.size == log.stat().st_size
    lines = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    for line, (measurements, changes) in zip(lines, run.steps):
        losses = [np.nan if x is None else float(np.float32(x)) for x in line["losses"]]
        np.testing.assert_array_equal(measurements, losses)
        assert changes == {name: value for name, value in line.items() if name not in ("step", "losses", "crc")}
        np.testing.assert_array_equal(run.losses()[line["step"]], np.mean(losses))
    assert np.isnan(run.losses()[3]) and "lr" in run.steps[1].changes and len(run.steps[1].changes["lr"]) == 2
    assert run.steps[-1].changes == run.steps[7].changes
    with pytest.raises(IndexError):
        run.steps[8]


@pytest.mark.parametrize("name", ["ZOConservative", "MeZO one-sided", "MeZOSVRG copy", "ForwardGradient"])
def test_losses_are_what_step_returned(tmp_path, name):
    net, returned = Net(), []
    optimizer = optimizer_of(name, net)
    with record(optimizer, tmp_path / "run.jsonl"):
        for step in range(5):
            returned.append(float(optimizer.step(lambda: net(batch(step)))))  # noqa: B023
    np.testing.assert_allclose(Trajectory.read(tmp_path / "run.jsonl").losses(), returned, rtol=1e-15)


def test_an_empty_run(tmp_path):
    net = Net()
    record(optimizer_of("MeZO", net), tmp_path / "run.jsonl").close()
    run = Trajectory.read(tmp_path / "run.jsonl")
    assert len(run) == 0 and run.losses().shape == (0,)
    run.replay(net)
    assert "0 steps" in trajectory.lines(run)[0]


def test_a_description(log):
    log.write_bytes(log.read_bytes()[:-5])
    run = Trajectory.read(log)
    found = trajectory.describe(run)
    json.dumps(found, allow_nan=False)
    losses = run.losses()
    header, *rest = log.read_bytes().split(b"\n")
    expected = dict(
        steps=7, skipped=1, dropped=0, followed=7, first_loss=losses[0], last_loss=losses[6], optimizer="MeZO", changed=["lr"], groups=2,
        tensors=5, parameters=77 + 63 + 63 + 9, dtypes={"float32": 212}, sparse_or_in_blocks=[], noise_spec=2, format=1,
        torn=True, notes={"by": "a test"},
        bytes=run.size, bytes_a_step=round((run.size - len(header) - 1) / 7, 1),
    )  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["settings"]["lr"] == [0.01, 0.003] and found["settings"]["seed"] == 5 and len(found["base"]) == 16
    text = trajectory.lines(run)
    assert text[0] == f"MeZO: 7 steps, loss {losses[0]:.6g} to {losses[6]:.6g}, 1 skipped"
    assert text[1].startswith("settings: lr=[0.01, 0.003], eps=0.01, weight_decay=0.1, q=1, seed=5")
    assert "parameters: 212 float32 in 5 tensors and 2 groups" in text and "by: a test" in text
    assert any("was cut off" in line and "good up to step 7" in line for line in text)


@pytest.mark.parametrize("name", ["MeZO", "ZOConservative", "MeZOSVRG copy", "ForwardGradient"])
@pytest.mark.parametrize("nan_at", [2, 3])
def test_skipped_steps_are_counted_as_the_optimizer_counts_them(recorded, name, nan_at):
    path, _, optimizer = recorded(name, steps=6, nan_at=nan_at)
    assert trajectory.describe(Trajectory.read(path))["skipped"] == optimizer.skipped == 1


def test_no_flipped_bit_goes_unnoticed(recorded):
    """Of all bits of a log. One in its last line feed makes that line a torn one."""
    path = recorded("ZOAdam", steps=4, groups=1)[0]
    data, whole = path.read_bytes(), [repr(step) for step in Trajectory.read(path).steps]
    torn = 0
    for at in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            try:
                run = Trajectory.read(path)
            except ValueError as error:
                assert "run.jsonl, line " in str(error) and "\n" not in str(error)
                continue
            torn += 1
            assert run.torn and [repr(step) for step in run.steps] == whole[:3] and at == len(data) - 1
    assert torn == 8


def test_dropped_members_are_counted_in_the_summary(tmp_path):
    """Of two steps, one with two members that are not finite; a loss that is not is none of the first step's mean."""
    p = torch.nn.Parameter(torch.ones(5))
    optimizer = EvolutionStrategies([p], population=4, maximize=True)
    rewards = iter([1.0, math.nan, 2.0, math.inf, 1.0, 2.0, 3.0, 4.0])
    with warnings.catch_warnings(), record(optimizer, tmp_path / "log"):
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(2):
            optimizer.step(lambda: next(rewards))
    log = Trajectory.read(tmp_path / "log")
    said = trajectory.describe(log)
    assert (said["dropped"], said["skipped"], optimizer.dropped) == (2, 0, 2)
    assert log.losses().tolist() == [1.5, 2.5]
    assert trajectory.lines(log)[0] == "EvolutionStrategies: 2 steps, reward 1.5 to 2.5, 2 members dropped"
