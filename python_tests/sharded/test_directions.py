"""Processes that share out the points of a step come to the bits of one process that measures them all."""

import directions_worker as worker
import pytest
import torch
from processes import results

import zokern


@pytest.fixture(scope="module", params=[2, 4])
def runs(request, tmp_path_factory):
    """-> (folder, what each of so many processes found)."""
    out = tmp_path_factory.mktemp("directions")
    return out, results(worker.__file__, request.param, out)


def alone(name):
    """One process, which measures every point."""
    model = worker.make(worker.CASES[name][2])
    optimizer = worker.optimizer_of(model, name)
    measured, calls = worker.run(model, optimizer)
    return dict(measured=measured, calls=calls, state=worker.state_of(model, optimizer))


def same(one, other):
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(one, other))


@pytest.mark.parametrize("name", worker.CASES)
def test_they_come_to_the_bits_of_one(name, runs):
    one, found = alone(name), [each[name] for each in runs[1]]
    assert len({loss for step in one["measured"] for loss in step}) > worker.STEPS
    for each in found:
        assert each["measured"] == one["measured"]
        assert same(each["state"], one["state"])


@pytest.mark.parametrize("name", worker.CASES)
def test_the_points_are_shared_out(name, runs):
    """Each point is measured once, and nobody measures more than a share, rounded up, of any request."""
    one, found = alone(name), [each[name] for each in runs[1]]
    requests = len(found[0]["collectives"])
    for n, calls in enumerate(one["calls"]):
        own = [each["calls"][n] for each in found]
        assert sum(own) == calls and max(own) - min(own) <= requests


@pytest.mark.parametrize("name", worker.CASES)
def test_one_collective_a_request_of_a_few_numbers(name, runs):
    """MeZO-SVRG asks twice in a step between anchors, of which there are two in six steps, and ZO-conservative in every one."""
    requests = worker.STEPS * (2 if name == "ZO-conservative" else 1) + (4 if "SVRG" in name else 0)
    for each in runs[1]:
        numbers = each[name]["collectives"]
        assert len(numbers) == requests and max(numbers) <= 10


@pytest.mark.parametrize("name", ["MeZO, 4 directions", "ES"])
def test_by_batch_and_by_direction(name, runs):
    """Two groups of two: losses are means of two halves of a batch, and the weights those that follow from them."""
    if len(runs[1]) < 4:
        pytest.skip("takes 4 processes")
    found = [each[name, "mixed"] for each in runs[1]]
    one = alone(name)
    assert all(each["measured"] == found[0]["measured"] and same(each["state"], found[0]["state"]) for each in found)
    for step, expected in zip(found[0]["measured"], one["measured"]):
        assert step == pytest.approx(expected, rel=2e-6)  # float32 means of other rows, over weights that differ by as little
    model = worker.make()
    optimizer = worker.optimizer_of(model, name)
    for measured in found[0]["measured"]:
        optimizer.repeat(measured)
    optimizer.flush()
    assert same(worker.state_of(model, optimizer), found[0]["state"])
    assert [sum(each["calls"]) * 2 for each in found] == [sum(one["calls"])] * 4 or name == "ES"  # whose population is odd


def test_replicas_of_a_sharded_model_measure_other_points(runs):
    """HSDP: each of two replicas, which two processes hold, takes half of the points."""
    if len(runs[1]) < 4:
        pytest.skip("takes 4 processes")
    one = alone("MeZO, 4 directions")
    for each in runs[1]:
        assert each["hsdp"]["measured"] == one["measured"] and same(each["hsdp"]["state"], one["state"])
        assert sum(each["hsdp"]["calls"]) * 2 == sum(one["calls"])


def test_a_log_of_one_of_them_is_replayed(runs):
    out, found = runs
    for rank, each in enumerate(found):
        model = worker.make()
        zokern.Trajectory.read(out / f"{len(found)}-{rank}.jsonl").replay(model)
        weights, _ = each["recorded"]["state"]
        assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


REFUSED = {
    "number": "ValueError: directions=3 of {n} processes: pass a number that divides them",
    "derivatives": "with an optimizer that asks for derivatives",
    "seed": "the optimizer of process 1 differs from that of process 0 in param_groups[0] (seed=1 and 0)",
    "q": "the optimizer of process 1 differs from that of process 0 in param_groups[0] (q=2 and 1)",
    "lr": "the optimizer of process 1 differs from that of process 0 in param_groups[0] (lr=0.002 and 0.001)",
    "directions": "the optimizer of process 1 differs from that of process 0 in directions (1 and {n})",
    "layout": "the optimizer of process 1 differs from that of process 0 in parameters, layout (",
    "cut": "pass directions that keep processes of one sharded model in one group",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shared_out_is_refused_in_every_process(case, runs):
    for each in runs[1]:
        assert REFUSED[case].format(n=len(runs[1])) in each["refused"][case]
