"""What a step asks of a GPU, without one (fake_gpu.py): no waiting, and in a capture nothing that a graph cannot repeat."""

from contextlib import nullcontext

import pytest
import torch
from fake_gpu import FakeGPUs
from optimizer_cases import OPTIMIZERS

import zokern
from zokern import MeZO
from zokern.optim import trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning"),
]


@pytest.fixture
def gpus(runtime, monkeypatch):
    monkeypatch.setattr(trained, "kept_by_magnitude", lambda groups, sparsity: [[1 - sparsity] * len(group["params"]) for group in groups])
    return FakeGPUs(runtime, monkeypatch)


def parameters(device="cuda:0", dtype=torch.float32):
    return [torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) for shape in ((300, 41), (7,), (), (5000, 3))]


def groups_of(params):
    return [{"params": params[:2]}, {"params": params[2:], "lr": 1e-2, "eps": 1e-2}]


def loss_of(params):
    return lambda: sum((p.float() ** 2).sum() for p in params)


MORE = {
    "MeZO groups": lambda params: MeZO(groups_of(params), lr=1e-3, weight_decay=0.1, q=2),
    "MeZO q=4": lambda params: MeZO(params, q=4),
    "MeZO defer": lambda params: MeZO(groups_of(params), defer=True, lr=1e-3),
    "ForwardGradient": lambda params: zokern.ForwardGradient(params, q=2),
    "MeZO one-sided groups": lambda params: MeZO(groups_of(params), estimator="one-sided", lr=1e-3),
}


@pytest.mark.parametrize("name", [*OPTIMIZERS, *MORE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_does_not_wait(gpus, name, dtype):
    with gpus.tensors():
        params = parameters(dtype=dtype)
        opt = {**OPTIMIZERS, **MORE}[name](params)
        for _ in range(4):
            before = len(gpus.launches)
            with gpus.step():
                opt.step(loss_of(params))
            assert len(gpus.launches) - before >= 2
    assert {(device, stream or 0) for _, device, stream in gpus.launches} == {(0, 0)}


def test_parts_of_streamed_weights_are_made_ahead_on_a_stream_of_their_own(gpus):
    with gpus.tensors():
        model = torch.nn.Sequential(*(torch.nn.Linear(40, 40, device="cuda:0") for _ in range(4)))
        layout, streamed = zokern.Layout(model.parameters()), zokern.Streamed(model)
        streamed._proven.add(layout)  # addresses, by which reads are known, are made up here
        x, used = torch.empty(40, device="cuda:0"), []
        for step in range(3):
            before = len(gpus.launches)
            with torch.no_grad(), gpus.step(), streamed.showing([layout], [layout], [[(zokern.NoiseKey(1, step), 1e-3)]]):
                model(x)
            used.append([stream or 0 for _, _, stream in gpus.launches[before:]])
    side = streamed._ahead.side.cuda_stream
    assert side and used == [[0] * 4, [0] + [side] * 3, [0] + [side] * 3]


class TestGraph:
    """zokern.graph."""

    @pytest.mark.parametrize(
        "settings", [{}, {"q": 2}, {"q": 8, "noise": "rademacher"}, {"estimator": "one-sided"}, {"q": 2, "weight_decay": 0.1}], ids=str
    )
    @pytest.mark.parametrize("groups", [list, groups_of])
    def test_a_graph_can_repeat_what_is_captured(self, gpus, settings, groups):
        with gpus.tensors():
            params = parameters()
            opt = MeZO(groups(params), lr=1e-3, **settings)
            graph = zokern.graph(opt, loss_of(params))
            before, launched = gpus.streams, len(gpus.launches)
            with gpus.step():
                graph()
        assert graph._graph.replays == 1 and len(gpus.launches) == launched and gpus.streams == before

    @pytest.mark.parametrize("estimator, passes", [("two-point", 4), ("one-sided", 3)])
    @pytest.mark.parametrize("kind", ["copied", "copied-own"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_copied_weights(self, gpus, kind, dtype, estimator, passes):
        """A pass a point, the update, and a pass that shows theta. What holds theta is made before, and another one is refused."""
        with gpus.tensors():
            params, held = parameters(dtype=dtype), []
            opt = MeZO(groups_of(params), perturbation=kind, estimator=estimator)
            graph = zokern.graph(opt, lambda: held.append([*opt.state]) or loss_of(params)())
            assert held[0] == params and len(graph._graph.launches) == passes
            for _ in range(2):
                with gpus.step():
                    graph()
            assert not opt.weights.displaced and opt.flushes == 0 and len(gpus.launches) == len(graph._tables) + passes
            params[1].detach().add_(1)  # which a replay would lose
            moved = opt.state[params[1]]["theta"]._version
            graph()
            assert opt.state[params[1]]["theta"]._version == moved + 1
            opt.measure(loss_of(params))
            launched = len(gpus.launches)
            graph()  # which begins at theta
            assert len(gpus.launches) > launched and opt.discarded_measurements == 1
            opt.state.clear()  # as where a state is loaded, which is held elsewhere
            opt._lay_out()
            with pytest.raises(ValueError, match="memory changed since the capture"):
                graph()

    @pytest.mark.parametrize("fail", [False, True])
    def test_a_capture_has_workspaces_of_its_own(self, gpus, fail):
        """Those of others are given up before it, and its own after it, whatever becomes of it."""
        gpus.fail = fail
        with gpus.tensors():
            params = parameters()
            with pytest.raises(RuntimeError, match="the capture failed") if fail else nullcontext():
                zokern.graph(MeZO(params), loss_of(params))
        before, after = gpus.cleared
        assert 0 < before < after == len(gpus.launches)

    def test_a_measurement_that_waits_for_its_step_is_dropped(self, gpus):
        """Else each replay would bring the weights back from where that has left them."""
        with gpus.tensors():
            params = parameters()
            opt = MeZO(params)
            opt.measure(loss_of(params))
            graph = zokern.graph(opt, loss_of(params))
            assert len(graph._graph.launches) == 3 and opt.discarded_measurements == 1

    def test_the_capture_is_on_the_device_of_the_parameters(self, gpus):
        """Which need not be the current one."""
        with gpus.tensors():
            params = parameters("cuda:1")
            graph = zokern.graph(MeZO(params), loss_of(params))
        captured = graph._graph.launches
        assert len(captured) == 3 and {(device, stream) for _, device, stream in captured} == {graph._graph.place}
        assert graph._graph.place[0] == 1 and gpus.device == 0

    @pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
    def test_after_a_failed_capture_the_current_stream_is_as_before(self, gpus, device):
        gpus.fail, before = True, list(gpus.current)
        with gpus.tensors():
            params = parameters(device)
            opt = MeZO(params)
            with pytest.raises(RuntimeError, match="the capture failed"):
                zokern.graph(opt, loss_of(params))
        assert gpus.current == before and gpus.device == 0

    def test_a_scheduler_made_after_the_capture(self, gpus):
        """It puts initial_lr and others into the groups."""
        with gpus.tensors():
            params = parameters()
            opt = MeZO(params, lr=1e-3)
            graph = zokern.graph(opt, loss_of(params))
            schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1e-2, total_steps=6, cycle_momentum=False)
            graph()
            schedule.step()
            graph()
            opt.param_groups[0]["weight_decay"] = 0.5
            with pytest.raises(ValueError, match="changed since the capture"):
                graph()
