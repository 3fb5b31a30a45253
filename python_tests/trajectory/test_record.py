"""What is written, when, and what is refused before anything is."""

import errno
import gc
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from hybrid_cases import ADAMW, STATIC, ZO
from hybrid_cases import Net as HybridNet
from trajectory_cases import Net, batch, optimizer_of, train

import zokern
from zokern import Hybrid, MeZO, Trajectory, ZOAdam, record


def test_the_header(recorded):
    path, *_ = recorded("MeZO sparse blocks", torch.bfloat16, steps=1)
    header = json.loads(path.read_text().splitlines()[0])
    assert list(header) == [
        *("zokern", "format", "noise_spec", "version", "optimizer", "groups", "parameters"),
        *("fingerprint", "frozen", "notes", "crc"),
    ]
    assert header["zokern"] == "trajectory" and header["format"] == 1 and header["noise_spec"] == 2
    assert header["version"] == zokern.__version__ and header["optimizer"] == "MeZO" and header["notes"] == {"by": "a test"}
    first, second = header["groups"]
    assert (first["params"], second["params"]) == (2, 3) and (first["lr"], second["lr"]) == (1e-2, 3e-3)
    assert first["block"] == [0, 1] and second["block"] == [2, 4, 5]  # 3 is frozen
    assert len(second["keep"]) == 3 and all(0 < k <= 1 for k in second["keep"])
    assert "initial_lr" not in first and "step" not in first
    names, shapes, dtypes, hashes = zip(*header["parameters"])
    assert names == ("embed", "middle", "slanted", "bias", "empty")
    assert shapes == ([11, 7], [7, 9], [9, 7], [9], [0]) and set(dtypes) == {"bfloat16"}
    import hashlib

    net = Net(torch.bfloat16)
    for name, found in zip(names, hashes):
        values = getattr(net, name).detach().flatten().view(torch.int16).tolist()  # flatten is row-major whatever the strides
        data = b"".join(int(v & 0xFFFF).to_bytes(2, "little") for v in values)
        assert found == hashlib.sha256(data).hexdigest()[:16]
    assert header["fingerprint"] == optimizer_of("MeZO sparse blocks", net).layout.fingerprint()


def test_the_lines(tmp_path):
    """Measurements that are float32, that are not, and that are not finite; changes only."""
    theta, path = torch.nn.Parameter(torch.zeros(3)), tmp_path / "run.jsonl"
    optimizer = MeZO([theta], lr=0.5)
    losses = iter([0.5, 0.1, torch.tensor(0.1), torch.tensor(1e-30), 3e38, 1e39, float("nan"), torch.tensor(0.1), float("inf"), 1 / 3])
    with record(optimizer, path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(5):
            optimizer.step(lambda: next(losses))
            optimizer.param_groups[0]["lr"] = 0.5 if step < 2 else 0.25
    bodies = [line.rsplit(',"crc":"', 1)[0] for line in path.read_text().splitlines()[1:]]
    assert bodies == [
        '{"step":0,"exact":[0.5,0.1]',
        '{"step":1,"losses":[0.1,1e-30]',
        '{"step":2,"exact":[3e+38,1e+39]',
        '{"step":3,"losses":[null,0.1],"lr":0.25',
        '{"step":4,"exact":[null,0.3333333333333333]',
    ]
    (a, b), _ = Trajectory.read(path).steps[1]
    assert (a, b) == (float(torch.tensor(0.1)), float(torch.tensor(1e-30)))


def test_twenty_thousand_steps_are_under_two_megabytes(tmp_path):
    theta, path, steps = torch.nn.Parameter(torch.tensor([0.3, -2.0, 1.1])), tmp_path / "run.jsonl", 2000
    optimizer = MeZO([("theta", theta)], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 20000)
    with record(optimizer, path):
        for step in range(steps):
            optimizer.step(lambda: torch.dot(theta, theta))
            scheduler.step()
            if step == 299:
                expected = theta.detach().clone()
    lines = path.read_bytes().splitlines(keepends=True)
    # The first tenth of them; later ones have one digit more.
    assert len(lines) == steps + 1 and max(map(len, lines[1:])) <= 99 and len(lines[0]) + 10 * (path.stat().st_size + steps) < 2e6
    trajectory, again = Trajectory.read(path), torch.tensor([0.3, -2.0, 1.1])
    assert len(trajectory) == steps
    trajectory.replay([again], step=300)
    assert torch.equal(again, expected)


def test_lines_are_written_at_once_or_every_so_many(tmp_path):
    net = Net()
    optimizer, path = optimizer_of("MeZO", net), tmp_path / "run.jsonl"
    recorder = record(optimizer, path, every=4)
    written = []
    train(optimizer, net, range(6), after=lambda _: written.append(len(path.read_text().splitlines()) - 1))
    assert written == [0, 0, 0, 4, 4, 4]
    recorder.flush()
    assert len(Trajectory.read(path)) == 6
    train(optimizer, net, [6])
    recorder.close()
    recorder.close()
    train(optimizer, net, [7])
    assert len(Trajectory.read(path)) == 7
    expected = tmp_path / "at once.jsonl"
    other = Net()
    optimizer = optimizer_of("MeZO", other)
    with record(optimizer, expected):
        train(optimizer, other, range(7), after=lambda step: written.append(len(Trajectory.read(expected))))
    assert written[6:] == [1, 2, 3, 4, 5, 6, 7] and expected.read_bytes() == path.read_bytes()


def test_what_waits_is_written_when_the_optimizer_goes(tmp_path):
    net, path = Net(), tmp_path / "run.jsonl"
    optimizer = optimizer_of("MeZO", net)
    record(optimizer, path, every=100)
    train(optimizer, net, range(3))
    del optimizer
    gc.collect()
    assert len(Trajectory.read(path)) == 3


def test_what_waits_is_written_when_python_exits(tmp_path):
    code = (
        "import sys, torch, zokern\n"
        "theta = torch.nn.Parameter(torch.ones(3))\n"
        "optimizer = zokern.MeZO([theta])\n"
        "zokern.record(optimizer, sys.argv[1], every=100)\n"
        "for _ in range(3): optimizer.step(lambda: theta.sum())\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "run.jsonl"], check=True)
    assert len(Trajectory.read(tmp_path / "run.jsonl")) == 3


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, monkeypatch):
    """Half of a line fits, then none; then there is room again."""
    net = Net()
    optimizer, path = optimizer_of("MeZO", net), tmp_path / "run.jsonl"
    recorder, real, room = record(optimizer, path), os.write, [10]

    def full(file, data):
        if file != recorder.log.file:
            return real(file, data)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[: room.pop()])

    train(optimizer, net, range(2))
    before = path.read_bytes()
    monkeypatch.setattr(os, "write", full)
    for step in (2, 3):
        with pytest.raises(OSError, match=r"No space left on device: '.*run\.jsonl'"):
            train(optimizer, net, [step])
        assert path.read_bytes() == before and optimizer.param_groups[0]["step"] == step + 1
    monkeypatch.setattr(os, "write", real)
    train(optimizer, net, [4])
    recorder.close()
    again = Net()
    assert len(Trajectory.read(path)) == 5
    Trajectory.read(path).replay(again)
    assert all(map(torch.equal, net.parameters(), again.parameters()))


def test_a_header_that_does_not_fit(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    optimizer = optimizer_of("MeZO", Net())
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left on device: '.*run.jsonl'"):
            record(optimizer, tmp_path / "run.jsonl")
    assert not optimizer._optimizer_step_post_hooks
    record(optimizer, tmp_path / "run.jsonl").close()


def test_a_wrapped_optimizer(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    net, path = Net(), tmp_path / "run.jsonl"
    accelerator = accelerate.Accelerator(cpu=True)
    wrapped = accelerator.prepare_optimizer(optimizer_of("MeZO", net))
    with record(wrapped, path):
        for step in range(3):
            wrapped.step(lambda: net(batch(step)))  # noqa: B023
    again = Net()
    Trajectory.read(path).replay(again)
    assert all(map(torch.equal, net.parameters(), again.parameters()))


def test_no_other_steps_are_taken_for_recorded_ones(tmp_path):
    net, path = Net(), tmp_path / "run.jsonl"
    optimizer = optimizer_of("MeZO", net)
    recorder = record(optimizer, path)
    train(optimizer, net, range(2))
    optimizer.apply(optimizer.estimate(lambda: net(batch(2))))
    with pytest.raises(RuntimeError, match=r"made step 3 where .*run\.jsonl expects step 2: steps by apply\(\)"):
        train(optimizer, net, [3])
    with pytest.warns(RuntimeWarning, match="has 2 steps, the optimizer is at step 4"):
        recorder.close()


def test_parameters_that_join_are_refused(tmp_path):
    net = Net()
    optimizer = optimizer_of("MeZO", net)
    with record(optimizer, tmp_path / "run.jsonl"):
        train(optimizer, net, range(2))
        optimizer.add_param_group({"params": [("new", torch.nn.Parameter(torch.ones(2)))]})
        with pytest.raises(RuntimeError, match="parameters were added at step 2"):
            train(optimizer, net, [2])
        optimizer.param_groups[0]["step"] = 2  # so that closing need not warn


class Own(MeZO):
    def _update(self, estimate):
        super()._update(estimate)


def one(tmp_path):
    return MeZO([torch.nn.Parameter(torch.ones(3))])


def at_a_step(_):
    theta = torch.nn.Parameter(torch.ones(3))
    optimizer = MeZO([theta])
    optimizer.step(lambda: theta.sum())
    return optimizer


def with_state(_):
    optimizer = ZOAdam([torch.nn.Parameter(torch.ones(3))], lr=0.0)
    optimizer.step()
    return optimizer


REFUSED = {
    "a file that holds something": (one, dict(path="held"), ValueError, "exists and is not empty: pass another path, or resume=True"),
    "a folder": (one, dict(path="."), ValueError, "is no file"),
    "a device": (one, dict(path="/dev/full"), ValueError, "is no file"),
    "every": (one, dict(every=0), ValueError, "every=0: pass an integer >= 1"),
    "notes": (one, dict(notes={"a": torch.ones(1)}), TypeError, "notes cannot be written as JSON"),
    "a number that JSON has not": (one, dict(notes={"a": float("nan")}), TypeError, "notes cannot be written as JSON"),
    "a step": (at_a_step, {}, ValueError, "the optimizer is at step 1: record from a new optimizer on, or pass resume=True"),
    "a state": (with_state, {}, ValueError, "at step 0 and has state"),
    "a torch optimizer": (
        lambda _: torch.optim.SGD([torch.ones(1)]),
        {},
        TypeError,
        "a SGD, which is not registered",
    ),
    "a rule of one's own": (lambda _: Own([torch.nn.Parameter(torch.ones(3))]), {}, TypeError, "a MeZO with a _update of its own"),
    "nothing to resume": (at_a_step, dict(resume=True), ValueError, "holds no run, the optimizer is at step 1"),
    "a step past the log": (at_a_step, dict(path="short", resume=True), ValueError, "ends after 0 steps, the optimizer is at step 1"),
    "no log": (at_a_step, dict(path="held", resume=True), ValueError, "line 1 is not the header of a trajectory"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_write_nothing(tmp_path, what):
    make, arguments, kind, message = REFUSED[what]
    (tmp_path / "held").write_text("something\n")
    record(one(tmp_path), tmp_path / "short").close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(kind, match=message):
        record(make(tmp_path), tmp_path / arguments.pop("path", "new.jsonl"), **arguments)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_hybrid_is_refused_with_the_reason(tmp_path):
    net = HybridNet()
    hybrid = Hybrid(net, ZO, ADAMW, next(iter(STATIC)))
    with pytest.raises(TypeError, match="a Hybrid, which declares that its steps are not decided by its measurements alone"):
        record(hybrid, tmp_path / "run.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["MeZO", "ZOAdam"])
def test_on_a_gpu_one_wait_an_interval(tmp_path, name):
    """A step that is not written waits for nothing; what is written is made again, there and on the CPU."""
    start = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    theta, path = torch.nn.Parameter(start.cuda()), tmp_path / "run.jsonl"
    make = {"MeZO": MeZO, "ZOAdam": ZOAdam}[name]
    optimizer = make([("theta", theta)], lr=1e-3, eps=1e-2, weight_decay=0.1)
    with record(optimizer, path, every=5):
        for step in range(12):
            torch.cuda.set_sync_debug_mode("error" if step >= 5 and (step + 1) % 5 else "default")
            try:
                optimizer.step(lambda: theta.float().square().mean())
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert len(Trajectory.read(path)) == (step + 1) // 5 * 5
    assert len(Trajectory.read(path)) == 12
    for device in ("cuda", "cpu"):
        again = start.clone().to(device)
        Trajectory.read(path).replay([again])
        if device == "cuda" or name == "MeZO":  # Adam's power in float64 may round otherwise
            assert torch.equal(again.cpu(), theta.detach().cpu())
