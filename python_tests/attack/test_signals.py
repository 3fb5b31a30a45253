"""A signal anywhere in a step of any optimizer: the weights and the state are those that the count of steps says, and the run goes on."""

import copy
import gc
import warnings
from functools import cache, partial
from itertools import product

import pytest
import torch
import trajectory_cases
from attack.interrupts import at_moment, at_place
from attack.strength import dice, times
from hybrid_cases import ADAMW, LISA, SGD, STATIC, ZO
from hybrid_cases import Net as Blocks
from torch.autograd import forward_ad

from zokern import ForwardGradient, Hybrid, Trajectory, ZOAdam, record
from zokern.errors import BadInput

HYBRIDS = {f"Hybrid {split}": partial(Hybrid, zo=ZO, fo=SGD, split=split) for split in (*STATIC, LISA)}
HYBRIDS |= {
    f"Hybrid {name}": partial(Hybrid, **{"zo": ZO, "fo": ADAMW, "split": list(STATIC)[1], **more})
    for name, more in {
        "share_forward": dict(share_forward=True),
        "frozen": dict(zo=None),
        "ForwardGradient": dict(zo=partial(ForwardGradient, lr=2e-3, seed=7)),
        "ZOAdam, LISA": dict(zo=partial(ZOAdam, lr=2e-3, eps=1e-2, seed=7), split=LISA),
    }.items()
}
CASES = [*trajectory_cases.CASES, *HYBRIDS]
PERIOD = {name: 3 if "LISA" in name else 2 if "SVRG" in name else 1 for name in CASES}  # steps after which the same is done again

# Of the largest weight, which is at least 2: each of at most 16 passes of a step rounds it once. A displacement is 1e-2, an update more
# than FAR.
ROUNDED = 16 * 2.0**-24
FAR = 1e-4


class Run:
    """A small model, its optimizer, and a batch a step; the loss of some batches is not finite."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.name, self.hybrid, self.batch = name, name in HYBRIDS, 0
        self.net = Blocks() if self.hybrid else trajectory_cases.Net()
        self.optimizer = HYBRIDS[name](self.net) if self.hybrid else trajectory_cases.optimizer_of(name, self.net)
        self.defers = bool(self.optimizer.param_groups[0].get("defer"))
        self.places = [p.data_ptr() for p in self.net.parameters()]
        self.live = [p.requires_grad for p in self.net.parameters()]

    def loss(self):
        return self.net(trajectory_cases.batch(self.batch)) * (float("nan") if self.batch % 7 == 6 else 1.0)

    def step(self):
        self.optimizer.step(self.loss)
        self.batch += 1

    @property
    def steps(self):
        return self.optimizer.steps if self.hybrid else self.optimizer.param_groups[0]["step"]

    def weights(self):
        return [p.detach().clone() for p in self.net.parameters()]

    def held(self):
        """All that decides the steps to come, beside the weights."""
        optimizer, groups = self.optimizer, self.optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        states = [optimizer.state.get(p, {}) for group in groups for p in group["params"]]
        # Zeros are there from the first measurement on, or from the first step on.
        state = [{name: x for name, x in held.items() if not isinstance(x, torch.Tensor) or x.any()} for held in states]
        return _copied([settings, state, self.steps, optimizer.skipped])

    def become(self, other):
        state = copy.deepcopy(other.optimizer.state_dict())  # which flushes; and torch does not copy what it loads
        self.optimizer.load_state_dict(state)
        with torch.no_grad():
            for mine, theirs in zip(self.net.parameters(), other.net.parameters()):
                mine.copy_(theirs)
        self.batch = other.batch

    def left_behind(self):
        """What an interrupt must not leave: a list of its names."""
        params, begun = list(self.net.parameters()), self.optimizer._measured is not None
        return [
            what
            for what, so in {
                **_cleaned(),
                "a hook": any(p._post_accumulate_grad_hooks or p._backward_hooks for p in params),
                "another requires_grad": [p.requires_grad for p in params] != self.live,
                "a gradient": not begun and any(p.grad is not None for p in params),
                "weights elsewhere in memory": [p.data_ptr() for p in params] != self.places,
            }.items()
            if so
        ]


def _cleaned():
    """{what: whether an interrupt has left it in the process}; then it is no longer there. torch.no_grad itself does not bring grad mode
    back where its __enter__ is interrupted, nor a mode, and is not blamed."""
    torch.set_grad_enabled(True)
    left = {"a dual level": forward_ad._current_level >= 0, "a torch function mode": any(getattr(mode, "live", True) for mode in _modes())}
    while forward_ad._current_level >= 0:
        forward_ad.exit_dual_level()
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    return left


def _modes():
    return map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(inside) for key, inside in value.items()}
    return [_copied(inside) for inside in value] if isinstance(value, list | tuple) else value


def differ(a, b, near, name=""):
    """Where two things differ: by a bit, or in numbers that are to be near each other by more than rounding. None where nowhere."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
            return name
        largest = lambda x: x.double().nan_to_num().abs().max().item() if x.numel() else 0  # noqa: E731
        distance = largest(a.double() - b.double())
        return f"{name} by {distance:.1e}" if distance > (ROUNDED * max(2.0, largest(a)) if near else 0) else None
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{name}: {', '.join(sorted(map(str, a.keys() ^ b.keys())))}"
        pairs = [(a[key], b[key], near, f"{name}.{key}") for key in a]
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{name}: {len(a)} and {len(b)} of them"
        pairs = [(x, y, near, f"{name}[{i}]") for i, (x, y) in enumerate(zip(a, b))]
    else:
        return None if a == b or a != a and b != b else f"{name}: {a!r} and {b!r}"
    return next(filter(None, (differ(*pair) for pair in pairs)), None)


def _nothing(run):
    return None


def _begun(run):
    run.optimizer.measure(run.loss)


def _estimated(run):
    return run.optimizer.estimate(run.loss)


def _read(run):
    """The measurements of the step to come, as a twin finds them."""
    twin = Run(run.name)
    twin.become(run)
    twin.step()
    return list(map(float, twin.optimizer.measurements))


FOREVER = {at_place: None, at_moment: 60.0}
# name -> (what comes before, what is interrupted: it is given the run and what came of that)
ACTS = {
    "step": (_nothing, lambda run, _: run.optimizer.step(run.loss)),
    "begin": (_nothing, lambda run, _: run.optimizer.measure(run.loss)),
    "step()": (_begun, lambda run, _: run.optimizer.step()),
    "flush": (_begun, lambda run, _: run.optimizer.flush()),
    "state_dict": (_begun, lambda run, _: run.optimizer.state_dict()),
    "estimate": (_nothing, lambda run, _: run.optimizer.estimate(run.loss)),
    "apply": (_estimated, lambda run, estimate: run.optimizer.apply(estimate)),
    "repeat": (_read, lambda run, measurements: run.optimizer.repeat(measurements)),
}
HALVES = ("begin", "step()", "flush", "state_dict")  # which may find or leave a step half done, its weights beside theta


class Walk:
    """A run that is interrupted time and again, and two that are not: ``stay``, where it was before, and ``go``, where it was going."""

    def __init__(self, name):
        self.runs = self.walker, self.stay, self.go = [Run(name) for _ in range(3)]
        self.step()

    def step(self):
        for run in self.runs:
            run.step()

    def attack(self, name, measure, choose):
        """Interrupt an act. -> (its size, what was raised or None, what is wrong then or None).

        Args:
            name: of the act.
            measure: ``at_place`` or ``at_moment``.
            choose: size of the act -> where or when it is interrupted.
        """
        before, act = ACTS[name]
        walker, stay, go = self.runs
        given, there = before(walker), before(go)
        size, _ = measure(FOREVER[measure], lambda: act(go, there))
        for run in (stay, go):
            run.optimizer.flush()
        steps, point, raised = walker.steps, choose(size), None
        try:
            _, raised = measure(point, lambda: act(walker, given))
            left = walker.left_behind()
            if raised is not None and name not in HALVES and walker.optimizer._measured is not None:
                left.append("what was begun")
            wrong = f"left: {', '.join(left)}" if left else self._after(steps) or self._later(raised)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        return size, raised, wrong and f"{name} of {walker.name} at step {steps}, interrupted at {point} of {size}: {wrong}"

    def _after(self, steps):
        """What does not agree with the count of steps."""
        walker, optimizer = self.walker, self.walker.optimizer
        expected = self.go if walker.steps > steps else self.stay
        if walker.steps != expected.steps:
            return f"{walker.steps - steps} steps counted"
        if walker.steps > steps and optimizer._measured is not None:
            return "the step is counted, and still begun"
        if not walker.defers and optimizer._measured is None and (place := differ(walker.weights(), expected.weights(), True, "weights")):
            return f"{place}, step {'counted' if walker.steps > steps else 'not counted'}"
        optimizer.flush()
        if place := differ(walker.weights(), expected.weights(), True, "weights"):
            return f"after flush {place}, step {'counted' if walker.steps > steps else 'not counted'}"
        return differ(walker.held(), expected.held(), True, "held")

    def _later(self, raised):
        """What is wrong with the next step, which is to be that of an optimizer with these weights and this state."""
        walker, stay, go = self.runs
        for run in (stay, go):
            run.become(walker)
        for run in self.runs:
            run.batch += 1
        self.step()
        if place := differ([walker.weights(), walker.held()], [go.weights(), go.held()], False, "next step"):
            return place
        if raised is not None:  # as a notebook lets it go when another comes, with the frames that it held
            now = walker.weights()
            raised.__traceback__ = raised.__context__ = None
            gc.collect()
            if place := differ(walker.weights(), now, False, "when the exception was let go, weights"):
                return place
        return f"left after the next step: {', '.join(left)}" if (left := walker.left_behind()) else None


def acts_of(name):
    return [act for act in ACTS if name not in HYBRIDS or act not in ("estimate", "apply", "repeat")]


pytestmark = pytest.mark.filterwarnings("ignore:.*was skipped:RuntimeWarning")


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What torch imports for its first optimizer is no garbage either (conftest.py)."""
    Run("Hybrid share_forward").step()
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_more_than_rounding(name):
    """Or nothing here would tell where one is missing, or there twice."""
    run = Run(name)
    for _ in range(4):
        before = run.weights()
        run.step()
    assert max((a - b).abs().max() for a, b in zip(run.weights(), before) if a.numel()) > FAR


@pytest.mark.parametrize("name", CASES)
def test_at_places(name, found):
    """Long: at every place of an act that has no more than 1,000, at so many of others."""
    walk, throw, most = Walk(name), dice("places", name), times(4, 1000)
    for act, phase in product(acts_of(name), range(PERIOD[name])):
        k, size = 0, most
        while k < min(size, most):
            k += 1
            while walk.walker.steps % PERIOD[name] != phase:
                walk.step()
            size, raised, wrong = walk.attack(act, at_place, lambda size, k=k: k if size <= most else throw.randint(1, size))
            found["signals"] += 1
            found["interrupts"] += raised is not None
            if wrong:
                found.blame(wrong)
                walk = Walk(name)
    found.judge()


@pytest.mark.parametrize("name", CASES)
def test_at_moments(name, found):
    walk, throw = Walk(name), dice("moments", name)
    for _ in range(times(12, 2000)):
        _, raised, wrong = walk.attack(throw.choice(acts_of(name)), at_moment, lambda size: throw.uniform(1e-6, 1.05 * size))
        found["signals"] += 1
        found["interrupts"] += raised is not None
        if wrong:
            found.blame(wrong)
            walk = Walk(name)
    found.judge()


@pytest.mark.parametrize("name", trajectory_cases.CASES)
def test_recorded(name, found, tmp_path):
    """The log of a run that was interrupted, or saved then and gone on with, gives its weights bit for bit, or says where it ends."""
    throw = dice("recorded", name)
    for i in range(times(5, 300)):
        path, act, resumed = tmp_path / f"{i}.jsonl", throw.choice(acts_of(name)), throw.random() < 0.5
        size = _size(name, act)
        point = throw.randint(1, size)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                run = _recorded(Run(name), path, act, point, resumed)
            except (BadInput, RuntimeError) as error:
                run, told = None, [error]
        told = [w for w in told if "was skipped" not in str(w)]
        found["signals"] += 1
        found["told"] += bool(told)
        again, log = Run(name), Trajectory.read(path)
        try:
            log.replay(again.net)
        except BadInput:
            found["refused"] += 1
            continue
        found["replayed"] += 1
        if run is None or len(log) < run.steps and told:
            continue
        run.optimizer.flush()
        what = f"{act} of {name}, interrupted at {point} of {size}{', saved and resumed' if resumed else ''}"
        if place := differ(again.weights(), run.weights(), False, "weights"):
            found.blame(f"{what}: the replay is another run, {place}, told: {[str(w) for w in told]}")
    found.judge()


@cache
def _size(name, act):
    """Places of an act after the second step."""
    run = Run(name)
    run.step()
    run.step()
    given = ACTS[act][0](run)
    return at_place(None, lambda: ACTS[act][1](run, given))[0]


def _recorded(run, path, act, point, resumed):
    """Two steps, an act that is interrupted, and two more. -> the run."""
    recorder = record(run.optimizer, path)
    run.step()
    run.step()
    before, what = ACTS[act]
    given = before(run)
    at_place(point, lambda: what(run, given))
    _cleaned()
    if resumed:
        later = Run(run.name)
        later.become(run)
        recorder.close()
        run, recorder = later, record(later.optimizer, path, resume=True)
    run.batch += 1
    run.step()
    run.step()
    recorder.close()
    return run
