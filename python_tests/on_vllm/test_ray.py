"""zokern evolve on engines: in this process, and many by Ray, one of which is killed; the weights are the same, bit for bit."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
pytest.importorskip("ray", reason="needs Ray: make test-vllm")

import vllm_cases  # noqa: E402
from vllm_cases import OPTIONS, load  # noqa: E402

import zokern  # noqa: E402
from zokern import EvolutionStrategies  # noqa: E402
from zokern.engines import Local, Pool  # noqa: E402
from zokern.engines.ray import RayEngine  # noqa: E402
from zokern.engines.vllm import VLLM  # noqa: E402
from zokern.evolve import BadInput, Settings, evolve, resume  # noqa: E402
from zokern.evolve.restore import replay  # noqa: E402

SMALL = ("enforce_eager=true", "max_num_seqs=16", "kv_cache_memory_bytes=50000000")
REWARDS = """
import time

import helping

def vowels(completions, wanted):
    time.sleep(0.2)  # so that an engine can be struck in the middle of an iteration
    return [helping.share(text, wanted) for text, wanted in zip(completions, wanted)]
"""


@pytest.fixture
def settings(folder_of, tmp_path, monkeypatch):
    """A run of three iterations, by a reward in a file that no other machine has."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"{word} {i}", "wanted": "aeiou"[: 1 + i % 5]}) for i, word in enumerate(["copy", "right", "work"] * 8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "helping.py").write_text("def share(text, wanted):\n    return sum(c in wanted for c in text) / (1 + len(text))\n")
    own = dict(sigma=0.05, population=6, perturbation="copied")
    few = dict(rows=8, max_new_tokens=6, steps=3, eval_every=3, optimizer_settings=own, lr=0.02, reward=("rewards.py:vowels",))
    return Settings(folder_of("Llama"), data=str(tmp_path / "rows.jsonl"), engine="vllm", engine_option=SMALL, **few)


def made(folder):
    """(what each member was worth, what was logged of held-out rows, the weights saved) of a run."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    measured = [list(step.measurements) for step in zokern.Trajectory.read(folder / "trajectory.jsonl").steps]
    return measured, [entry["eval_reward"] for entry in log if "eval_reward" in entry], load(folder)


def same(one, other):
    return one[:2] == other[:2] and all(map(torch.equal, one[2].parameters(), other[2].parameters()))


def actors():
    """Processes of Ray's that hold an engine."""
    found = os.popen("ps -eo pid,args").read().splitlines()
    return [int(line.split()[0]) for line in found if "ray::_Actor" in line]


class Counted:
    """What the measurements of an engine send and receive, in bytes."""

    def __init__(self, monkeypatch):
        from ray import cloudpickle

        ask, self.sizes = RayEngine._ask, []

        def asked(engine, method, *args):
            found = ask(engine, method, *args)
            if method == "measure":
                self.sizes.append(len(cloudpickle.dumps(args[1:])) + len(cloudpickle.dumps(found)))
            return found

        monkeypatch.setattr(RayEngine, "_ask", asked)


def test_the_weights_do_not_depend_on_engines_or_deaths(settings, tmp_path, monkeypatch):
    import ray

    local = replace(settings, engine="local", engine_option=(), out=str(tmp_path / "local"))
    evolve(local, print)
    expected = made(tmp_path / "local")
    assert len({reward for step in expected[0] for reward in step}) > 6

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*died.*", RuntimeWarning)
        evolve(replace(settings, steps=2, eval_every=3, out=str(tmp_path / "one")), print)
        resume(str(tmp_path / "one"), print, steps=3)
    one = made(tmp_path / "one")
    assert one[0] == expected[0] and same((one[0], one[1][-1:], one[2]), (expected[0], expected[1][-1:], expected[2]))

    counted, before = Counted(monkeypatch), set(actors())
    struck = []

    def strike():
        log = tmp_path / "two" / "log.jsonl"
        while not (log.exists() and '"step": 1' in log.read_text()):
            time.sleep(0.05)
        struck.append(next(pid for pid in actors() if pid not in before))
        os.kill(struck[0], signal.SIGKILL)

    killer = threading.Thread(target=strike, daemon=True)
    killer.start()
    with pytest.warns(RuntimeWarning, match="engine . died .* and was started again"):
        evolve(replace(settings, engines=2, out=str(tmp_path / "two")), print)
    assert struck and same(made(tmp_path / "two"), expected)
    assert len(counted.sizes) >= 18 + 2 and max(counted.sizes) < 3000  # 6 members of 3 iterations, 3 of held-out rows: keys and numbers
    replay(str(tmp_path / "two"), str(tmp_path / "again"), 3)
    assert all(map(torch.equal, load(tmp_path / "again").parameters(), expected[2].parameters()))
    for _ in range(200):
        if not set(actors()) - before:
            break
        time.sleep(0.1)
    assert not set(actors()) - before
    ray.shutdown()


def test_what_cannot_be_is_refused(settings, tmp_path):
    for more, match in (
        (dict(engine="local", engine_option=(), engines=2), "--engines is of --engine vllm"),
        (dict(engine_option=("max_num_seqs",)), "--engine-option 'max_num_seqs': write NAME=VALUE"),
        (dict(engine_option=("dtype=bfloat16",)), "--engine-option dtype: the run decides that"),
        (dict(engine_option=("sequences=3",)), "cannot start"),
        (dict(adapter=("lora",)), "--adapter lora with --engine vllm"),
        (dict(device="cuda"), "--device cuda with --engine vllm"),
        (dict(optimizer_settings=dict(perturbation="in-place")), "--perturbation in-place with --engine vllm"),
        (dict(model="tiny.gguf"), "tiny.gguf' with --engine vllm"),
        (dict(server=("http://127.0.0.1:9",), engine_option=()), "http://127.0.0.1:9 does not answer"),
        (dict(server=("http://127.0.0.1:9",)), "--engine-option is for engines that are started here"),
    ):
        with pytest.raises(BadInput, match=match):
            evolve(replace(settings, out=str(tmp_path / "refused"), **more), print)
        assert not (tmp_path / "refused").exists()


class OnNodes:
    """(engine, whether to tell the node) -> its node, or a likelihood; slow, so that it can be struck."""

    def __call__(self, engine, told, number):
        import ray

        time.sleep(0.8)
        return ray.get_runtime_context().get_node_id() if told else engine.score([[5, 6, 7, 8]], [[[3]]])[0][0]


def test_a_node_that_goes_takes_no_engine_along(folder_of, monkeypatch):
    """Three nodes of a real cluster, on this machine; two have an engine each, one of which goes."""
    import ray
    from ray.cluster_utils import Cluster

    for module in (sys.modules[__name__], vllm_cases):
        ray.cloudpickle.register_pickle_by_value(module)
    folder, given = folder_of("Llama"), dict(lr=0.1, sigma=0.05, population=6, maximize=True)
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0))
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        engines = [RayEngine(partial(_local, folder), name=f"engine {i}", wait=60) for i in range(2)]
        pool = Pool(engines)
        optimizer = EvolutionStrategies(load(folder).named_parameters(), perturbation=pool, **given)
        measured = OnNodes()
        first = pool.measure(measured, [()] * 2, [(True, 0), (True, 1)])
        optimizer.step(pool.driver(measured, False))
        steps = [optimizer.measurements]
        struck = next(node for node in nodes if node.node_id == first[0])
        threading.Timer(0.3, lambda: cluster.remove_node(struck, allow_graceful=False)).start()
        with pytest.warns(RuntimeWarning, match="engine . died .* and was started again"):
            optimizer.step(pool.driver(measured, False))
        second = pool.measure(measured, [()] * 2, [(True, 0), (True, 1)])
        assert len({*first, *second}) == 3 and first[0] not in second
        with pytest.raises(ZeroDivisionError):
            pool.measure(_broken, [()], [(0,)])
        steps.append(optimizer.measurements)
        optimizer.step(pool.driver(measured, False))  # what a function raises loses no engine
        steps.append(optimizer.measurements)
        found = pool.checksums()
        pool.close()
        alone = Pool([_local(folder)])  # that repeats what was measured, without a death
        plain = EvolutionStrategies(load(folder).named_parameters(), perturbation=alone, **given)
        for step in steps:
            plain.repeat(step)
        assert found == alone.checksums()
        with pytest.raises(BadInput, match="pass the model that is there"):  # and not that an actor died
            RayEngine(partial(_refusing, folder))
        with pytest.raises(BadInput, match="no room for 2 CPUs and 0 GPUs on one node after 3 s"):
            RayEngine(partial(_local, folder), cpus=2, wait=3)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _broken(engine, number):
    return 1 / number


def _refusing(folder):
    raise BadInput(f"{folder} is another: pass the model that is there")


def _local(folder):
    return Local(load(folder), None)


def test_two_workers_in_an_actor(folder_of):
    """Of one placement group, whose processes vLLM starts itself."""
    import ray

    folder = folder_of("Llama")
    make = partial(VLLM, folder, None, 2, dtype="float32", kv_cache_memory_bytes=50000000, **OPTIONS)
    try:
        engine = RayEngine(make, cpus=2, environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"})
        local = _local(folder)
        pool = Pool([engine, local])
        optimizer = EvolutionStrategies(load(folder).named_parameters(), lr=0.1, sigma=0.05, population=4, perturbation=pool)
        optimizer.step(pool.driver(lambda engine, number: float(number)))
        assert pool.checksums()
        pool.go([(key, 0.05) for key, _ in optimizer.last.terms])
        assert torch.equal(engine.read("model.layers.0.self_attn.o_proj.weight"), local.read("model.layers.0.self_attn.o_proj.weight"))
        pool.close()
    finally:
        ray.shutdown()
