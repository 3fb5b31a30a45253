"""Suite ``kernels``: theta <- theta + sum_k c_k z(key_k) on one tensor, against what one writes without zokern."""

import itertools

import torch

import zokern
from zokern.kernels import backend_for
from zokern.layout import Table

from . import clock, record
from .cases import DTYPES, Kernel
from .oracle import CHECK, EPS, check
from .timing import Device, Samples, Wall, interleave

OURS, TORCH, LITERAL = "zokern", "torch.normal + add_", "MeZO line"
TRITON, RANDN4X = "zokern, triton", "tl.randn4x"  # on a GPU: the other backend, and a fused kernel of Triton's own normals
FLOOR = {"cpu": "mul_", "cuda": "copy"}
# Reads and writes of n elements: (for each term, for the whole call).
PASSES = {OURS: (0, 2), TRITON: (0, 2), RANDN4X: (2, 0), TORCH: (4, 0), LITERAL: (8, 0), "mul_": (0, 2), "copy": (0, 2)}
SWEEPS = 8  # passes in one call of the in-L2 case, so that the call itself weighs little


def measure(case: Kernel, device) -> list[dict]:
    """Check, then time. -> records, one a candidate.

    Raises:
        Refused: the check failed.
    """
    torch.set_num_threads(case.threads)
    terms = [(zokern.NoiseKey(CHECK.seed, step), EPS * (1 + step / 4)) for step in range(case.terms)]
    tensors = arena(case.n, DTYPES[case.dtype], device)
    calls = {
        OURS: [sweeps(t, terms) if case.in_l2 else one_pass(t, terms) for t in tensors],
        TORCH: [normal_add(t, terms) for t in tensors],
        LITERAL: [literal(t, terms) for t in tensors],
        FLOOR[device.type]: [floor(t) for t in tensors],
    }
    if device.type == "cuda":
        calls |= {RANDN4X: [randn4x(t, terms) for t in tensors]}
        if backend_for(device).__name__ != "zokern.kernels.triton":
            calls |= {TRITON: [with_triton(one_pass(t, terms)) for t in tensors]}
            check(tensors[0], 0, terms, calls[TRITON][0])
    check(tensors[0], 0, terms * SWEEPS if case.in_l2 else terms, calls[OURS][0])
    if len(tensors) > 1:  # each tensor's first call makes its table, or its memory: not to be timed
        for call in itertools.chain(*calls.values()):
            call()
    candidates = {name: in_turn(each) for name, each in calls.items()}
    if case.in_l2 and clock.chain():
        candidates["clock"] = clock.chain()
    timer = Device() if device.type == "cuda" else Wall(device)
    samples = interleave(candidates, timer, case.budget)
    ticks = samples.pop("clock", None)
    if case.in_l2:
        samples[OURS] = Samples(tuple(s / SWEEPS for s in samples[OURS].seconds))

    def describe(name):
        seconds = samples[name].median
        fields = {
            "suite": "kernels",
            "op": "add_noise_ in L2" if case.in_l2 else "add_noise_",
            **(record.backend(device, name == OURS) | ({"backend": "triton", "isa": None} if name in (TRITON, RANDN4X) else {})),
            "dtype": case.dtype,
            "n": case.n,
            "terms": case.terms,
            "threads": case.threads,
            "timer": timer.name,
            "ns_per_element": seconds / case.n * 1e9,
            "gb_per_s": counted_bytes(name, case) / seconds * 1e-9,
        }
        if ticks:  # from medians, and from the fastest round of each
            fields["clock_ghz"] = clock.CYCLES / ticks.median * 1e-9
            fields["cycles_per_element"] = seconds / ticks.median * clock.CYCLES / case.n
            fields["cycles_per_element_min"] = samples[name].min / ticks.min * clock.CYCLES / case.n
        return fields

    return record.lines(device, samples, FLOOR[device.type], TORCH, describe)


def counted_bytes(name, case) -> int:
    each, whole = PASSES[name]
    return (each * case.terms + whole) * case.n * DTYPES[case.dtype].itemsize


def arena(n, dtype, device) -> list[torch.Tensor]:
    """Tensors of n elements: on a GPU so many that a round through them leaves nothing in L2 for the next."""
    many = 1
    if device.type == "cuda":
        many = max(1, 4 * torch.cuda.get_device_properties(device).L2_cache_size // (n * dtype.itemsize))
    return list(torch.randn(many * n, dtype=dtype, device=device).mul_(0.02).split(n))


def in_turn(calls):
    """One call that makes the next of the calls each time."""
    following = itertools.cycle(calls)
    return lambda: next(following)()


def one_pass(theta, terms):
    layout = zokern.Layout([theta])
    return lambda: zokern.ops.add_noise_(layout, terms)


def sweeps(theta, terms):
    """The backend's own call, told of the same tensor SWEEPS times."""
    (table,), _ = zokern.Layout([theta]).tables()
    table = Table(table.dtype, table.device, 1, table.rows.repeat(SWEEPS, 1))
    keys, coefficients = [key for key, _ in terms], torch.tensor([[c] for _, c in terms])
    return lambda: backend_for(theta.device).add_noise_(table, keys, coefficients, None)


def normal_add(theta, terms):
    def call():
        for _, c in terms:
            z = torch.normal(0.0, 1.0, theta.shape, dtype=theta.dtype, device=theta.device)
            theta.add_(z, alpha=c)

    return call


def literal(theta, terms):
    """As MeZO's users have it: every operation makes a new tensor, the parameter's own among them."""
    p, scaling_factor = torch.nn.Parameter(theta, requires_grad=False), 1

    def call():
        for _, eps in terms:
            z = torch.normal(mean=0, std=1, size=p.data.size(), dtype=p.data.dtype, device=p.data.device)
            p.data = p.data + scaling_factor * z * eps

    return call


def with_triton(call):
    def forced():
        with zokern.use_backend("triton"):
            call()

    return forced


def randn4x(theta, terms):
    from . import randn4x as baseline  # which needs Triton

    def call():
        for key, c in terms:
            baseline.add(theta, key.step, c)

    return call


def floor(theta):
    """One read and one write of as many bytes: the fastest that any pass in place can be."""
    if theta.device.type == "cpu":
        return lambda: theta.mul_(1.0)
    other = torch.empty_like(theta)
    return lambda: other.copy_(theta)
