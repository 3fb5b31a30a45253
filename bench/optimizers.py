"""Suite ``optimizers``: what an optimizer's own part of a step costs, the model's forward passes taken out.

The closure gives losses that are known beforehand, so that a whole step is the optimizer's own part: every pass over the weights
and the states. Beside it the same rule with z in memory.
"""

import gc
import itertools
from dataclasses import dataclass, field
from functools import partial

import torch

import zokern
from zokern.layout import keep_threshold
from zokern.noise.reference import masked_noise

from . import materialised as by_hand
from . import record
from .cases import OwnPart
from .materialised import BETAS, DELTA, LR, MOMENTUM
from .models import DTYPES, shapes
from .oracle import EPS, SLICE, Refused, looked_at
from .timing import Wall, interleave

MATERIALISED, FUSED, FLOOR = "z in memory", "torch.normal + Adam(fused=True)", "mul_"
SIGMA = 0.02  # of the weights
CHECKED = 4  # steps


@dataclass(frozen=True)
class Own:
    """zokern's optimizers by name, and the same rules by hand.

    Attributes:
        steps: of one call that is timed: a whole cycle of the rule.
        beside: others of zokern's by name, timed in the same run, each with the rule by hand that it is checked against.
        begun: steps that are taken before any is timed: windows are full then.
    """

    ours: dict
    theirs: dict
    steps: int = 1
    beside: dict = field(default_factory=dict)
    begun: int = 0

    @property
    def pairs(self):
        """(zokern's, by hand) of all that must lead to the same weights."""
        return [*itertools.product(self.ours.values(), self.theirs.values()), *self.beside.values()]


def thirds(params):
    params = list(params)
    a, b = len(params) // 3, 2 * len(params) // 3
    return [params[:a], params[a:b], params[b:]]


def block_wise(params):
    return zokern.MeZO(params, lr=LR, eps=EPS, blocks=thirds(params))


def of(optimizer, **settings):
    return partial(optimizer, lr=LR, eps=EPS, **settings)


def window(history):
    return of(zokern.AdaMeZO, history=history, betas=BETAS, delta=DELTA), partial(by_hand.Window, history=history)


svrg = partial(of, zokern.MeZOSVRG, lr_full=LR, q=2)
adam = {MATERIALISED: by_hand.Adam, FUSED: by_hand.FusedAdam}
OPTIMIZERS = {
    "MeZO": Own({"zokern.MeZO": of(zokern.MeZO)}, {MATERIALISED: by_hand.MeZO}),
    "MeZO, q=4": Own({"zokern.MeZO": of(zokern.MeZO, q=4)}, {MATERIALISED: by_hand.Queries}),
    "MeZO, half masked": Own({"zokern.MeZO": of(zokern.MeZO, sparsity=0.5)}, {MATERIALISED: by_hand.Sparse}),
    "MeZO, 3 blocks": Own({"zokern.MeZO": block_wise}, {MATERIALISED: by_hand.BlockWise}),
    "ZOSign": Own({"zokern.ZOSign": of(zokern.ZOSign)}, {MATERIALISED: by_hand.Sign}),
    "ZOMomentum": Own({"zokern.ZOMomentum": of(zokern.ZOMomentum, momentum=MOMENTUM)}, {MATERIALISED: by_hand.Momentum}),
    "ZOAdam": Own({"zokern.ZOAdam": of(zokern.ZOAdam, betas=BETAS, delta=DELTA)}, adam),
    "AdaMeZO": Own(
        {"zokern.AdaMeZO, history=20": window(20)[0]},
        {MATERIALISED: window(20)[1]},
        beside={
            "zokern.MeZO": (of(zokern.MeZO), by_hand.MeZO),
            "zokern.ZOAdam": (of(zokern.ZOAdam, betas=BETAS, delta=DELTA), by_hand.Adam),
            **{f"zokern.AdaMeZO, history={history}": window(history) for history in (1, 10, 50)},
        },
        begun=50,
    ),
    "ZOConservative": Own({"zokern.ZOConservative": of(zokern.ZOConservative)}, {MATERIALISED: by_hand.Conservative}),
    "MeZOSVRG": Own(
        {"zokern.MeZOSVRG, copy": svrg(anchor="copy"), "zokern.MeZOSVRG, replay": svrg(anchor="replay")},
        {MATERIALISED: by_hand.SVRG},
        steps=2,
    ),
}


class Losses:
    """A closure that costs nothing: known losses in a known order. Their number is prime, so that no rule sees them in step."""

    def __init__(self):
        values = 1 + EPS * torch.randn(97, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.values = itertools.cycle(values.unbind())

    def __call__(self):
        return next(self.values)


def stepper(optimizer, steps=1):
    """A call that takes steps, each of an optimizer that asks for nothing but losses."""
    losses = Losses()
    closures = (losses, losses) if isinstance(optimizer, zokern.MeZOSVRG) else (losses,)

    def call():
        for _ in range(steps):
            optimizer.step(*closures)

    return call


def measure(case: OwnPart, device) -> list[dict]:
    """Check, then time. -> records, one a candidate.

    Raises:
        Refused: steps have done something else than explicit z says.
    """
    torch.set_num_threads(case.threads)
    own, sizes = OPTIMIZERS[case.optimizer], shapes(case.model)
    layout, optimizers = None, {}
    for ours, theirs in own.pairs:
        check(ours, theirs, weights(sizes, case.dtype, device))
        gc.collect()  # of a billion weights and their states the GPU has no room for many
    zokerns = own.ours | {name: ours for name, (ours, _) in own.beside.items()}
    for name, ours in zokerns.items():
        optimizers[name] = ours(weights(sizes, case.dtype, device))
        layout = optimizers[name].layout
    for name, theirs in own.theirs.items():
        optimizers[name] = theirs(weights(sizes, case.dtype, device), layout.keep, layout.block)
    for optimizer in optimizers.values():
        stepper(optimizer, own.begun)()
    candidates = {name: stepper(optimizer, own.steps) for name, optimizer in optimizers.items()}
    floor = weights(sizes, case.dtype, device)
    candidates[FLOOR] = lambda: [p.data.mul_(1) for p in floor]
    samples = interleave(candidates, timer := Wall(device), case.budget)
    n = sum(p.numel() for p in floor)

    def describe(name):
        steps = 1 if name == FLOOR else own.steps
        return {
            "suite": "optimizers",
            "op": case.optimizer,
            **record.backend(device, name in zokerns),
            "dtype": case.dtype,
            "n": n,
            "threads": case.threads,
            "timer": timer.name,
            "model": case.model,
            "steps": steps,
            "step_s": samples[name].median / steps,
            "ns_per_element": samples[name].median / steps / n * 1e9,
            "weights_bytes": n * floor[0].element_size(),
            "state_bytes": None if name == FLOOR else state_bytes(optimizers[name]),
            **({"speedup": None} if name in own.beside else {}),  # over another rule it says nothing
        }

    return record.lines(device, samples, FLOOR, MATERIALISED, describe)


def weights(sizes, dtype, device):
    """Made where they will be: a billion of them take a CPU ten seconds."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.nn.Parameter((SIGMA * torch.randn(size, generator=generator, device=device)).to(DTYPES[dtype])) for size in sizes]


def state_bytes(optimizer) -> int:
    """Of the tensors as large as a parameter that are kept between steps; the gradients are not among them."""
    if isinstance(optimizer, by_hand.MeZO):
        kept = list(itertools.chain(*optimizer.state))
        kept += state_of(optimizer.optimizer) if isinstance(optimizer, by_hand.FusedAdam) else []
    else:
        kept = state_of(optimizer)
    return sum(t.numel() * t.element_size() for t in kept)


def state_of(optimizer):
    return [value for held in optimizer.state.values() for value in held.values() if isinstance(value, torch.Tensor) and value.dim()]


def check(ours, theirs, params):
    """Steps of zokern's optimizer against the same rule in float64, its z from the oracle, on parts of three parameters.

    Raises:
        Refused: they differ by more than rounding.
    """
    optimizer = ours(params)
    layout = optimizer.layout
    parts = [(i, start) for i in looked_at(layout) for start in (0, max(0, layout.params[i].numel() - SLICE))]

    def part(i, start):
        return layout.params[i].detach().view(-1)[start : start + SLICE].cpu().double()

    explicit = [part(i, start) for i, start in parts]

    def draw(direction, members):
        key = zokern.NoiseKey.of(0, *direction)
        for i, start in (parts[m] for m in members):
            kept = keep_threshold(layout.keep[i])
            yield torch.from_numpy(masked_noise(key, kept, layout.first[i] + start, len(part(i, start)))).double()

    stepper(optimizer, CHECKED)()
    stepper(theirs(explicit, block=[layout.block[i] for i, _ in parts], draw=draw), CHECKED)()
    for (i, start), right in zip(parts, explicit):
        # Of at most seven moves a step each rounds by half a unit in the last place of weights below 0.2 in size. Updates are near 1e-3.
        bound = CHECKED * 7 * 0.2 * torch.finfo(layout.params[i].dtype).eps / 2
        off = float((part(i, start) - right).abs().max())
        if not off <= bound:
            raise Refused(f"after {CHECKED} steps parameter {i} is {off:.2g} from where explicit z leads, more than {bound:.2g}")
