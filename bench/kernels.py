"""Suite ``kernels``: theta <- theta + sum_k c_k z(key_k) on one tensor or a model's, against what one writes without zokern."""

import itertools
import sys

import torch

import zokern
from zokern.kernels import backend_for
from zokern.kernels.tables import Table

from . import clock, models, record
from .cases import Kernel
from .models import DTYPES
from .oracle import CHECK, EPS, check
from .timing import Device, Samples, Wall, host_seconds, interleave, warmed

OURS, TORCH, FOREACH, LITERAL = "zokern", "torch.normal + add_", "torch.normal + _foreach_add_", "MeZO line"
# On a GPU: the other backend; a fused kernel of Triton's own normals, four of each Philox block or one; float32 normals, nothing added.
TRITON, RANDN4X, RANDN, CURAND = "zokern, triton", "tl.randn4x", "tl.randn", "cuRAND, generated only"
FLOOR = {"cpu": "mul_", "cuda": "copy"}
# Reads and writes of n elements: (for each term, for the whole call).
PASSES = {OURS: (0, 2), TRITON: (0, 2), RANDN4X: (2, 0), RANDN: (2, 0), TORCH: (4, 0), FOREACH: (4, 0), LITERAL: (8, 0)}
PASSES |= {"mul_": (0, 2), "copy": (0, 2)}
SWEEPS = 8  # passes in one call of the in-L2 case, so that the call itself weighs little


def measure(case: Kernel, device) -> list[dict]:
    """Check, then time. -> records, one a candidate.

    Raises:
        Refused: the check failed.
    """
    torch.set_num_threads(case.threads)
    terms = [(zokern.NoiseKey(CHECK.seed, step), EPS * (1 + step / 4)) for step in range(case.terms)]
    sets = arena(case, device)  # each one: what a pass goes over
    n = sum(t.numel() for t in sets[0])
    calls = {
        OURS: [sweeps(s, terms) if case.in_l2 else one_pass(s, terms) for s in sets],
        TORCH: [normal_add(s, terms) for s in sets],
        FLOOR[device.type]: [floor(s) for s in sets],
        LITERAL: [literal(s, terms) for s in sets],
    }
    if case.model:
        calls |= {FOREACH: [foreach(s, terms) for s in sets]}
    last, first = sets[0][-1], zokern.Layout(sets[0]).first[-1]
    check(last, first, terms * SWEEPS if case.in_l2 else terms, calls[OURS][0])
    if device.type == "cuda":
        calls |= {RANDN4X: [fused(s, terms, "add_four") for s in sets], RANDN: [fused(s, terms, "add_one") for s in sets]}
        if backend_for(device).__name__ != "zokern.kernels.triton":
            calls |= {TRITON: [with_triton(one_pass(s, terms)) for s in sets]}
        if not case.model and (generate := curand(n, case.terms, device)):
            calls |= {CURAND: [generate]}
    first_calls = {name: lambda each=each: [call() for call in each] for name, each in calls.items()}
    if TRITON in calls:
        first_calls[TRITON] = lambda: [check(last, first, terms, calls[TRITON][0]), *(call() for call in calls[TRITON][1:])]
    # Each one's first call makes its table, or its memory: not to be timed.
    run, without = warmed(first_calls, (OURS, TORCH, FLOOR[device.type]), record.reason)
    candidates = {name: in_turn(calls[name]) for name in run}
    if case.in_l2 and clock.chain():
        candidates["clock"] = clock.chain()
    timer = Device() if device.type == "cuda" else Wall(device)
    samples = interleave(candidates, timer, case.budget)
    ticks = samples.pop("clock", None)
    if case.in_l2:
        samples[OURS] = Samples(tuple(s / SWEEPS for s in samples[OURS].seconds), samples[OURS].late)
    hosts = {name: host_seconds(candidates[name]) for name in candidates if name != TRITON} if case.model and device.type == "cuda" else {}

    def describe(name):
        seconds = samples[name].median
        fields = {
            "suite": "kernels",
            "op": "add_noise_ in L2" if case.in_l2 else f"add_noise_, {case.model}" if case.model else "add_noise_",
            **(record.backend(device, name == OURS) | ({"backend": "triton", "isa": None} if name in (TRITON, RANDN4X, RANDN) else {})),
            "dtype": case.dtype,
            "n": n,
            "tensors": len(sets[0]),
            "terms": case.terms,
            "threads": case.threads,
            "timer": timer.name,
            "ns_per_element": seconds / n * 1e9,
            "gb_per_s": counted_bytes(name, case, n) / seconds * 1e-9,
            "host_s": hosts.get(name),  # until the call returns: what a GPU's work must hide
        }
        if ticks:  # from medians, and from the fastest round of each
            fields["clock_ghz"] = clock.CYCLES / ticks.median * 1e-9
            fields["cycles_per_element"] = seconds / ticks.median * clock.CYCLES / n
            fields["cycles_per_element_min"] = samples[name].min / ticks.min * clock.CYCLES / n
        return fields

    lost = [record.failed("kernels", case, reason, device, name) for name, reason in without.items()]
    return record.lines(device, samples, FLOOR[device.type], TORCH, describe) + lost


def counted_bytes(name, case, n) -> int:
    if name == CURAND:
        return case.terms * n * torch.float32.itemsize
    each, whole = PASSES[name]
    return (each * case.terms + whole) * n * DTYPES[case.dtype].itemsize


def arena(case, device) -> list[list[torch.Tensor]]:
    """Sets of tensors: on a GPU so many that a round through them leaves nothing in L2 for the next."""
    shapes = models.shapes(case.model) if case.model else [(case.n,)]
    dtype, n, many = DTYPES[case.dtype], sum(map(torch.Size.numel, map(torch.Size, shapes))), 1
    if device.type == "cuda":
        many = max(1, 4 * torch.cuda.get_device_properties(device).L2_cache_size // (n * dtype.itemsize))
    if case.model:
        return [[torch.randn(shape, dtype=dtype, device=device).mul_(0.02) for shape in shapes] for _ in range(many)]
    return [[t] for t in torch.randn(many * n, dtype=dtype, device=device).mul_(0.02).split(n)]


def in_turn(calls):
    """One call that makes the next of the calls each time."""
    following = itertools.cycle(calls)
    return lambda: next(following)()


def one_pass(thetas, terms):
    layout = zokern.Layout(thetas)
    return lambda: zokern.ops.add_noise_(layout, terms)


def sweeps(thetas, terms):
    """The backend's own call, told of the same tensor SWEEPS times."""
    (table,), _ = zokern.Layout(thetas).tables()
    table = Table(table.dtype, table.device, 1, table.rows.repeat(SWEEPS, 1))
    keys, coefficients = [key for key, _ in terms], torch.tensor([[c] for _, c in terms])
    return lambda: backend_for(thetas[0].device).add_noise_(table, keys, coefficients, None)


def normal(theta):
    return torch.normal(0.0, 1.0, theta.shape, dtype=theta.dtype, device=theta.device)


def normal_add(thetas, terms):
    def call():
        for _, c in terms:
            for theta in thetas:
                theta.add_(normal(theta), alpha=c)

    return call


def foreach(thetas, terms):
    """All of z at once, as large as the model, for one call that adds it."""

    def call():
        for _, c in terms:
            torch._foreach_add_(thetas, [normal(theta) for theta in thetas], alpha=c)

    return call


def literal(thetas, terms):
    """As MeZO's users have it: every operation makes a new tensor, the parameter's own among them."""
    params, scaling_factor = [torch.nn.Parameter(theta, requires_grad=False) for theta in thetas], 1

    def call():
        for _, eps in terms:
            for p in params:
                z = torch.normal(mean=0, std=1, size=p.data.size(), dtype=p.data.dtype, device=p.data.device)
                p.data = p.data + scaling_factor * z * eps

    return call


def with_triton(call):
    def forced():
        with zokern.use_backend("triton"):
            call()

    return forced


def fused(thetas, terms, kernel):
    def call():
        from . import normals  # which needs Triton

        for key, c in terms:
            for theta in thetas:
                normals.add(theta, key.step, c, getattr(normals, kernel))

    return call


def curand(n, terms, device):
    """A call that writes the normals of all terms to memory, one term over the other, by cuRAND's Philox; None where there is no cupy,
    with the reason printed."""
    try:
        import cupy  # noqa: F401 (which finds cuRAND's library)
        from cupy_backends.cuda.libs import curand

        generator = curand.createGenerator(curand.CURAND_RNG_PSEUDO_PHILOX4_32_10)
        curand.setPseudoRandomGeneratorSeed(generator, CHECK.seed)
        curand.setStream(generator, torch.cuda.current_stream(device).cuda_stream)
        z = torch.empty(n + n % 2, device=device)
        curand.generateNormal(generator, z.data_ptr(), len(z), 0.0, 1.0)
        if abs(float(z[: 1 << 20].std()) - 1) > 0.1:
            raise RuntimeError("its normals have another deviation than 1")
    except Exception as error:
        print(f"bench: without cuRAND's normals: {record.reason(error)}", file=sys.stderr)
        return None

    def call():
        for _ in range(terms):
            curand.generateNormal(generator, z.data_ptr(), len(z), 0.0, 1.0)

    return call


def floor(thetas):
    """One read and one write of as many bytes: the fastest that any pass in place can be."""
    if thetas[0].device.type == "cpu":
        return lambda: [theta.mul_(1.0) for theta in thetas]
    others = [torch.empty_like(theta) for theta in thetas]
    if len(thetas) == 1:
        return lambda: others[0].copy_(thetas[0])
    return lambda: torch._foreach_copy_(others, thetas)
