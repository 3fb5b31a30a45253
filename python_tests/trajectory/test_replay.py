"""The weights of every step again, bit for bit, from the base weights and the log."""

import warnings

import pytest
import torch
from trajectory_cases import CASES, Net, batch, optimizer_of, same, sealed, train, unsealed, weights

from zokern import MeZO, Trajectory, record
from zokern.estimators import PerturbedWeights

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_made_again(recorded, states_equal, name, dtype):
    defer = "defer" in name
    path, expected, optimizer = recorded(name, dtype, nan_at=5)
    optimizer.flush()
    expected[-1] = {name: p.detach().clone() for name, p in named(optimizer, expected[-1])}
    trajectory = Trajectory.read(path)
    assert len(trajectory) == 12 and optimizer.skipped == 1
    for step, passes in ((12, 16), (7, 1), (None, 7)):
        if defer and step == 7:
            continue  # where the run's own weights are not at theta
        net = Net(dtype)
        again = trajectory.replay(net, step, passes)
        assert same(net, expected[12 if step is None else step])
        assert again.param_groups[0]["step"] == (12 if step is None else step)
    assert states_equal(again, optimizer)
    assert again.skipped == 1


def named(optimizer, like):
    own = [(name, p) for group in optimizer.param_groups for name, p in zip(group["param_names"], group["params"])]
    return [*own, *((name, p) for name, p in like.items() if name not in dict(own))]


@pytest.mark.parametrize("passes", [1, 2, 7, 64])
@pytest.mark.parametrize("name", ["MeZO", "MeZO q=2", "MeZO blocks", "ZOAdam", "MeZOSVRG replay", "MeZO defer"])
def test_however_many_passes_a_sweep_has(recorded, name, passes):
    path, expected, optimizer = recorded(name, torch.bfloat16 if "SVRG" not in name else torch.float32, steps=9)
    optimizer.flush()
    net = Net(optimizer.param_groups[0]["params"][0].dtype)
    Trajectory.read(path).replay(net, passes_per_sweep=passes)
    own = dict(named(optimizer, expected[-1]))
    assert all(torch.equal(p, own[name]) for name, p in net.named_parameters())


def test_passes_per_sweep_is_how_many_passes_wait(recorded, monkeypatch):
    path, expected, _ = recorded("MeZO", steps=9)
    swept, real = [], PerturbedWeights._sweep
    monkeypatch.setattr(PerturbedWeights, "_sweep", lambda weights, i: (swept.append(len(weights._waiting[i])), real(weights, i)))
    seen = []
    Trajectory.read(path).replay(Net(), passes_per_sweep=10, progress=lambda step: seen.append((step, sum(swept))))
    assert seen == [(1, 0), (2, 0), (3, 0), *((step, 10) for step in (4, 5, 6)), *((step, 20) for step in (7, 8, 9))]
    assert swept == [10, 10, 7]


@pytest.mark.parametrize("name", ["MeZO", "ZOAdam", "MeZO blocks", "MeZO defer"])
def test_what_progress_raises_leaves_the_weights_at_that_step(recorded, name):
    def after(step, optimizer, *_):
        if step == 3:
            optimizer.flush()

    path, expected, _ = recorded(name, torch.bfloat16, steps=8, after=after)

    def stop(step):
        if step == 4:
            raise KeyboardInterrupt

    net = Net(torch.bfloat16)
    with pytest.raises(KeyboardInterrupt):
        Trajectory.read(path).replay(net, progress=stop)
    assert same(net, expected[4])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["MeZO defer", "MeZO defer one-sided"])
def test_deferred_updates_are_made_where_the_run_made_them(recorded, name, dtype):
    def after(step, optimizer, *_):
        if step in (2, 6):
            optimizer.state_dict()

    path, expected, _ = recorded(name, dtype, steps=10, after=after, perturbation="in-place")
    text = path.read_text()
    assert text.count('"flushed":true') == 2 and '"flushed":true' in text.splitlines()[4]
    for step in (3, 7):
        net = Net(dtype)
        Trajectory.read(path).replay(net, step)
        assert same(net, expected[step])
    # A flush rounds 16-bit weights once more, unless a step applies what is pending anyway: a replay without it comes elsewhere.
    header, *steps = unsealed(path)
    assert steps[3].pop("flushed")
    path.write_bytes(sealed(header, steps))
    net = Net(dtype)
    Trajectory.read(path).replay(net, 7)
    assert same(net, expected[7]) == (dtype == torch.float32 or "one-sided" in name)


@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_from_a_replay(recorded, name):
    """As it would from a saved state."""
    path, expected, optimizer = recorded(name, steps=6)
    state = optimizer.state_dict()
    theirs, mine = Net(), Net()
    with torch.no_grad():
        for p, (_, q) in zip(theirs.parameters(), sorted_like(theirs, named(optimizer, expected[-1]))):
            p.copy_(q)
    loaded = optimizer_of(name, theirs)
    loaded.load_state_dict(state)
    replayed = Trajectory.read(path).replay(mine)
    for group, like in zip(replayed.param_groups, loaded.param_groups):
        group["lr"] = like["lr"]
    train(loaded, theirs, range(6, 11))
    train(replayed, mine, range(6, 11))
    loaded.flush(), replayed.flush()
    assert all(map(torch.equal, theirs.parameters(), mine.parameters()))


def sorted_like(net, pairs):
    held = dict(pairs)
    return [(name, held[name]) for name, _ in net.named_parameters()]


def test_two_halves_are_recorded_as_a_step(tmp_path):
    net, path = Net(torch.bfloat16), tmp_path / "run.jsonl"
    optimizer = optimizer_of("MeZO", net)
    with record(optimizer, path):
        for step in range(5):
            optimizer.measure(lambda: net(batch(step)))  # noqa: B023
            optimizer.step()
    again = Net(torch.bfloat16)
    Trajectory.read(path).replay(again)
    assert all(map(torch.equal, net.parameters(), again.parameters()))


FORMS = {
    "a model": lambda net: net,
    "named parameters": lambda net: list(net.named_parameters()),
    "in another order": lambda net: list(net.named_parameters())[::-1],
    "a dict": lambda net: dict(net.named_parameters()),
    "plain tensors by name": lambda net: {name: p.data for name, p in net.named_parameters()},
    "groups": lambda net: [{"params": list(net.named_parameters())[3:]}, {"params": list(net.named_parameters())[:3]}],
    "parameters by order": lambda net: [p for p in net.parameters() if p.requires_grad],
    "frozen ones among them": lambda net: list(net.parameters()),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_may_be_given(recorded, form):
    path, expected, _ = recorded(steps=4)
    net = Net()
    Trajectory.read(path).replay(FORMS[form](net))
    assert same(net, expected[4])


def test_a_model_that_is_frozen_now(recorded):
    path, expected, _ = recorded(steps=4)
    net = Net().requires_grad_(False)
    Trajectory.read(path).replay(net)
    assert same(net, expected[4]) and not any(p.requires_grad for p in net.parameters())


def test_a_log_without_names(tmp_path):
    net, path = Net(), tmp_path / "run.jsonl"
    optimizer = MeZO(net.parameters(), lr=1e-3)
    with record(optimizer, path):
        train(optimizer, net, range(3))
    for given in (Net(), list(Net().parameters()), list(Net().named_parameters())):
        Trajectory.read(path).replay(given)
        found = dict(given.named_parameters()) if isinstance(given, Net) else dict(zip(dict(net.named_parameters()), given))
        found = {name: p[1] if isinstance(p, tuple) else p for name, p in found.items()}
        assert all(torch.equal(p, found[name]) for name, p in net.named_parameters())


def test_parameters_of_the_same_name_are_told_by_their_order(tmp_path):
    def halves():
        return [("weight", torch.nn.Parameter(torch.full((3,), float(i)))) for i in range(2)]

    given, path = halves(), tmp_path / "run.jsonl"
    optimizer = MeZO(given, lr=0.1)
    with record(optimizer, path):
        for _ in range(3):
            optimizer.step(lambda: sum(p.square().sum() * (i + 1) for i, (_, p) in enumerate(given)))
    again = halves()
    Trajectory.read(path).replay(again)
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(given, again))


def test_settings_that_change(tmp_path):
    """Of each kind, for one group and for both, and lr as a tensor."""
    net, path = Net(torch.float16), tmp_path / "run.jsonl"
    optimizer = optimizer_of("ZOAdam", net, lr=torch.tensor(1e-3))
    with record(optimizer, path):
        for step in range(8):
            first, second = optimizer.param_groups
            if step == 1:
                first["lr"].fill_(2e-3)
            if step == 2:
                second["lr"], first["weight_decay"], second["weight_decay"] = 5e-4, 0.2, 0.3
            if step == 3:
                for group in (first, second):
                    group.update(betas=(0.8, 0.99), delta=1e-4, q=2, eps=2e-2)
            if step == 4:
                first["betas"] = (0.7, 0.9)
            train(optimizer, net, [step])
    lines = path.read_text().splitlines()
    assert '"lr":[{"tensor":0.0020000000949949026,"dtype":"float32"},0.003]' in lines[2]
    assert (
        '"lr":[{"tensor":0.0020000000949949026,"dtype":"float32"},0.0005],"eps"' not in lines[3] and '"weight_decay":[0.2,0.3]' in lines[3]
    )
    assert all(text in lines[4] for text in ('"betas":[0.8,0.99]', '"delta":0.0001', '"q":2', '"eps":0.02')) and '"lr"' not in lines[4]
    assert '"betas":[[0.7,0.9],[0.8,0.99]]' in lines[5] and lines[6].count(":") == 3
    again = Net(torch.float16)
    Trajectory.read(path).replay(again)
    assert all(map(torch.equal, net.parameters(), again.parameters()))


def disturb_weights(optimizer, net):
    with torch.no_grad():
        net.bias.add_(1e-3)


def raise_in_the_closure(optimizer, net):
    def closure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)


def flush_between_the_halves(optimizer, net):
    optimizer.measure(lambda: net(batch(0)))
    optimizer.flush()
    optimizer.step()


DISTURBANCES = {
    "another writer": disturb_weights,
    "estimate": lambda optimizer, net: optimizer.estimate(lambda: net(batch(0))),
    "a closure that raised": raise_in_the_closure,
    "an estimate that was dropped": lambda optimizer, net: optimizer.measure(lambda: net(batch(0))),
    "a flush between the halves": flush_between_the_halves,
}


@pytest.mark.parametrize("name", ["MeZO", "MeZO defer", "MeZO blocks", "ZOAdam"])
@pytest.mark.parametrize("what", DISTURBANCES)
def test_weights_that_something_else_moved_are_made_again_up_to_there(tmp_path, name, what):
    net, path = Net(torch.bfloat16), tmp_path / "run.jsonl"
    optimizer = optimizer_of(name, net, perturbation="in-place")
    with record(optimizer, path), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(optimizer, net, range(3))
        optimizer.flush()
        expected = {name: p.detach().clone() for name, p in net.named_parameters()}
        assert not caught
        DISTURBANCES[what](optimizer, net)
        train(optimizer, net, range(3, 6))
    assert len(caught) == 1 and "made again up to step 3, not later" in str(caught[0].message)
    trajectory, again = Trajectory.read(path), Net(torch.bfloat16)
    assert [step for step, (_, changes) in enumerate(trajectory.steps) if changes.get("disturbed")] == [3]
    with pytest.raises(ValueError, match="between steps 2 and 3 .* can be made again up to step 3, where they are now"):
        trajectory.replay(again)
    assert same(again, expected)


@pytest.mark.parametrize("what", [what for what in DISTURBANCES if what != "another writer"])
@pytest.mark.parametrize("name", ["MeZO defer", "MeZO streamed", "MeZO defer streamed", "MeZO copied own", "MeZOSVRG copy copied"])
def test_measurements_do_not_disturb_weights_that_they_do_not_move(tmp_path, name, what):
    """Whether a step follows or none: theta is what the log makes."""
    if "SVRG" in name and what != "a closure that raised":
        pytest.skip("its measurements want a full batch, too")
    net, path = Net(torch.bfloat16), tmp_path / "run.jsonl"
    optimizer = optimizer_of(name, net)
    with record(optimizer, path):
        train(optimizer, net, range(4))
        DISTURBANCES[what](optimizer, net)
        train(optimizer, net, range(4, 7))
        optimizer.flush()
    trajectory, again = Trajectory.read(path), Net(torch.bfloat16)
    assert not any(changes.get("disturbed") for _, changes in trajectory.steps)
    trajectory.replay(again)
    assert same(again, weights(net))


def test_a_theta_that_the_model_does_not_show_in_full_is_not_where_a_run_begins(tmp_path):
    net = Net()
    optimizer = optimizer_of("MeZO copied", net, lr=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()  # makes the state
    with record(optimizer, tmp_path / "float32.jsonl"):
        pass
    net.bfloat16()
    with pytest.raises(ValueError, match="the optimizer is at step 0 and has state"):
        record(optimizer, tmp_path / "bfloat16.jsonl")
    optimizer.state.clear()
    optimizer._lay_out()
    record(optimizer, tmp_path / "bfloat16.jsonl").close()
