"""Logs as they are read: whole, torn, edited, of others; and saved in another form."""

import json
import zlib

import numpy as np
import pytest
import torch
from trajectory_cases import Net, batch, optimizer_of

from zokern import MeZO, Trajectory, record, trajectory


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
    "a reading": (5, lambda line: [line.replace(b"[2.", b"[3.").replace(b"null", b"1.5")], "line 5 was edited: its checksum is another"),
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
    "another noise": (1, header_with(noise_spec=9), "line 1: noise_spec=9, this zokern makes noise 1"),
    "half a header": (1, header_with(groups=None), "line 1 lacks 'groups'"),
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
    for line, (readings, changes) in zip(lines, run.steps):
        losses = [np.nan if x is None else float(np.float32(x)) for x in line["losses"]]
        np.testing.assert_array_equal(readings, losses)
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


@pytest.mark.parametrize("name", ["MeZO", "MeZO defer", "MeZO sparse blocks", "ZOAdam", "MeZOSVRG copy"])
def test_safetensors_hold_the_same(recorded, tmp_path, name):
    def after(step, optimizer, *_):
        if step == 3:
            optimizer.flush()
            for group in optimizer.param_groups:
                group["weight_decay"] = 1  # an int, and then none again
        if step == 4:
            optimizer.param_groups[0]["eps"] = 0.5

    path, *_ = recorded(name, steps=9, nan_at=4, after=after)
    run, other, back = Trajectory.read(path), tmp_path / "run.safetensors", tmp_path / "back.jsonl"
    run.save(other)
    read = Trajectory.read(other)
    assert read.header == run.header and not read.torn
    for (a, c), (b, d) in zip(run.steps, read.steps):
        np.testing.assert_array_equal(a, b)
        assert c == d
    read.save(back)
    assert back.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.jsonl", "run.jsonl", "run.safetensors"]


def test_readings_in_float64_come_back_from_safetensors(tmp_path):
    theta, path = torch.nn.Parameter(torch.ones(3, dtype=torch.float16)), tmp_path / "run.jsonl"
    optimizer = MeZO([theta])
    with record(optimizer, path):
        for _ in range(3):
            optimizer.step(lambda: theta.double().square().sum().sqrt())
    assert '"exact"' in path.read_text()
    Trajectory.read(path).save(tmp_path / "run.safetensors")
    Trajectory.read(tmp_path / "run.safetensors").save(tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == path.read_bytes()


def test_an_empty_run(tmp_path):
    net = Net()
    record(optimizer_of("MeZO", net), tmp_path / "run.jsonl").close()
    run = Trajectory.read(tmp_path / "run.jsonl")
    run.save(tmp_path / "run.safetensors")
    run = Trajectory.read(tmp_path / "run.safetensors")
    assert len(run) == 0 and run.losses().shape == (0,)
    run.replay(net)
    assert "0 steps" in trajectory.lines(run)[0]


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"nothing of the kind"])
def test_other_safetensors_are_refused(tmp_path, content):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="other.safetensors"):
        Trajectory.read(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="holds no trajectory: pass what Trajectory.save wrote"):
        Trajectory.read(path)


def test_safetensors_that_do_not_fit_together(log, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "run.safetensors"
    Trajectory.read(log).save(path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    save_file({**arrays, "readings": arrays["readings"][1:]}, path, metadata)
    with pytest.raises(ValueError, match="cannot be read .*15 readings, where the counts add up to 16"):
        Trajectory.read(path)
    del arrays["counts"]
    save_file(arrays, path, metadata)
    with pytest.raises(ValueError, match="cannot be read .*counts"):
        Trajectory.read(path)


def test_another_suffix_and_no_safetensors(log, tmp_path, monkeypatch):
    run = Trajectory.read(log)
    with pytest.raises(ValueError, match="pass a name in .safetensors or .jsonl"):
        run.save(tmp_path / "run.txt")
    from zokern import errors

    monkeypatch.setattr(errors, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match="safetensors is not installed"):
        run.save(tmp_path / "run.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["run.jsonl"]


def test_a_description(log):
    log.write_bytes(log.read_bytes()[:-5])
    run = Trajectory.read(log)
    found = trajectory.describe(run)
    json.dumps(found, allow_nan=False)
    losses = run.losses()
    header, *rest = log.read_bytes().split(b"\n")
    expected = dict(
        steps=7, skipped=1, followed=7, first_loss=losses[0], last_loss=losses[6], optimizer="MeZO", changed=["lr"], groups=2,
        tensors=5, parameters=77 + 63 + 63 + 9, dtypes={"float32": 212}, sparse_or_in_blocks=[], noise_spec=1, format=1,
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
    assert trajectory.describe(Trajectory.read(path))["skipped"] == optimizer.skipped
