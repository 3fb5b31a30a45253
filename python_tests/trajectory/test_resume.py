"""A run that goes on with its log, after kill -9 or otherwise, is the run that was never interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trajectory_cases import Net, optimizer_of, same, train, weights

import zokern
from zokern import MeZO, Trajectory, ZOAdam, ZOSign, record

KILLED = Path(__file__).parent / "killed.py"
ROOT = Path(zokern.__file__).parent.parent


def scheduled(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 12)


def uninterrupted(path, name, dtype, flush_at):
    net = Net(dtype)
    optimizer = optimizer_of(name, net)
    with record(optimizer, path):
        train(optimizer, net, range(12), scheduled(optimizer), after=lambda step: step + 1 == flush_at and optimizer.flush())
    optimizer.flush()
    return weights(net)


CASES = [("MeZO", "float32"), ("ZOAdam", "bfloat16"), ("MeZO defer", "float16"), ("MeZOSVRG copy", "bfloat16")]
SAVED, ENDED = 5, 9


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of what runs left behind that were killed."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    cases = [word for case in CASES for word in case]
    done = subprocess.run([sys.executable, KILLED, folder, str(SAVED), str(ENDED), *cases], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(int(-signal.SIGKILL))] * len(CASES), done.stderr
    return folder


@pytest.mark.parametrize("name, dtype", CASES)
def test_a_killed_run_goes_on(killed, tmp_path, name, dtype):
    path = killed / f"{name}-{dtype}" / "run.jsonl"
    assert len(Trajectory.read(path)) == ENDED
    with path.open("ab") as file:
        file.write(b'{"step":9,"los')  # as if it had been killed in a write

    net = Net(getattr(torch, dtype))
    optimizer = optimizer_of(name, net)
    scheduler = scheduled(optimizer)
    state = torch.load(path.parent / "state.pt", weights_only=True)
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    with record(optimizer, path, resume=True):
        assert len(Trajectory.read(path)) == SAVED and not Trajectory.read(path).torn
        train(optimizer, net, range(SAVED, 12), scheduler)
    optimizer.flush()

    expected = uninterrupted(tmp_path / "whole.jsonl", name, getattr(torch, dtype), flush_at=SAVED)
    assert same(net, expected)
    if name != "MeZOSVRG copy":  # after an anchor there is nothing to flush, which a resumed run does not know
        assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    again = Net(getattr(torch, dtype))
    Trajectory.read(path).replay(again)
    assert same(again, expected)


def test_resuming_at_step_0(recorded):
    path, *_ = recorded("MeZO", steps=4)
    header = path.read_bytes().split(b"\n")[0]
    net = Net()
    with torch.no_grad():
        net.bias.add_(1)
    with pytest.raises(ValueError, match="parameter 'bias' has other values than the run of .* began with"):
        record(optimizer_of("MeZO", net), path, resume=True)
    assert len(Trajectory.read(path)) == 4
    record(optimizer_of("MeZO", Net()), path, resume=True).close()
    assert path.read_bytes() == header + b"\n"


@pytest.mark.parametrize("content", [None, b"", b'{"zokern":"traj'])
def test_nothing_to_resume_at_step_0_is_a_new_log(tmp_path, content):
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    net = Net()
    optimizer = optimizer_of("MeZO", net)
    with record(optimizer, path, resume=True):
        train(optimizer, net, range(2))
    assert len(Trajectory.read(path)) == 2


def other_layout(net):
    net.embed, net.middle = net.middle, net.embed


CHANGES = {
    "class": (lambda net: ZOSign(list(net.named_parameters()), lr=1e-2), "the optimizer is 'MeZO' there and 'ZOSign' here"),
    "seed": (lambda net: optimizer_of("MeZO", net, seed=6), "seed is 5 there and 6 here"),
    "q": (lambda net: optimizer_of("MeZO q=2", net), "q is 1 there and 2 here"),
    "defer": (lambda net: optimizer_of("MeZO defer", net), "defer is False there and True here"),
    "groups": (lambda net: optimizer_of("MeZO", net, groups=1), r"the number of parameters a group is \[2, 3\] there and \[5\] here"),
    "number": (lambda net: MeZO(list(net.named_parameters())[:3], seed=5), "has 5 parameters, given are 3"),
    "names": (
        lambda net: MeZO(net.parameters(), seed=5),
        r"the name of parameter 0 \('embed'\) is 'embed' in the log and '' here; .*; and 2 more",
    ),
    "dtype": (
        lambda net: optimizer_of("MeZO", net.half()),
        r"the dtype of parameter 0 \('embed'\) is 'float32' in the log and 'float16' here",
    ),
    "shape": (
        lambda net: (net.bias.set_(torch.ones(8)), optimizer_of("MeZO", net))[1],
        r"the shape of parameter 3 \('bias'\) is \[9\] in the log and \[8\] here",
    ),
    "blocks": (lambda net: optimizer_of("MeZO blocks", net), "'block' of the parameters differs"),
    "sparsity": (lambda net: optimizer_of("MeZO sparse", net), "'keep' of the parameters differs"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_log_of_another_run_is_not_gone_on_with(recorded, what):
    path, *_ = recorded("MeZO", steps=4)
    make, message = CHANGES[what]
    net, before = Net(), path.read_bytes()
    with torch.no_grad():
        optimizer = make(net)
    for group in optimizer.param_groups:
        group["step"] = 3
    with pytest.raises(ValueError, match=message):
        record(optimizer, path, resume=True)
    assert path.read_bytes() == before


def test_a_fault_before_the_step_keeps_the_log(recorded):
    path, *_ = recorded("MeZO", steps=6)
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"[", b"[1", 1)
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    optimizer = optimizer_of("MeZO", Net())
    for group in optimizer.param_groups:
        group["step"] = 4
    with pytest.raises(ValueError, match="line 3 was edited"):
        record(optimizer, path, resume=True)
    assert path.read_bytes() == before


def test_settings_changed_at_the_resumption_are_logged(recorded):
    path, expected, _ = recorded("ZOAdam", steps=6)
    net = Net()
    optimizer = Trajectory.read(path).replay(net, 4)
    assert isinstance(optimizer, ZOAdam) and same(net, expected[4])
    with record(optimizer, path, resume=True):
        for group in optimizer.param_groups:
            group.update(lr=0.5, betas=(0.5, 0.5))
        train(optimizer, net, range(4, 7))
    run, again = Trajectory.read(path), Net()
    assert run.steps[4].changes == {"lr": 0.5, "betas": [0.5, 0.5]} and len(run) == 7
    run.replay(again)
    assert same(again, weights(net))


def put(net, name, values):
    setattr(net, name, torch.nn.Parameter(values))


# What a replay refuses, before it moves anything.
WRONG = {
    "values": (
        lambda net: net.middle.data.mul_(2),
        "parameter 'middle' has other values than the run of .* began with: pass its base weights",
    ),
    "all values": (
        lambda net: [p.data.add_(1) for p in net.parameters()],
        "4 parameters .'embed'; 'middle'; 'slanted'; and 1 more. have other values",
    ),
    "a name": (lambda net: delattr(net, "bias"), "has parameters that are not given: 'bias': pass the model that the run had"),
    "a shape": (lambda net: put(net, "bias", torch.ones(3)), r"the shape of parameter 3 \('bias'\) is \[9\] in the log and \[3\] here"),
    "a dtype": (lambda net: net.bfloat16(), "the dtype of parameter 0 .* is 'float32' in the log and 'bfloat16' here; .*; and 2 more"),
    "ties": (lambda net: put(net, "slanted", net.middle.data.view(9, 7)), "the layout's fingerprint is .* tie those that were tied"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_replay_onto_other_weights_is_refused(recorded, what):
    path, *_ = recorded("MeZO", steps=3)
    change, message = WRONG[what]
    net = Net()
    change(net)
    before = weights(net)
    with pytest.raises(ValueError, match=message):
        Trajectory.read(path).replay(net)
    assert same(net, before)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(step=4), r"step=4: the log has 3 steps; pass an integer in \[0, 3\]"),
        (dict(step=-1), "step=-1"),
        (dict(step=True), "step=True"),
        (dict(passes_per_sweep=0), "passes_per_sweep=0: pass an integer >= 1"),
    ],
)
def test_arguments_of_replay(recorded, arguments, message):
    path, *_ = recorded("MeZO", steps=3)
    net = Net()
    with pytest.raises(ValueError, match=message):
        Trajectory.read(path).replay(net, **arguments)
    assert same(net, weights(Net()))


def test_params_of_another_kind(recorded):
    run = Trajectory.read(recorded("MeZO", steps=3)[0])
    with pytest.raises(TypeError, match="params is one tensor"):
        run.replay(torch.ones(3))
    with pytest.raises(TypeError, match="params holds a str"):
        run.replay({"embed": "x"})
    with pytest.raises(ValueError, match="parameters without names, given are 2"):
        run.replay([torch.ones(3), torch.ones(2)])
