"""Logs and checkpoints that an earlier version wrote (write.py) are read, and lead to the same weights bit for bit."""

import io
import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from golden_cases import CASES, FURTHER, RECORDED, SAVED, Net, digest, ended, optimizer_of, train

from zokern import Trajectory, record

HERE = Path(__file__).parent
DIGESTS = json.loads((HERE / "digests.json").read_text())


@pytest.fixture(scope="module")
def saved():
    """case -> what was saved after SAVED steps."""
    return torch.load(io.BytesIO(lzma.decompress((HERE / "saved.pt.xz").read_bytes())), weights_only=True)


def resumed(saved, case):
    net = Net()
    optimizer = optimizer_of(case, net)
    net.load_state_dict(saved[case]["net"])
    optimizer.load_state_dict(saved[case]["optimizer"])
    return net, optimizer


@pytest.mark.parametrize("case", CASES)
def test_a_log_is_replayed_and_gone_on_from(case):
    run = Trajectory.read(HERE / f"{case}.jsonl")
    assert len(run) == RECORDED
    for steps, name in ((SAVED, "saved"), (RECORDED, "recorded")):
        net = Net()
        optimizer = run.replay(net, steps)
        assert digest(net) == DIGESTS[case][name]
    train(net, optimizer, range(RECORDED, FURTHER))
    assert ended(net, optimizer) == DIGESTS[case]["further"]


@pytest.mark.parametrize("case", [*CASES, "hybrid"])
def test_a_checkpoint_is_loaded_and_gone_on_from(case, saved):
    net, optimizer = resumed(saved, case)
    assert digest(net) == DIGESTS[case]["saved"]
    train(net, optimizer, range(SAVED, RECORDED))
    assert ended(net, optimizer) == DIGESTS[case]["recorded"]
    train(net, optimizer, range(RECORDED, FURTHER))
    assert ended(net, optimizer) == DIGESTS[case]["further"]


@pytest.mark.parametrize("case", CASES)
def test_a_log_goes_on_from_its_checkpoint(case, saved, tmp_path):
    path = shutil.copy(HERE / f"{case}.jsonl", tmp_path)
    net, optimizer = resumed(saved, case)
    with record(optimizer, path, resume=True):
        train(net, optimizer, range(SAVED, RECORDED))
    again = Net()
    Trajectory.read(path).replay(again)
    assert ended(net, optimizer) == digest(again) == DIGESTS[case]["recorded"]
    if case != "mezo-svrg-copy":  # after an anchor nothing was flushed, which a run that goes on does not know
        assert Path(path).read_bytes() == (HERE / f"{case}.jsonl").read_bytes()


@pytest.mark.parametrize("case", [*CASES, "hybrid"])
def test_the_same_run_is_made_from_the_start(case):
    """The same noise, and the same roundings at the same places."""
    net = Net()
    optimizer = optimizer_of(case, net)
    train(net, optimizer, range(SAVED))
    assert ended(net, optimizer) == DIGESTS[case]["saved"]
