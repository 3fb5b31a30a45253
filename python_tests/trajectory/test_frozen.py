"""What a run does not train is part of its base all the same."""

import pytest
import torch

from zokern import MeZO, Trajectory, record


def net():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2)).eval()
    model[0].requires_grad_(False)
    return model


def run(model, log, steps, resume=False, state=None):
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    if state:
        optimizer.load_state_dict(state)
    x = torch.ones(4, 3)
    with record(optimizer, log, resume=resume, model=model):
        for _ in range(steps):
            optimizer.step(lambda: model(x).square().mean())
    return optimizer.state_dict()


def test_other_frozen_weights_and_buffers_are_refused(tmp_path):
    model, log = net(), tmp_path / "run.jsonl"
    state = run(model, log, 3)
    trajectory = Trajectory.read(log)
    assert set(trajectory.header["frozen"]) == {
        *("0.weight", "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"),
    }
    again = net()
    trajectory.replay(again)
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    for name in ("0.weight", "1.running_var"):
        other = net()
        with torch.no_grad():
            other.state_dict()[name].view(-1)[0].mul_(1 + 2**-20)
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(ValueError, match=rf"1 of the weights beside those .* are others \('{name}'\): pass its base model"):
            trajectory.replay(other)
        assert all(map(torch.equal, other.parameters(), before))
        trajectory.replay(
            [(n, p) for n, p in other.named_parameters() if n in dict(model.named_parameters())]
        )  # of parameters no more is known
    with torch.no_grad():
        model[0].bias[0] += 1
    held = log.read_bytes()
    with pytest.raises(ValueError, match="'0.bias'"):
        run(model, log, 1, resume=True, state=state)
    assert log.read_bytes() == held


def test_without_the_model_nothing_is_known_of_it(tmp_path):
    model = net()
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    with record(optimizer, tmp_path / "run.jsonl"):
        optimizer.step(lambda: model(torch.ones(4, 3)).square().mean())
    other = net()
    with torch.no_grad():
        other[0].weight += 1
    Trajectory.read(tmp_path / "run.jsonl").replay(other)
