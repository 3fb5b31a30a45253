"""A log goes on only with the weights that it led to: what moved them before a state was saved, or after, is known or refused."""

import copy
import io
import os
import pickle
import warnings

import pytest
import torch
from trajectory_cases import Net, batch, optimizer_of, same, train, weights

from zokern import Trajectory, record
from zokern.trajectory import position
from zokern.trajectory.position import Writes


def raise_in_the_closure(optimizer, net):
    def closure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)


def drop_a_measurement(optimizer, net):
    optimizer.measure(lambda: net(batch(0)))


def write(optimizer, net):
    with torch.no_grad():
        net.bias.add_(0.5)


DISTURBANCES = {"a closure that raised": raise_in_the_closure, "a dropped measurement": drop_a_measurement, "a writer": write}
OPTIMIZERS = ["MeZO", "MeZO defer", "MeZO blocks", "ZOConservative", "ZOSign", "ZOMomentum", "ZOAdam", "MeZOSVRG copy"]


def saved(net, optimizer, state_first=True):
    """A checkpoint, as bytes."""
    buffer = io.BytesIO()
    state = optimizer.state_dict() if state_first else None
    held = {"net": copy.deepcopy(net.state_dict()), "optimizer": state or optimizer.state_dict()}
    torch.save(held, buffer)
    return buffer.getvalue()


def resumed(name, checkpoint, dtype=torch.float32):
    """As a new process makes them."""
    net = Net(dtype)
    optimizer = optimizer_of(name, net)
    held = torch.load(io.BytesIO(checkpoint), weights_only=True)
    net.load_state_dict(held["net"])
    optimizer.load_state_dict(held["optimizer"])
    return net, optimizer


def interrupted(path, name, dtype=torch.float32, before=5, disturb=lambda *_: None):
    """-> the checkpoint of a run that ended after some steps."""
    net = Net(dtype)
    optimizer = optimizer_of(name, net)
    with record(optimizer, path):
        train(optimizer, net, range(before))
        optimizer.flush()
        disturb(optimizer, net)
        return saved(net, optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("what", DISTURBANCES)
def test_what_moved_the_weights_before_they_were_saved_is_known_after(tmp_path, name, what):
    """The run that is resumed logs what the run that was not interrupted logs."""
    logs = [tmp_path / "resumed.jsonl", tmp_path / "whole.jsonl"]
    net, optimizer = resumed(name, interrupted(logs[0], name, disturb=DISTURBANCES[what]))
    with pytest.warns(RuntimeWarning, match="between steps 4 and 5: .* can be made again up to step 5, not later"):
        with record(optimizer, logs[0], resume=True):
            train(optimizer, net, range(5, 8))
    whole = Net()
    optimizer = optimizer_of(name, whole)
    with record(optimizer, logs[1]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(optimizer, whole, range(5))
        optimizer.flush()
        DISTURBANCES[what](optimizer, whole)
        optimizer.state_dict()
        train(optimizer, whole, range(5, 8))
    run = Trajectory.read(logs[0])
    assert [step for step, (_, changes) in enumerate(run.steps) if changes.get("disturbed")] == [5]
    if name != "MeZOSVRG copy":  # whether its anchor had anything to flush a resumed run does not know
        assert logs[0].read_bytes() == logs[1].read_bytes()
    again = Net()
    with pytest.raises(ValueError, match="can be made again up to step 5"):
        run.replay(again)
    expected = Net()
    optimizer = optimizer_of(name, expected)
    train(optimizer, expected, range(5))
    optimizer.flush()
    assert same(again, weights(expected))


def test_the_mark_outlives_a_process_that_makes_no_step(tmp_path):
    path = tmp_path / "run.jsonl"
    checkpoint = interrupted(path, "MeZO", disturb=write)
    for _ in range(2):
        net, optimizer = resumed("MeZO", checkpoint)
        with record(optimizer, path, resume=True):
            checkpoint = saved(net, optimizer)
    net, optimizer = resumed("MeZO", checkpoint)
    with record(optimizer, path, resume=True), pytest.warns(RuntimeWarning, match="up to step 5"):
        train(optimizer, net, [5])


def other_weights(net, optimizer):
    with torch.no_grad():
        net.middle[0, 0] += 2**-20


def unrecorded_steps(net, optimizer):
    train(optimizer, net, [3])


def measured_and_left(net, optimizer):
    optimizer.estimate(lambda: net(batch(0)))


CHANGED = {
    "a weight": (other_weights, "the weights are not those that the optimizer's state was saved with, after step 3 of .*run.jsonl: load"),
    "a measurement": (measured_and_left, "the weights are not those"),
    "steps": (unrecorded_steps, "the optimizer is at step 4, its log was left at step 3, and the steps in between are in none"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_weights_that_are_not_the_states_are_refused(tmp_path, what):
    change, message = CHANGED[what]
    path = tmp_path / "run.jsonl"
    net = Net()
    optimizer = optimizer_of("MeZO", net)
    with record(optimizer, path):
        train(optimizer, net, range(3))
        checkpoint = saved(net, optimizer)
        train(optimizer, net, range(3, 6))
    before = path.read_bytes()
    net, optimizer = resumed("MeZO", checkpoint)
    change(net, optimizer)
    with pytest.raises(ValueError, match=message):
        record(optimizer, path, resume=True)
    assert path.read_bytes() == before


def test_weights_saved_while_an_update_was_pending_are_refused(tmp_path):
    path, net = tmp_path / "run.jsonl", Net()
    optimizer = optimizer_of("MeZO defer", net)
    with record(optimizer, path):
        train(optimizer, net, range(3))
        checkpoint = saved(net, optimizer, state_first=False)
    net, optimizer = resumed("MeZO defer", checkpoint)
    with pytest.raises(ValueError, match=r"not those that .* with defer=True calls flush\(\) before saving the weights"):
        record(optimizer, path, resume=True)


def test_the_log_of_other_data_is_refused(tmp_path):
    """Optimizer, settings and base weights are the same, and so are the numbers of steps."""
    checkpoint = interrupted(tmp_path / "mine.jsonl", "MeZO")
    net, theirs = Net(), tmp_path / "theirs.jsonl"
    optimizer = optimizer_of("MeZO", net)
    with record(optimizer, theirs):
        train(optimizer, net, range(10, 18))
    before = theirs.read_bytes()
    _, optimizer = resumed("MeZO", checkpoint)
    with pytest.raises(ValueError, match="theirs.jsonl is the log of another run: its first 5 steps are not those of the optimizer"):
        record(optimizer, theirs, resume=True)
    assert theirs.read_bytes() == before


@pytest.mark.parametrize("logged", [None, "nonsense", {"step": 5}])
def test_a_state_that_does_not_say(tmp_path, logged):
    """An earlier checkpoint, or one whose keeper leaves out what it does not know."""
    path = tmp_path / "run.jsonl"
    held = torch.load(io.BytesIO(interrupted(path, "MeZO")), weights_only=True)
    held["optimizer"]["logged"] = logged
    net = Net()
    optimizer = optimizer_of("MeZO", net)
    net.load_state_dict(held["net"])
    optimizer.load_state_dict(held["optimizer"])
    with (
        record(optimizer, path, resume=True),
        pytest.warns(RuntimeWarning, match="does not say which weights .* up to step 5, not later"),
    ):
        train(optimizer, net, range(5, 7))
    with pytest.raises(ValueError, match="up to step 5"):
        Trajectory.read(path).replay(Net())


def in_the_same_process(net, optimizer, path):
    return net, optimizer


def after_the_log_was_closed(net, optimizer, path):
    return resumed("MeZO defer", saved(net, optimizer), torch.bfloat16)


def through_a_process_that_does_not_record(net, optimizer, path):
    return resumed("MeZO defer", saved(*resumed("MeZO defer", saved(net, optimizer), torch.bfloat16)), torch.bfloat16)


def pickled(net, optimizer, path):
    optimizer.flush()
    return pickle.loads(pickle.dumps((net, optimizer)))


def copied(net, optimizer, path):
    optimizer.flush()
    return copy.deepcopy((net, optimizer))


def replayed(net, optimizer, path):
    optimizer.flush()
    again = Net(torch.bfloat16)
    return again, Trajectory.read(path).replay(again)


def replayed_and_saved(net, optimizer, path):
    return resumed("MeZO defer", saved(*replayed(net, optimizer, path)), torch.bfloat16)


WAYS = (
    in_the_same_process, after_the_log_was_closed, through_a_process_that_does_not_record, pickled, copied, replayed, replayed_and_saved,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_honest_ways_of_going_on(tmp_path, way):
    """In 16 bits and with updates pending between steps, where every pass changes bits."""
    path, net = tmp_path / "run.jsonl", Net(torch.bfloat16)
    optimizer = optimizer_of("MeZO defer", net)
    with record(optimizer, path):
        train(optimizer, net, range(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "there are weights in 16 bits, and so theta is kept in float32")
        net, optimizer = way(net, optimizer, path)
        with record(optimizer, path, resume=True):
            train(optimizer, net, range(4, 8))
    optimizer.flush()
    again = Net(torch.bfloat16)
    Trajectory.read(path).replay(again)
    assert same(again, weights(net)) and '"disturbed"' not in path.read_text()


def test_what_is_written_after_the_log_was_closed_is_known(tmp_path):
    path, net = tmp_path / "run.jsonl", Net()
    optimizer = optimizer_of("MeZO", net)
    with record(optimizer, path):
        train(optimizer, net, range(3))
    write(optimizer, net)
    with record(optimizer, path, resume=True), pytest.warns(RuntimeWarning, match="up to step 3"):
        train(optimizer, net, [3])


def test_a_state_that_is_loaded_while_steps_are_recorded(tmp_path):
    """At the same step: nothing tells whose it is."""
    path, net = tmp_path / "run.jsonl", Net()
    optimizer = optimizer_of("MeZO", net)
    with record(optimizer, path):
        train(optimizer, net, range(3))
        state = optimizer.state_dict()
        write(optimizer, net)
        optimizer.load_state_dict(state)
        with pytest.warns(RuntimeWarning, match="a state was loaded between steps 2 and 3: .* up to step 3, not later"):
            train(optimizer, net, [3])
        state = optimizer.state_dict()
    assert state["logged"]["step"] == 4 and not state["logged"]["disturbed"]  # beyond the mark in the log


def test_at_step_0_a_state_may_be_loaded(tmp_path):
    """As accelerate does when it prepares an optimizer."""
    path, net = tmp_path / "run.jsonl", Net()
    optimizer = optimizer_of("MeZO", net)
    with record(optimizer, path), warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(optimizer.state_dict())
        train(optimizer, net, range(3))
    again = Net()
    Trajectory.read(path).replay(again)
    assert same(again, weights(net))


@pytest.mark.parametrize("name", ["MeZO", "MeZO one-sided"])
def test_what_was_measured_before_recording_is_dropped(tmp_path, name):
    path, net = tmp_path / "run.jsonl", Net(torch.bfloat16)
    optimizer = optimizer_of(name, net)
    optimizer.measure(lambda: net(batch(0)))
    with record(optimizer, path), warnings.catch_warnings():
        warnings.simplefilter("error")
        base = weights(net)
        with pytest.raises(ValueError, match="closure=None"):
            optimizer.step()
        train(optimizer, net, range(3))
    again = Net(torch.bfloat16)
    with torch.no_grad():
        for key, p in again.named_parameters():
            p.copy_(base[key])
    Trajectory.read(path).replay(again)
    assert same(again, weights(net))


def test_a_state_costs_one_digest_and_only_where_a_log_is(tmp_path, monkeypatch):
    calls, real = [], position.digests
    monkeypatch.setattr(position, "digests", lambda tensors: calls.append(1) or real(tensors))
    net = Net()
    optimizer = optimizer_of("MeZO", net)
    assert "logged" not in optimizer.state_dict()
    with record(optimizer, tmp_path / "run.jsonl"):
        train(optimizer, net, range(3))
        assert not calls
        optimizer.state_dict()
    assert calls == [1]
    assert Writes.of(optimizer).disturbed_until(Writes.of(optimizer), 3) is None


@pytest.mark.parametrize("written", ["all", "half"])
def test_an_interrupt_while_a_line_is_written(tmp_path, monkeypatch, written):
    """Whether or not the line was written, it is there once."""
    path, net = tmp_path / "run.jsonl", Net()
    optimizer, real = optimizer_of("MeZO", net), os.write
    recorder = record(optimizer, path)
    train(optimizer, net, range(2))

    def stop(file, data):
        if file != recorder.log.file:
            return real(file, data)
        real(file, data if written == "all" else data[: len(data) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            train(optimizer, net, [2])
    train(optimizer, net, range(3, 5))
    recorder.close()
    again = Net()
    run = Trajectory.read(path)
    run.replay(again)
    assert len(run) == 5 and same(again, weights(net))


def test_an_interrupt_after_a_line_was_written(tmp_path, monkeypatch):
    """It comes between the write and its account: the file has more than the log knows of."""
    path, net = tmp_path / "run.jsonl", Net()
    optimizer = optimizer_of("MeZO", net)
    recorder = record(optimizer, path)
    train(optimizer, net, range(2))
    log, size = recorder.log, recorder.log.size
    os.write(log.file, b'{"step":2,"losses":[1.0,')
    log._torn = True
    train(optimizer, net, range(2, 4))
    recorder.close()
    assert len(Trajectory.read(path)) == 4 and log.size > size


@pytest.mark.parametrize("name, change, message", [
    ("MeZO", dict(lr=-1.0), r"step 2 cannot be logged in .*run.jsonl, which ends before it: lr=-1.0: it is a number >= 0"),
    ("MeZO", dict(lr=float("nan")), "lr=nan: it is a number >= 0"),
    ("ZOAdam", dict(betas=(0.9, 2.0)), r"betas=\[0.9, 2.0\]: it is two numbers in \[0, 1\)"),
    ("MeZOSVRG copy", dict(anchor="replay"), "anchor='replay' is new in the middle of a run"),
])  # fmt: skip
def test_a_setting_that_no_log_holds_is_refused_where_it_is_used(tmp_path, name, change, message):
    path, net = tmp_path / "run.jsonl", Net()
    optimizer = optimizer_of(name, net, groups=1)
    recorder = record(optimizer, path)
    train(optimizer, net, range(2))
    before = path.read_bytes()
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match=message):
        train(optimizer, net, [2])
    with pytest.raises(ValueError, match=message):
        recorder.close()
    assert path.read_bytes() == before and len(Trajectory.read(path)) == 2
