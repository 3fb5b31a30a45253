"""Parts made ahead on a side stream: which, when, in which buffer, and who waits for whom. Streams are stand-ins here."""

import pytest
import torch
from late_streams import Streams
from streamed_cases import TERMS, Untouched, layout_of, perturbed
from torch import nn

from zokern import NoiseKey, Streamed

OTHER = [(NoiseKey(5, 2), 0.2)]


class Route(nn.Module):
    """Runs its layers in the order of ``route``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.route = [0, 1, 2]

    def forward(self, x):
        for i in self.route:
            x = self.layers[i](x)
        return x


class Run:
    def __init__(self, gpu):
        self.gpu, self.model = gpu, gpu.of(Route())
        self.layout, self.streamed = layout_of(self.model), Streamed(self.model)

    def __call__(self, route=(0, 1, 2), terms=TERMS):
        """An evaluation, in which what came out is right. -> what was done."""
        self.model.route = route
        with torch.no_grad(), Untouched(self.model):
            expected = perturbed(self.model, self.layout, terms)(torch.ones(4))
            self.gpu.told()
            with self.streamed.showing([self.layout], [self.layout], [terms]):
                made = self.model(torch.ones(4))
            assert torch.equal(made, expected)
        return self.gpu.told()


@pytest.fixture
def run(monkeypatch):
    return Run(Streams(monkeypatch))


def makes(log):
    return [line for line in log if "makes" in line]


def test_the_next_part_is_made_while_this_one_computes(run):
    assert makes(run()) == [f"main makes {i} in (0, {(i + 1) % 2})" for i in range(3)]
    assert run(terms=OTHER) == [
        *("main waits for side", "main makes 0 in (0, 1)"),
        *("side waits for main", "side makes 1 in (0, 0)"),
        "0 computes",
        "main waits for side",
        *("side waits for main", "side makes 2 in (0, 1)"),
        "1 computes",
        "main waits for side",
        "2 computes",
        "main waits for side",
    ]


def test_another_order_than_expected(run):
    logs = [makes(run(route)) for route in ([0, 1, 2], [0, 2, 1], [0, 2], [0, 2, 2, 1], [2, 2, 2, 1], [2, 2, 2, 1])]
    assert logs[1] == ["main makes 0 in (0, 1)", "side makes 1 in (0, 0)", "main makes 2 in (0, 0)", "main makes 1 in (0, 1)"]
    assert logs[2] == ["main makes 0 in (0, 1)", "side makes 2 in (0, 0)", "side makes 1 in (0, 1)"]  # the last one for nothing
    assert logs[5] == ["main makes 2 in (0, 1)", "main makes 2 in (0, 0)", "side makes 1 in (0, 0)"]  # what lies there stays


def test_a_parameter_that_is_shown_is_not_made_ahead(run):
    """Its address is that of the scratch memory then."""
    run.model.layers[1].weight = run.model.layers[0].weight
    run.layout, run.streamed = layout_of(run.model), Streamed(run.model)
    for _ in range(2):
        log = makes(run())
    assert log == ["main makes 0 in (0, 1)", "main makes 1 in (0, 0)", "side makes 2 in (0, 1)"]


def test_after_an_exception_nothing_is_left_to_be_made(run):
    run()
    handle = run.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    layouts = [run.layout]
    with Untouched(run.model), pytest.raises(ZeroDivisionError), run.streamed.showing(layouts, layouts, [TERMS]):
        run.model(torch.ones(4))
    assert not run.gpu.queue and run.gpu.told()[-1] == "main waits for side"
    handle.remove()
    run()
