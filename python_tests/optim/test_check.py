"""optimizer.check: what it measures is what a step measures, what it finds is there, and a run is the same bits with it as without."""

import math
import random
import warnings
from functools import partial

import numpy
import pytest
import torch
from optimizer_cases import OPTIMIZERS, Half
from torch.nn.functional import cross_entropy

import zokern
from zokern import AdaMeZO, Check, ForwardGradient, Hybrid, MeZO, MeZOSVRG, NoiseKey, Trajectory, ZOAdam, ZOMomentum, ZOSign, splits
from zokern.noise.spec import CHECK

EVERY = {**OPTIMIZERS, "MeZO deferred": partial(MeZO, defer=True), "ForwardGradient": ForwardGradient}


def net(dtype=torch.float32, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 3)
    return torch.nn.Sequential(*layers).to(dtype).eval()


X = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(2))


def loss_of(model, rows=slice(None)):
    dtype = next(model.parameters()).dtype
    return cross_entropy(model(X[rows].to(dtype)).float(), Y[rows])


def made(name, params, **settings):
    return EVERY[name](params, **{"lr": 1e-3, "seed": 7, **settings})


def cubic(params, centre=0.3):
    return sum(((p.double() - centre) ** 3).sum() for p in params)


@pytest.mark.parametrize("estimator", ["two-point", "one-sided"])
def test_what_it_measures_is_what_differences_are(estimator, explicit):
    """In float64, of a cubic, along noise that only a check has."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n)) for n in (5, 300)]
    optimizer = MeZO([{"params": params[:1]}, {"params": params[1:], "eps": 2e-2}], eps=1e-2, lr=0.1, seed=3, estimator=estimator)
    optimizer.param_groups[0]["step"] = optimizer.param_groups[1]["step"] = 5
    found = optimizer.check(lambda: cubic(params))
    z = explicit(NoiseKey.of(3, 5, CHECK, 0), optimizer.layout)
    loss = lambda scale: float(cubic([p.detach() + scale * eps * zp for p, zp, eps in zip(params, z, (1e-2, 2e-2))]))  # noqa: E731
    slopes = [(loss(scale) - loss(-scale)) / (2 * scale * 1e-2) for scale in (1 / 3, 1, 3)]
    assert found.losses == (loss(0),) * 2 and found.wobble == 0 and found.eps == 1e-2
    assert found.slopes[0] == pytest.approx(slopes, rel=1e-3) and len(found.slopes) == 1  # weights are float32
    assert found.difference == pytest.approx(abs(loss(1) - loss(-1 if estimator == "two-point" else 0)), rel=1e-3)
    sizes = [0.1 * abs(slopes[1]) * part for part in (1, 1 / 2)]  # the second group's slope is by its own eps
    assert found.update == pytest.approx(math.sqrt((5 * sizes[0] ** 2 + 300 * sizes[1] ** 2) / 305), rel=1e-3)
    assert found.lost is None and not found.problems and str(found).endswith("problem     none")


def test_blocks_are_measured_one_by_one(explicit):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n)) for n in (50, 300)]
    optimizer = MeZO(params, eps=1e-2, blocks=[[p] for p in params])
    found = optimizer.check(lambda: cubic(params))
    z = explicit(NoiseKey.of(0, 0, CHECK, 0), optimizer.layout)
    for i, slopes in enumerate(found.slopes):
        loss = lambda side: float(cubic([p.detach() + side * (i == j) * 1e-2 * z[j] for j, p in enumerate(params)]))  # noqa: B023, E731
        assert slopes[1] == pytest.approx((loss(1) - loss(-1)) / 2e-2, rel=1e-3)
    assert len(found.slopes) == 2 and not found.problems


def test_a_forward_gradients_slope_is_the_derivative(explicit):
    model = net()
    optimizer = ForwardGradient(model.named_parameters(), lr=1e-2)
    found = optimizer.check(lambda: loss_of(model))
    z = explicit(NoiseKey.of(0, 0, CHECK, 0), optimizer.layout)
    loss_of(model).backward()
    slope = sum(float((p.grad.double() * zp).sum()) for p, zp in zip(model.parameters(), z))
    assert found.slopes == [(pytest.approx(slope, rel=1e-4),)] and found.eps is None and found.difference is None
    assert found.update == pytest.approx(1e-2 * abs(slope), rel=1e-4) and not found.problems


SIZES = {
    "MeZO": (lambda p: MeZO(p, lr=0.1, q=4), lambda g: 0.1 * g / 2),
    "MeZO, warming up": (lambda p: MeZO([{"params": p, "initial_lr": 0.5}], lr=0.0), lambda g: 0.5 * g),
    "ZOAdam": (lambda p: ZOAdam(p, lr=0.1), lambda g: 0.1),
    "AdaMeZO": (lambda p: AdaMeZO(p, lr=0.1), lambda g: 0.1),
    "ZOSign": (lambda p: ZOSign(p, lr=0.1), lambda g: 0.1),
    "ZOSign scalar": (lambda p: ZOSign(p, lr=0.1, form="scalar", q=4), lambda g: 0.05),
    "ZOMomentum": (lambda p: ZOMomentum(p, lr=0.1, momentum=0.6), lambda g: 0.1 * g / 0.8),
    "MeZOSVRG": (lambda p: MeZOSVRG(p, lr=0.1, lr_full=0.4, q=7), lambda g: 0.4 * g),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_size_of_an_update_is_the_rules(name):
    model = net()
    make, size = SIZES[name]
    found = make(list(model.parameters())).check(lambda: loss_of(model))
    assert found.update == pytest.approx(size(abs(found.slopes[0][1])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_share_of_weights_that_stands_still_is_counted(dtype, explicit):
    """Half of the elements are in 16 bits and large, a quarter in 16 bits and near 0, where any update is more than rounding."""
    large, small, full = (torch.nn.Parameter(torch.full((n,), x)) for n, x in ((2000, 1.0), (1000, 1e-6), (1000, 1.0)))
    large.data, small.data = large.data.to(dtype), small.data.to(dtype)
    optimizer = ZOSign([large, small, full], lr=1e-3, form="scalar", eps=0.1, perturbation="in-place")
    found = optimizer.check(lambda: sum((p.double() ** 2).sum() for p in (large, small, full)))
    every = [explicit(NoiseKey.of(0, 0, CHECK, direction), optimizer.layout) for direction in range(len(found.slopes))]
    still = [
        sum(float(((p.double() + 1e-3 * z[i]).to(dtype) == p).double().sum()) for z in every) / len(every)
        for i, p in enumerate((large, small))
    ]
    assert found.lost == pytest.approx(sum(still) / 3000, abs=1e-3) and still[1] < 10
    if dtype == torch.bfloat16:  # the spacing at 1 is 2^-7, below it 2^-8: 1e-3 |z| is less than half of the latter in 95 % of z
        assert still[0] > 1800
        (problem,) = found.problems
        assert problem.startswith(f"an update of 0.001 an element leaves {found.lost:.0%} of the weights in 16 bits where they are")


PROBLEMS = {
    "all is well": (lambda m: loss_of(m), {}, None),
    "a number": (lambda m: loss_of(m).item(), {}, None),
    "float64": (lambda m: loss_of(m).double(), {}, None),
    "bfloat16": (lambda m: loss_of(m).bfloat16(), {}, r"losses of 8 bits are .* apart: compute the loss in float32.*not in bfloat16"),
    "float16, late": (lambda m: loss_of(m).half().float(), dict(eps=1e-3), "losses of 11 bits are .*rounded to 16 bits on their way"),
    "bfloat16, late": (lambda m: loss_of(m).bfloat16().float(), dict(eps=1e-5), "the same, bit for bit.*rounded to 16 bits on its way"),
    "a constant": (lambda m: torch.tensor(0.3), {}, "the same, bit for bit, .* does not depend on the parameters given"),
    "a batch that is learnt": (lambda m: (loss_of(m) - 40).clamp(min=0), {}, None),
    "a batch that is nearly learnt": (lambda m: (loss_of(m) + 1 - loss_of(m)) * 1e-7, {}, None),
    "not finite": (lambda m: loss_of(m) * math.nan, {}, "the loss at theta is nan and nan"),
    "infinite beside theta": (
        lambda m: loss_of(m) - (m[0].weight == WEIGHT).all().float().log(),
        {},
        r"theta \+ eps z is not finite.*smaller eps",
    ),
    "eps too small": (lambda m: loss_of(m), dict(eps=1e-7), "mostly rounding: pass a larger eps"),
    "eps too large": (
        lambda m: sum((40 * p).sin().sum() for p in m.parameters()),
        dict(eps=0.1),
        "do not agree about eps=0.1 .*pass a smaller eps",
    ),
    "ripples": (
        lambda m: loss_of(m) + sum((1e5 * p).cos().sum() for p in m.parameters()) * 1e-4,
        {},
        "do not agree about eps=0.001 .* in 16 bits, a larger one$",
    ),
}
WEIGHT = net()[0].weight.detach().clone()


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_is_named_with_its_cure(case):
    closure, settings, message = PROBLEMS[case]
    model = net()
    optimizer = MeZO(model.parameters(), lr=1e-3, seed=1, **settings)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = optimizer.check(lambda: closure(model))
    assert not heard and isinstance(found, Check)
    assert len(found.problems) == (message is not None)
    if message is not None:
        with pytest.warns(RuntimeWarning, match=f"^MeZO: .*{message}") as heard:
            again = optimizer.check(lambda: closure(model), warn=True)
        assert len(heard) == 1 and repr(again) == repr(found) and found.problems[0] in str(found)
        assert heard[0].filename == __file__


def test_a_closure_that_changes_between_its_calls_is_noticed():
    model = net(dropout=0.1)
    batches = iter(range(0, 10_000))
    changing = {
        "dropout": lambda: model.train() and loss_of(model),
        "a new batch": lambda: loss_of(model.eval(), [next(batches) % 32]),
        "counted, under dropout": lambda: (model.train()(X).argmax(-1) != Y).double().mean(),
    }
    for name, closure in changing.items():
        for optimizer in (MeZO(model.parameters()), ForwardGradient(model.parameters())):
            if name.startswith("counted") and isinstance(optimizer, ForwardGradient):
                continue
            found = optimizer.check(closure, smooth=not name.startswith("counted"))
            (problem,) = found.problems
            assert "at the same weights" in problem and "call model.eval()" in problem and "see one batch" in problem
            assert found.wobble == abs(found.losses[0] - found.losses[1]) > 0


def test_a_loss_that_is_counted_is_asked_for_its_repetition_alone():
    model = net()
    wrong = lambda: (model(X).argmax(-1) != Y).double().mean()  # noqa: E731
    optimizer = MeZO(model.parameters())
    assert optimizer.check(wrong).problems and not optimizer.check(wrong, smooth=False).problems


@pytest.mark.parametrize("name", EVERY)
def test_what_is_well_is_not_complained_of(name):
    """12 models and seeds each: none is hit by chance, since a doubt asks three directions."""
    for seed in range(12):
        model = net(seed=seed)
        optimizer = made(name, model.named_parameters(), seed=seed)
        assert optimizer.check(lambda: loss_of(model)).problems == []  # noqa: B023


class Noisy:
    """A closure that draws from every generator there is, and so differs with their states."""

    def __init__(self, params):
        self.params, self.drawn = params, []

    def __call__(self):
        self.drawn = float(torch.rand(())), random.random(), numpy.random.rand()
        return cubic(self.params) * (1 + 1e-3 * sum(self.drawn))


def bits(params):
    return [p.detach().view(torch.int32 if p.dtype == torch.float32 else torch.int16).clone() for p in params]


def plain(value):
    """What a state holds, to be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    return [plain(held) for held in value] if isinstance(value, list | tuple) else value


def run(name, dtype, path, check):
    """Five steps, the last one in halves, all recorded. -> what there is to compare."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((3, 5), (4500,), (0,), (6, 4))]
    params[3].data = params[3].data.t()
    begun = bits(params)
    optimizer = made(name, params, lr=1e-5)
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    closure, seen = Noisy(params), []

    def look():
        if check:
            before = bits(params), optimizer.last, list(optimizer.measurements), plain(optimizer.__dict__["state"])
            optimizer.check(closure)
            after = bits(params), optimizer.last, list(optimizer.measurements), plain(optimizer.__dict__["state"])
            assert all(map(torch.equal, before[0], after[0])) and before[1] is after[1] and before[2] == after[2]
            assert before[3] == after[3] or "copied" in optimizer.param_groups[0]["perturbation"] and "deferred" in name

    look()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        recorder = zokern.record(optimizer, path)
        look()
        for _ in range(4):
            optimizer.step(closure)
            look()
            seen.append([float(measurement) for measurement in optimizer.measurements])
        optimizer.measure(closure)
        look()
        optimizer.step()
        optimizer.flush()
        recorder.close()
    states = torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()
    return begun, bits(params), seen, states, path.read_text(), plain(optimizer.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_a_run_is_the_same_bits_with_checks_as_without(name, dtype, tmp_path):
    alone, checked = (run(name, dtype, tmp_path / f"{check}.jsonl", check) for check in (False, True))
    assert all(map(torch.equal, alone[1], checked[1])) and not all(map(torch.equal, alone[0], alone[1]))
    assert alone[2:4] == checked[2:4] and alone[5] == checked[5]
    assert alone[4] == checked[4] and "disturbed" not in alone[4]


@pytest.mark.parametrize("name", ["MeZO", "MeZO deferred", "ZOAdam", "MeZOSVRG copy"])
def test_the_log_of_a_run_with_checks_is_replayed(name, tmp_path):
    _, trained, *_ = run(name, torch.float32, tmp_path / "log.jsonl", check=True)
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 5), (4500,), (0,), (6, 4))]
    params[3].data = params[3].data.t()
    Trajectory.read(tmp_path / "log.jsonl").replay(params)
    assert all(map(torch.equal, trained, bits(params)))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("at", [1, 2, 4, 8])
def test_whatever_the_closure_raises_the_weights_are_as_before(name, at):
    model, calls = net(), []
    optimizer = made(name, model.named_parameters())
    before, states = bits(model.parameters()), torch.get_rng_state()

    def closure():
        calls.append(torch.rand(()))
        if len(calls) == at:
            raise KeyboardInterrupt
        return loss_of(model)

    if name == "ForwardGradient" and at > 3:
        pytest.skip("three calls in all")
    with pytest.raises(KeyboardInterrupt):
        optimizer.check(closure)
    assert all(map(torch.equal, before, bits(model.parameters()))) and torch.equal(states, torch.get_rng_state())
    assert not optimizer.weights.displaced and optimizer.measurements == []


@pytest.mark.parametrize("name, asked", [("MeZO", [2, 6]), ("MeZO blocks", [2, 24]), ("ForwardGradient", [2, 2])])
def test_processes_agree_on_all_losses(name, asked):
    model = net()
    closure = Half(lambda: loss_of(model))
    optimizer = made(name, model.named_parameters())
    assert optimizer.check(closure) == optimizer.check(lambda: loss_of(model)) and closure.asked == asked


def test_a_hybrids_zeroth_order_half_is_checked():
    def hybrid(zo):
        model = net()
        return model, Hybrid(model, zo, partial(torch.optim.SGD, lr=1e-2), splits.Intra(2, 0.5))

    (plain, _), (checked, other) = both = [hybrid(partial(MeZO, lr=1e-2, eps=1e-3)) for _ in range(2)]
    for _ in range(3):
        found = other.check(lambda: loss_of(checked))
        assert not found.problems and found == other.zo.check(lambda: loss_of(checked))
        for model, optimizer in both:
            optimizer.step(lambda: loss_of(model))  # noqa: B023
    assert all(map(torch.equal, bits(plain.parameters()), bits(checked.parameters())))
    assert all(p.grad is None and p.requires_grad for p in checked.parameters())
    model, frozen = hybrid(None)
    with pytest.raises(ValueError, match="check of a Hybrid with zo=None"):
        frozen.check(lambda: loss_of(model))


def test_errors_are_those_of_a_step():
    model = net()
    with pytest.raises(ValueError, match=r"closure returned a tensor of shape \(2,\)"):
        MeZO(model.parameters()).check(lambda: torch.zeros(2))
    with pytest.raises(TypeError, match="closure returned float, which carries no derivative"):
        ForwardGradient(model.parameters()).check(lambda: loss_of(model).item())
