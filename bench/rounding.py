"""Suite ``rounding``: what becomes of the projected gradient where both points are rounded to 16 bits before a loss is measured there.

A model with 16-bit weights is measured at round(theta + eps z) and round(theta - eps z), whatever keeps theta, and then moves along z. Here
the difference of the two losses stands beside that of the very same weights in float32, where the points are not rounded, for many
directions z, each with a batch of its own. The points are rounded to nearest, or dithered: both of them stochastically, by the same random
bits, so that each point is right in the mean. The model computes in its own dtype; or, to tell the weights' rounding from that of
everything else, in float32 with the rounded weights.
"""

import copy
import math
import statistics

import torch

import zokern
from zokern.noise.spec import ROUNDING, WEIGHTS

from . import models, problems, record, smollm2
from .cases import Rounding
from .models import DTYPES

NEAREST, DITHERED, EXACT = "nearest", "dithered", "not rounded"


def missing(case: Rounding) -> str:
    """Why the case cannot be measured here; "" where it can."""
    return models.missing(smollm2.NAME) or problems.no_data(case.data)


def measure(case: Rounding, device) -> list[dict]:
    reader = smollm2.reader(case.tokens)
    examples = reader.task.load(f"{case.data}/train.tsv")

    def loss_of(k):
        rows = examples[k * case.batch : (k + 1) * case.batch]
        batch = reader.collate([reader.encode(example) for example in rows])
        return lambda model: reader.loss(model, batch)

    return compared(smollm2.load(DTYPES[case.dtype]).to(device), map(loss_of, range(case.directions)), case, device)


@torch.no_grad()
def compared(model, losses, case: Rounding, device) -> list[dict]:
    """-> records: the reference, then one for each way to round and dtype to compute in.

    Args:
        model: with weights in the case's dtype; they end elsewhere.
        losses: for each direction what makes a loss of a model.
    """
    exact = copy.deepcopy(model).float()
    own, wide = (zokern.Layout(m.named_parameters()) for m in (model, exact))
    theta, exact_theta = (layout.over([p.clone() for p in layout.params]) for layout in (own, wide))
    measured, reached = {}, {}
    for k, loss in enumerate(losses):
        key, bits = zokern.NoiseKey(0, k), zokern.NoiseKey.of(0, k, ROUNDING, WEIGHTS)
        found = {(EXACT, "fp32"): []}
        for sign in (1, -1):
            zokern.ops.add_noise_(exact_theta, [(key, sign * case.eps)], out=wide.params)
            found[EXACT, "fp32"].append(float(loss(exact)))
        for how, rounding in ((NEAREST, "nearest"), (DITHERED, bits)):
            points = []
            for sign in (1, -1):
                zokern.ops.add_noise_(theta, [(key, sign * case.eps)], out=own.params, rounding=rounding)
                for p, rounded in zip(wide.params, own.params):
                    p.copy_(rounded)
                for dtype, computing in ((case.dtype, model), ("fp32", exact)):
                    found.setdefault((how, dtype), []).append(float(loss(computing)))
                points.append([p.clone() for p in own.params] if how not in reached else None)
            if how not in reached:
                reached[how] = direction(exact_theta, key, case.eps, *points)
        for name, (plus, minus) in found.items():
            measured.setdefault(name, []).append((plus - minus) / (2 * case.eps))
    reference = measured[EXACT, "fp32"]
    common = {
        "suite": "rounding",
        "op": "projected gradient",
        "dtype": case.dtype,
        "n": sum(p.numel() for p in own.params),
        "model": smollm2.NAME,
        "eps": case.eps,
        "batch": case.batch,
        "tokens": case.tokens,
        **record.backend(device, True),
        **record.where(device),
    }
    return [
        dict.fromkeys(record.FIELDS)
        | common
        | {"candidate": f"{how}, computed in {dtype}", "projected_grads": found}
        | beside(reference, found)
        | reached.get(how, {})
        for (how, dtype), found in measured.items()
    ]


def beside(reference, found) -> dict:
    """Numbers beside those that they should be: ``slope`` of the line through 0 with its standard error (1 where there is no bias),
    ``cosine``, and the ratio of their root mean squares."""
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (reference, found))
    slope = float(x @ y / (x @ x))
    return {
        "slope": slope,
        "slope_se": float(((y - slope * x) * x).square().sum().sqrt() / (x @ x)),
        "cosine": float(x @ y / (x.norm() * y.norm())),
        "rms_ratio": float(y.norm() / x.norm()),
        "median_ratio": statistics.median((y / x).tolist()),
    }


def direction(theta, key, eps, plus, minus) -> dict:
    """What (plus - minus) / 2 eps, the direction that was measured, has of z: its cosine with z, and ``kept``, its part along z, of the
    whole model and by kind of tensor; and quartiles of the single tensors' cosines."""
    sums, kinds = [], {}
    for i, name in enumerate(theta.names):
        z = zokern.ops.noise_like(theta, i, key).double().flatten()
        d = (plus[i].double() - minus[i].double()).flatten() / (2 * eps)
        sums.append((float(d @ z), float(d @ d), float(z @ z)))
        kinds.setdefault(name.rpartition(".")[0].rpartition(".")[2] or name, []).append(sums[-1])
    each = sorted(cosine([own]) for own in sums)
    return {
        "direction_cosine": cosine(sums),
        "direction_kept": kept(sums),
        "direction_cosine_of_tensors": [each[round(q * (len(each) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)],
        "direction_by_kind": {kind: {"cosine": cosine(own), "kept": kept(own)} for kind, own in kinds.items()},
    }


def cosine(sums) -> float:
    along, own, whole = map(sum, zip(*sums))
    return along / math.sqrt(own * whole) if own else 0.0


def kept(sums) -> float:
    along, _, whole = map(sum, zip(*sums))
    return along / whole
