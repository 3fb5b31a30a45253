"""The GPU kernels launched once or twice, for tools that look into a launch: small ones for compute-sanitizer, large ones for ncu.

compute-sanitizer python -m bench.launches
ncu --profile-from-start off python -m bench.launches --profile 30
"""

import argparse
import sys
from itertools import product

import torch

import zokern
from zokern.kernels.passes import RULES
from zokern.noise.spec import PERTURBATION, ROUNDING, SIGNS

from .models import DTYPES
from .oracle import CHECK, EPS, check

SIZES = (1, 3, 4096, 9001)  # elements: less than a vector, a whole tile, tiles with a ragged end
MOST_SLOTS = max(len(rule.state) for rule in RULES.values())
NUMBERS = (-EPS, 0.9, 0.1, 0.99, 0.01, 1.5, 1e-8)
SHARED = ("bf16",)  # what Triton, whose kernels compile for seconds each, is asked for


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.launches", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--profile", type=int, metavar="E", help="add_noise_ with one term and two, and Adam, bf16, 2^E elements")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.profile is not None:
        profile(1 << arguments.profile, device)
        return 0
    for name, status in zokern.backends().items():
        if name != "reference" and status.startswith("available") and device.type in zokern.kernels._module(name).devices():
            with zokern.use_backend(name):
                for dtype in DTYPES if name != "triton" else SHARED:
                    every(DTYPES[dtype], device, brief=name == "triton")
            print(f"{name}: {status}: every kernel launched")
    return 0


def profile(n, device):
    """Each once to compile and to make its table, and once more for the profiler."""
    theta = torch.randn(n, dtype=torch.bfloat16, device=device).mul_(0.02)
    layout, state = zokern.Layout([theta]), [[torch.zeros_like(theta)] for _ in "mv"]
    calls = [
        lambda terms=terms: zokern.ops.add_noise_(layout, terms) for terms in ([(CHECK, EPS)], [(CHECK, EPS), (zokern.NoiseKey(1), EPS)])
    ]
    check(theta, 0, [(CHECK, EPS)], calls[0])
    calls.append(lambda: zokern.ops.update_(layout, "adam", [(CHECK, 1.0)], NUMBERS, state, state_rounding=rounding(0)))
    for call in calls:
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for call in calls:
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def every(dtype, device, brief):
    """Tensors of all sizes in one launch, aligned and not, and lines of a larger one; normals and signs, all of them and a part; in place
    and elsewhere; ``brief``: one kind of each kernel."""
    stored = [dtype] if brief or dtype != torch.float32 else list(DTYPES.values())
    for keep, purpose in ((1.0, PERTURBATION),) if brief else product((1.0, 0.5), (PERTURBATION, SIGNS)):
        tensors = [torch.zeros(n + shift, dtype=dtype, device=device)[shift:] for n in SIZES for shift in (0, 1)]
        tensors += [torch.zeros(9, 648, dtype=dtype, device=device)[:, shift : 520 + shift] for shift in (0, 1)]
        layout = zokern.Layout(tensors, keep=[keep] * len(tensors))
        plain = zokern.Layout(tensors[:-2], keep=[keep] * (len(tensors) - 2))  # tables without lines have kernels of their own
        written = {to: [torch.empty(t.shape, dtype=to, device=device) for t in tensors] for to in stored}
        kinds = (torch.bfloat16,) if brief else (torch.float32, torch.bfloat16)
        states = {kind: [[torch.zeros(t.shape, dtype=kind, device=device) for t in tensors] for _ in range(MOST_SLOTS)] for kind in kinds}
        for count in (1,) if brief else (1, 2, 9):
            terms = [(zokern.NoiseKey.of(1, step, purpose), EPS) for step in range(count)]
            for decay in (1.0,) if brief else (1.0, 0.9):
                for each in (layout, plain):
                    zokern.ops.add_noise_(each, terms, decay)
                    zokern.ops.replay_(each, [(terms, decay), (terms, 1.0)])
                    for to in stored:
                        for how in ("nearest", "stochastic"):
                            zokern.ops.add_noise_(each, terms, decay, written[to][: len(each.params)], how)
            for rule in ("adam",) if brief else RULES:
                for kind in kinds:
                    slots = RULES[rule].state
                    state = states[kind][: len(slots)]
                    rounded = rounding(count) if slots and kind == torch.bfloat16 else None
                    numbers = NUMBERS[: len(RULES[rule].numbers)]
                    for how in ("nearest", "stochastic"):
                        zokern.ops.update_(layout, rule, terms, numbers, state, terms[:1], 1.0, rounded, how)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if not all(bool(t.isfinite().all()) for t in tensors):
            raise RuntimeError(f"{dtype}, keep={keep}: what was added to zeros is not finite")


def rounding(step):
    return zokern.NoiseKey.of(2, step, ROUNDING)


if __name__ == "__main__":
    sys.exit(main())
