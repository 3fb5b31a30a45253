"""Estimators ask, drivers answer: in any order, elsewhere, or from a log, the estimate is the same."""

import copy
from functools import partial

import pytest
import torch
from optimizer_cases import OPTIMIZERS

from zokern import ForwardGradient, Layout, MeZO, ops
from zokern.estimators import Closure, Driver, Losses

NAMES = ["MeZO", "MeZO defer", "MeZO q=2", "MeZO one-sided", "MeZO sparse", "MeZO blocks", "ZOConservative", "ZOAdam", "SignMomentum"]
# In place, theta + eps z and back are rounded to float32 a pass, elsewhere once: a derivative along z differs by rounding of about
# 1e-7 / eps of the gradient, and so do a few steps of size lr.
FEW_ROUNDINGS = dict(rtol=0, atol=2e-5)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def loss_of(model):
    x = torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(2, 7)
    return torch.func.functional_call(model, {n: p.double() for n, p in model.named_parameters()}, (x,)).square().sum()


def steps(name, driver, count=4):
    model = net()
    make = partial(MeZO, defer=True) if name == "MeZO defer" else OPTIMIZERS[name]
    optimizer = make(model.parameters(), lr=1e-3, eps=1e-2, seed=3)
    losses = [optimizer.step(driver(model)) for _ in range(count)]
    optimizer.flush()
    return torch.stack(losses), torch.cat([p.detach().flatten() for p in model.parameters()])


class Backwards(Closure):
    """Evaluates the last point first."""

    def answer(self, request):
        if isinstance(request, Losses):
            request = Losses(request.weights, request.points[::-1])
        return super().answer(request)[::-1]


class Elsewhere(Driver):
    """Evaluates the points on a copy of the model, which is made anew for each; the weights themselves do not move."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def answer(self, request):
        self.asked.append(len(request.points))
        request.weights.apply_pending()
        return [self.at(request.weights, point) for point in request.points]

    @torch.no_grad()
    def at(self, weights, point):
        twin = copy.deepcopy(self.model)
        of = dict(zip(self.model.parameters(), twin.parameters()))
        for i, part in enumerate(weights.parts):
            if point.part in (None, i):
                ops.add_noise_(part.over([of[p] for p in part.params]), point.terms)
        return loss_of(twin)


@pytest.mark.parametrize("driver", [lambda model: Backwards(lambda: loss_of(model)), Elsewhere], ids=["backwards", "elsewhere"])
@pytest.mark.parametrize("name", NAMES)
def test_points_may_be_evaluated_in_any_order_and_place(name, driver):
    expected, found = steps(name, lambda model: lambda: loss_of(model)), steps(name, driver)
    for one, other in zip(expected, found):
        torch.testing.assert_close(one, other, **FEW_ROUNDINGS)


def test_elsewhere_the_weights_stay_where_they_are():
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer, driver = OPTIMIZERS["MeZO q=2"](model.parameters(), lr=1e-3), Elsewhere(model)
    optimizer.measure(driver)
    assert all(map(torch.equal, before, model.parameters())) and not optimizer.weights.displaced
    assert driver.asked == [4]  # all points of a step in one request


def test_a_driver_that_fails_leaves_the_weights_and_the_count():
    model = net()
    before = [p.detach().clone() for p in model.parameters()]

    class Fails(Driver):
        def answer(self, request):
            raise ConnectionError("an engine is gone")

    optimizer = OPTIMIZERS["ZOConservative"](model.parameters(), lr=1e-3)
    with pytest.raises(ConnectionError, match="an engine is gone"):
        optimizer.step(Fails())
    assert all(map(torch.equal, before, model.parameters())) and optimizer.param_groups[0]["step"] == 0


def test_a_closure_whose_loader_is_exhausted_is_not_taken_for_the_end_of_the_estimator():
    model, batches = net(), iter([1.0])
    optimizer = OPTIMIZERS["MeZO"](model.parameters(), lr=1e-3)
    with pytest.raises((StopIteration, RuntimeError)):
        optimizer.step(lambda: next(batches))
    assert optimizer.param_groups[0]["step"] == 0 and optimizer.last is None


def test_forward_gradient_asks_for_derivatives():
    model = net()
    optimizer = ForwardGradient(model, lr=1e-3, q=3)
    asked = []

    class Listening(Closure):
        def answer(self, request):
            asked.append(request)
            return super().answer(request)

    optimizer.step(Listening(lambda: loss_of(model)))
    (request,) = asked
    assert len(request.keys) == 3 and len(optimizer.measurements) == 6 and isinstance(request.weights.layout, Layout)
