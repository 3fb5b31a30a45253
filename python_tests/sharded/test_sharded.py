"""A sharded model takes the steps of a whole one, bit for bit: every optimizer, over the ways to cut a model."""

import pytest
import sharded_worker as worker
import torch
from processes import results

import zokern

PLACEMENTS = {2: ["fsdp", "columns", "kept", "tp", "mixed"], 4: ["fsdp", "hsdp", "2-d"]}
OF_PARTS = ("tp", "2-d")  # of a product of matrices, which are then added up: another rounding than that of the whole product
SIXTEEN = ("mixed",)  # float32 shards that are gathered in bfloat16
# |difference| of a float32 loss near 5: of rounding, over eps = 1e-2, times lr |z| = 4e-3, in each of 10 steps
APART = 2e-5


@pytest.fixture(scope="module", params=PLACEMENTS)
def runs(request, tmp_path_factory):
    """-> (folder, what each of so many processes found)."""
    out = tmp_path_factory.mktemp("sharded")
    return out, results(worker.__file__, request.param, out)


@pytest.fixture(scope="module")
def whole():
    """name -> what one process with the whole model comes to."""
    found = {}
    for name, (_, _, dtype) in worker.CASES.items():
        model = worker.make(dtype)
        optimizer = worker.optimizer_of(model, name)
        found[name] = worker.steps(model, optimizer), *worker.state_of(model, optimizer), optimizer.layout.fingerprint()
    return found


def test_each_way_to_cut_a_model_is_run(runs):
    _, found = runs
    made = {how for how, name in filter(lambda key: isinstance(key, tuple), found[0]) if name == "MeZO" and how != "log"}
    assert made == {*PLACEMENTS[len(found)]} and sum(isinstance(key, tuple) for key in found[0]) >= 20


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", worker.CASES)
def test_weights_and_states_are_those_of_one_process(name, runs, whole):
    _, found = runs
    made = [how for how in PLACEMENTS[len(found)] if (how, name) in found[0]]
    if not made:
        pytest.skip("run in two processes alone")
    for how in made:
        measured, weights, state, fingerprint = found[0][how, name]
        for other in found[1:]:
            assert other[how, name][0] == measured and same(other[how, name][1], weights) and same(other[how, name][2], state)
        assert fingerprint == whole[name][3]
        if how not in OF_PARTS + SIXTEEN:
            assert measured == whole[name][0] and same(weights, whole[name][1]) and same(state, whole[name][2])
            continue
        model = worker.make(worker.CASES[name][2])
        optimizer = worker.optimizer_of(model, name)
        for step in measured:  # what they have measured leads to the same bits
            optimizer.repeat(step)
        optimizer.flush()
        assert all(map(same, worker.state_of(model, optimizer), (weights, state)))
        if worker.CASES[name][2] == torch.float32 and how in OF_PARTS:
            for step, expected in zip(measured, whole[name][0]):
                assert step == pytest.approx(expected, abs=APART)


def test_a_step_gathers_no_weights_beside_its_forward_passes(runs):
    _, found = runs
    for each in found:
        for how in PLACEMENTS[len(found)]:
            step, forward = each[how]
            assert forward and step == {**forward, "c10d::allgather_": 1}  # the losses


def test_every_part_knows_its_elements(runs):
    """Shards of every dimension and mesh, unequal and empty ones, and of fused weights: numbered, and cut out of a whole tensor again."""
    assert [each["places"] for each in runs[1]] == [[]] * len(runs[1])


@pytest.mark.parametrize("name", ["MeZO", "MeZO-SVRG", "ZO-Adam"])
def test_one_log_of_all_processes(name, runs):
    """Written once, replayed on other shards, gone on with there, and replayed on the whole model."""
    out, found = runs
    path = out / f"{len(found)}-{name}.jsonl"
    assert len(zokern.Trajectory.read(path)) == 2 * worker.STEPS
    model = worker.make()
    optimizer = zokern.Trajectory.read(path).replay(model)
    for each in found:
        assert all(map(same, worker.state_of(model, optimizer), each["log", name]))
