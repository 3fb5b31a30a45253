"""update_ against the same rules written out in float64 with explicit z, on every kind of tensor, term and number."""

from itertools import product

import pytest
import torch
from tolerances import ROUNDING, STATE, STOCHASTIC

from zokern import Layout, NoiseKey, ops
from zokern.kernels.passes import RULES
from zokern.noise import reference
from zokern.noise.spec import ROUNDING as PURPOSE
from zokern.noise.spec import WEIGHTS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LR, BETA1, BETA2, DELTA = 1e-2, 0.9, 0.98, 1e-3
SHAPES = ((37, 11), (), (1100,), (0,), (3, 4, 5))
PENDING = [(NoiseKey(4, 1), 0.25), (NoiseKey(4, 9), 0.125)]
TERMS = [(NoiseKey(4, 2), -1.5), (NoiseKey(4, 1), 0.75), (NoiseKey(4, 1, 1), 0.01)]


def numbers_of(rule, step):
    c1, c2 = 1 - BETA1**step, 1 - BETA2**step
    adam = (-LR / c1, BETA1, 1 - BETA1, BETA2, 1 - BETA2, c2**-0.5, DELTA)
    return {"sign": (-LR,), "momentum": (-LR, BETA1)}.get(rule, adam)


def textbook(rule, step, x, g, state):
    """The rule as papers give it, in float64, with the bias corrections where they put them."""
    if rule == "sign":
        return x - LR * g.sign()
    if rule == "momentum":
        state["m"] = BETA1 * state["m"] + g
        return x - LR * state["m"]
    state["m"] = BETA1 * state["m"] + (1 - BETA1) * g
    state["v"] = BETA2 * state["v"] + (1 - BETA2) * g**2
    second = state["v"]
    if rule == "amsgrad":
        second = state["w"] = torch.maximum(state["w"], second)
    return x - LR * (state["m"] / (1 - BETA1**step)) / ((second / (1 - BETA2**step)).sqrt() + DELTA)


def zeros_like(layout, rule, dtype=torch.float32):
    return [[torch.zeros_like(p, dtype=dtype) for p in layout.params] for _ in RULES[rule].state]


@pytest.mark.parametrize("keep", [None, [0.25, 1.0, 0.5, 0.5, 1.0]], ids=["dense", "sparse"])
@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_textbook_in_float64(backend, dtype, rule, decay, keep, explicit):
    params = [torch.randn(shape).to(dtype) for shape in SHAPES]
    layout = Layout(params, keep)
    state = zeros_like(layout, rule)
    exact = [{name: p.double() * 0 for name in RULES[rule].state} for p in params]
    for step in (1, 2, 3):
        later = lambda terms: [(NoiseKey(4, key.step + 10 * step, key.stream), c) for key, c in terms]  # noqa: B023, E731
        before = [p.double() for p in params]
        ops.update_(layout, rule, later(TERMS), numbers_of(rule, step), state, pending=later(PENDING), decay=decay)
        along = lambda terms: map(sum, zip(*([c * z for z in explicit(key, layout)] for key, c in terms)))  # noqa: E731
        for p, x, o, g, s in zip(params, before, along(later(PENDING)), along(later(TERMS)), exact):
            expected = textbook(rule, step, decay * x + o, g, s)
            if p.numel():
                assert (p.double() - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max().clamp(min=1)
    for slot, name in zip(state, RULES[rule].state):
        for tensor, s in zip(slot, exact):
            if tensor.numel():
                assert (tensor.double() - s[name]).abs().max() <= STATE * s[name].abs().max().clamp(min=1)


def test_sparse_noise_is_zero_where_the_mask_says_so(backend):
    layout = Layout([torch.zeros(7), torch.zeros(9001)], keep=[1.0, 0.3])
    key = NoiseKey(3, 5, 1 << 24 | 7)
    ops.add_noise_(layout, [(key, 1.0)])
    z = torch.from_numpy(reference.normal(key, 4096, 9001))
    kept = torch.from_numpy(reference.mask(NoiseKey(3, 5, 2 << 24 | 7), 0.3, 4096, 9001))
    assert torch.equal(layout.params[1], torch.where(kept, z, 0.0))
    assert layout.params[0].all() and 0.25 < kept.float().mean() < 0.35


@pytest.mark.parametrize("rule", ["momentum", "adam", "amsgrad"])
def test_bfloat16_state_is_the_float32_state_rounded_up_or_down(backend, rule):
    """One step from a state that both hold exactly: theta is the same, and each state is one of its two neighbours, right on average."""
    start = [torch.randn(9001).bfloat16().abs() for _ in RULES[rule].state]
    thetas, states = [torch.ones(9001), torch.ones(9001)], []
    for theta, dtype in zip(thetas, (torch.float32, torch.bfloat16)):
        states.append([[s.to(dtype)] for s in start])
        rounding = NoiseKey.of(6, 7, PURPOSE, 5) if dtype == torch.bfloat16 else None
        ops.update_(Layout([theta]), rule, TERMS, numbers_of(rule, 2), states[-1], state_rounding=rounding)
    assert torch.equal(*thetas)
    for (exact,), (rounded,) in zip(*states):
        unit = 2.0 ** (exact.abs().log2().floor() - 7)  # between neighbours
        error = (rounded.float() - exact) / unit
        assert error.abs().max() < 1
        assert error.mean().abs() < STOCHASTIC / 9001**0.5
    assert not torch.equal(states[1][0][0], states[0][0][0].bfloat16())


def test_each_state_is_rounded_with_bits_of_its_own(backend):
    """m of momentum and m of adam, both g / 3 rounded: the slot numbers the bits, and so does the probe of the key."""
    layout = Layout([torch.zeros(5000)])
    terms, key = [(NoiseKey(1), 1 / 3)], NoiseKey.of(0, 0, PURPOSE, 1)
    same = (0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0)
    rounded = {}
    for probe in (1, 2):
        state = zeros_like(layout, "adam", torch.bfloat16)
        ops.update_(layout, "adam", terms, same, state, state_rounding=NoiseKey.of(0, 0, PURPOSE, probe))
        rounded[probe] = state
    g = torch.from_numpy(reference.fma(torch.tensor(1 / 3).numpy(), reference.normal(NoiseKey(1), 0, 5000), torch.zeros(5000).numpy()))
    for probe in (1, 2):
        for slot, exact in enumerate((g, g * g)):
            r = reference.random_halves(NoiseKey.of(key.seed, key.step, PURPOSE, probe + min(slot, 1)), 0, 5000)
            bits = reference.stochastic_bfloat16(exact.numpy(), r)
            assert torch.equal(rounded[probe][slot][0].view(torch.int16), torch.from_numpy(bits).view(torch.int16))


@pytest.mark.parametrize("rounding", ["stochastic", NoiseKey.of(9, 9, PURPOSE, 7)], ids=["stochastic", "a key"])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_theta_is_the_float32_theta_rounded_by_its_key(backend, dtype, rule, state_dtype, rounding):
    """The key is that of the first term of g, whatever is pending; the states are the same; float32 is stored as it is."""
    start = torch.rand(5003).add(1).to(dtype)
    thetas, states = [start.float(), start.clone()], []
    for theta, how in zip(thetas, ("nearest", rounding)):
        states.append(
            [[torch.rand(5003, generator=torch.Generator().manual_seed(s)).to(state_dtype)] for s in range(len(RULES[rule].state))]
        )
        key = NoiseKey.of(6, 7, PURPOSE) if states[-1] and state_dtype == torch.bfloat16 else None
        ops.update_(Layout([theta], [0.5]), rule, TERMS, numbers_of(rule, 2), states[-1], PENDING, 0.9, key, how)
    exact, rounded = thetas
    if dtype != torch.float32:
        key = rounding if isinstance(rounding, NoiseKey) else NoiseKey.of(4, 2, PURPOSE, WEIGHTS)  # TERMS[0] is of (4, 2)
        at_random = {torch.bfloat16: reference.stochastic_bfloat16, torch.float16: reference.stochastic_float16}[dtype]
        exact = torch.from_numpy(at_random(exact.numpy(), reference.random_halves(key, 0, 5003))).view(dtype)
        assert not torch.equal(rounded, thetas[0].to(dtype))
    assert torch.equal(exact, rounded)
    for (a,), (b,) in zip(*states):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", ["sign", "momentum", "adam"])
def test_small_updates_arrive_on_average(rule):
    """1e-6 z, or its sign, into weights of size 0.02 in bfloat16, which are some 1e-4 apart: nearest, most of it is lost."""
    n, size, key = 1 << 22, 1e-6, NoiseKey(8, 3)
    start = (torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    z = ops.make_noise(key, 0, n)
    numbers = {"sign": (-size,), "momentum": (-size, 0.0), "adam": (-size, 0.0, 1.0, 0.0, 1.0, 1.0, 1e-8)}[rule]
    asked = -size * (z if rule == "momentum" else z.sign())
    along = lambda moved: float((moved * asked).sum(dtype=torch.float64) / (asked**2).sum(dtype=torch.float64))  # noqa: E731
    delivered = {}
    for how in ("nearest", "stochastic"):
        theta = start.clone()
        layout = Layout([theta])
        ops.update_(layout, rule, [(key, 1.0)], numbers, zeros_like(layout, rule), rounding=how)
        delivered[how] = along(theta.float() - start)
    # An element between two neighbours h apart, at the share f of the way, goes up with probability f: its variance is h^2 f (1 - f).
    bits = (start.float() + asked).view(torch.int32)
    f, h = (bits & 0xFFFF) / 2.0**16, (((bits >> 16) + 1) << 16).view(torch.float32) - (bits >> 16 << 16).view(torch.float32)
    error = float((asked**2 * h**2 * f * (1 - f)).sum(dtype=torch.float64).sqrt() / (asked**2).sum(dtype=torch.float64))
    assert error < 0.006 and abs(delivered["stochastic"] - 1) < 4 * error
    assert delivered["nearest"] < 0.1


STRIDED = {
    "transposed": lambda dtype: torch.zeros(30, 70, dtype=dtype).t(),
    "columns": lambda dtype: torch.zeros(51, 64, dtype=dtype)[:, 3:40],
    "long rows": lambda dtype: torch.zeros(1501, 3, dtype=dtype).t(),
    "one long row": lambda dtype: torch.zeros(3001, dtype=dtype)[::2],
}


@pytest.mark.parametrize(
    "dtype, state_dtype", [*product(DTYPES[:1], DTYPES[:2]), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)]
)
@pytest.mark.parametrize("make", STRIDED.values(), ids=STRIDED)
def test_strides_change_nothing(make, dtype, state_dtype, monkeypatch):
    monkeypatch.setattr("zokern.ops.staging.PIECE", 701)
    results = []
    for theta in (make(dtype), torch.zeros(make(dtype).shape, dtype=dtype)):
        layout = Layout([torch.zeros(7), theta], keep=[1.0, 0.5])
        state = zeros_like(layout, "adam", state_dtype)
        if not theta.is_contiguous():
            state[1][1] = make(state_dtype)
        rounding = NoiseKey.of(0, 0, PURPOSE) if state_dtype == torch.bfloat16 else None
        ops.update_(layout, "adam", TERMS, numbers_of("adam", 1), state, PENDING, state_rounding=rounding, rounding="stochastic")
        results.append([theta, *(slot[1] for slot in state)])
    assert not results[0][0].is_contiguous() and results[1][0].is_contiguous()
    for strided, plain in zip(*results):
        assert torch.equal(strided, plain) and plain.count_nonzero() > 0.4 * plain.numel()


def test_numbers_and_coefficients_of_every_kind_agree(backend):
    results = []
    for kind in (float, torch.tensor, lambda v: torch.tensor([v, v], dtype=torch.float64)):
        a, b = torch.ones(5), torch.ones(3)
        layout = Layout([{"params": [a]}, {"params": [b]}])
        numbers = [kind(v) for v in numbers_of("adam", 1)]
        ops.update_(layout, "adam", [(NoiseKey(0), kind(0.5))], numbers, zeros_like(layout, "adam"), [(NoiseKey(0), kind(0.25))], kind(0.5))
        results.append(torch.cat([a, b]))
    assert all(torch.equal(r, results[0]) for r in results)


def test_numbers_and_coefficients_of_each_group(backend, explicit):
    params = [torch.ones(5), torch.ones(3), torch.ones(2)]
    layout = Layout([{"params": params[:2]}, {"params": params[2:]}])
    c, lr, decay = torch.tensor([0.25, -4.0]), torch.tensor([-0.5, -0.25]), torch.tensor([0.5, 2.0])
    ops.update_(layout, "sign", [(NoiseKey(3), c)], [lr], decay=decay)
    for p, group, z in zip(params, layout.group, explicit(NoiseKey(3), layout)):
        torch.testing.assert_close(p.double(), decay[group] + lr[group] * (c[group] * z).sign(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_without_terms_the_gradient_is_zero(backend, rule):
    layout = Layout([torch.full((9,), 2.0)])
    state = zeros_like(layout, rule)
    ops.update_(layout, rule, [], numbers_of(rule, 1), state, decay=0.5)
    assert torch.equal(layout.params[0], torch.ones(9)) and not any(slot[0].any() for slot in state)


def test_terms_of_one_key_add_up(backend):
    a, b = (Layout([torch.zeros(99)]) for _ in range(2))
    ops.update_(a, "momentum", [(NoiseKey(1), 0.5), (NoiseKey(1), 0.25)], (1.0, 0.0), zeros_like(a, "momentum"))
    ops.update_(b, "momentum", [(NoiseKey(1), 0.75)], (1.0, 0.0), zeros_like(b, "momentum"))
    assert torch.equal(a.params[0], b.params[0])


def test_state_that_moves_is_found_again(backend):
    layout = Layout([torch.zeros(9)])
    state = zeros_like(layout, "momentum")
    for step in (0, 1):
        ops.update_(layout, "momentum", [(NoiseKey(step), 1.0)], (1.0, 1.0), state)
        state = [[tensor.clone() for tensor in slot] for slot in state]
    z = reference.normal(NoiseKey(0), 0, 9) + reference.normal(NoiseKey(1), 0, 9)
    torch.testing.assert_close(state[0][0], torch.from_numpy(z))


GOOD = {"rule": "adam", "terms": TERMS, "numbers": numbers_of("adam", 1)}
ROUND = NoiseKey.of(0, 0, PURPOSE)


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ({"rule": "adamw"}, ValueError, "rule='adamw' is unknown: pass one of 'sign', 'momentum', 'adam', 'amsgrad'"),
        ({"numbers": (1.0,)}, ValueError, "numbers has 1 values: pass the 7 of 'adam': -lr / bc1"),
        ({"numbers": ("1",) * 7}, TypeError, r"numbers\[0\] \(-lr / bc1\) is '1'"),
        ({"terms": [("key", 1.0)]}, TypeError, r"terms\[0\] has the key 'key'"),
        ({"pending": [(NoiseKey(0), torch.ones(3))]}, ValueError, r"coefficient of pending\[0\] has shape \(3,\)"),
        ({"decay": torch.ones(2, 1)}, ValueError, r"decay has shape \(2, 1\)"),
        ({"state": lambda make: make()[:1]}, ValueError, "state has 1 entries, the rule 'adam' keeps 2: pass one list .* m, v"),
        ({"state": lambda make: [make()[0], []]}, ValueError, "state 'v' has 0 tensors: pass one for each of the 2 parameters"),
        ({"state": lambda make: [[torch.zeros(3), torch.zeros(4)]] * 2}, ValueError, r"state 'm'\[1\] has shape \(4,\)"),
        ({"state": lambda make: [[torch.zeros(3), torch.zeros(6)[::2]]] * 2}, ValueError, r"state 'm'\[1\] .*strides \(2,\)"),
        ({"state": lambda make: make(torch.float16)}, TypeError, r"state 'm'\[0\] is torch.float16: pass all of it in float32, or"),
        ({"state": lambda make: [make()[0], make(torch.bfloat16)[1]]}, TypeError, r"state 'v'\[0\] is torch.bfloat16"),
        (
            {"state": lambda make: make(torch.bfloat16)},
            ValueError,
            r"state_rounding=None: bfloat16 state needs .*NoiseKey.of\(seed, step, 3\)",
        ),
        ({"state": lambda make: make(torch.bfloat16), "state_rounding": NoiseKey(0)}, ValueError, r"state_rounding=NoiseKey\("),
        ({"state_rounding": ROUND}, ValueError, "state_rounding=.* but no state is in bfloat16: leave it out"),
        ({"rounding": "up"}, ValueError, "^rounding='up': pass 'nearest', 'stochastic' or a key"),
        ({"rounding": NoiseKey(1)}, ValueError, r"^rounding=NoiseKey\(seed=1, step=0, stream=0\): pass 'nearest'"),
        ({"terms": [], "pending": PENDING, "rounding": "stochastic"}, ValueError, "^rounding='stochastic' without a term"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(bad, error, message):
    layout = Layout([torch.ones(3), torch.ones(3)])
    make = lambda dtype=torch.float32: zeros_like(layout, "adam", dtype)  # noqa: E731
    arguments = {**GOOD, "state": lambda make: make(), **bad}
    arguments["state"] = arguments["state"](make)
    with pytest.raises(error, match=message):
        ops.update_(layout, **arguments)
    assert all(torch.equal(p, torch.ones(3)) for p in layout.params)


def test_autograd_notices_that_weights_changed():
    theta = torch.ones(3, requires_grad=True)
    loss = (theta * theta).sum()
    ops.update_(Layout([theta]), "sign", [], (1.0,))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
