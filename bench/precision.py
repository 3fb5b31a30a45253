"""Suite ``convergence``, the problem "SmolLM2-135M, SST-2": the same MeZO steps with weights in float32, and in bfloat16 in every mode.

Seeds, batches, directions and settings are those of float32, so that the curves differ by what rounding does and by nothing else. With
lr = 0 in place a run learns nothing, and drifts. Every run is a case, and its record is there when it ends: a run that the file of records
holds is not made again.
"""

import json
import math
import time
from functools import partial
from pathlib import Path

import torch

from . import models, problems, record, smollm2
from .cases import IN_16_BITS, Precision
from .convergence import EPS, batches
from .modes import COPIED, OURS, STREAMED, mezo

PROBLEM = Precision.problem
EXAMPLES, JUDGED_BY, AT_ONCE = 512, 128, 16  # rows to train with; held-out rows of a loss on the curve, at most; in a forward pass
IN_PLACE, COPY = ("bf16", OURS, "nearest"), ("bf16", COPIED, "nearest")  # dtype, mode, rounding
WAYS = (("fp32", OURS, "nearest"), IN_PLACE, ("bf16", STREAMED, "nearest"), ("bf16", STREAMED, "stochastic"), COPY, IN_PLACE)
CANDIDATES = dict(zip(IN_16_BITS, WAYS))


def missing(case: Precision, out: Path) -> str:
    """Why the case cannot be measured here, or need not, being in the file of records; "" where it can."""
    records = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    wanted = {"op": PROBLEM, "candidate": case.candidate, "seed": case.seed, "steps": case.steps, "batch": case.batch}
    if any(not r.get("error") and wanted.items() <= r.items() for r in records):
        return f"{out} has {case.candidate}, seed {case.seed}"
    return models.missing(smollm2.NAME) or problems.no_data(case.data)


def measure(case: Precision, device) -> list[dict]:
    """-> the record of one run; its curve is the loss of held-out rows."""
    dtype, mode, rounding = CANDIDATES[case.candidate]
    model, reader = models.build(smollm2.NAME, dtype, device), smollm2.reader(case.tokens)
    rows = reader.task.load(f"{case.data}/train.tsv")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    chosen, judged_by = (
        [reader.encode(rows[i]) for i in part] for part in (order[:EXAMPLES], order[EXAMPLES:][: min(JUDGED_BY, case.tested)])
    )
    test = reader.task.load(f"{case.data}/test.tsv")[: case.tested]
    optimizer = mezo(mode, model, case.lr, EPS, seed=case.seed, rounding=rounding)

    @torch.no_grad()
    def judged():
        parts = [judged_by[i : i + AT_ONCE] for i in range(0, len(judged_by), AT_ONCE)]
        return sum(float(reader.loss(model, reader.collate(part))) * len(part) for part in parts) / len(judged_by)

    curve, losses, seconds = [(0, judged())], [], 0.0
    for step, numbers in zip(range(1, case.steps + 1), batches(EXAMPLES, case.batch, case.seed)):
        batch, begin = reader.collate([chosen[i] for i in numbers.tolist()]), time.perf_counter()
        losses.append(float(optimizer.step(partial(reader.loss, model, batch))))
        seconds += time.perf_counter() - begin
        if step % case.every == 0 or step == case.steps:
            curve.append((2 * case.batch * step, judged()))
    return [
        {
            **dict.fromkeys(record.FIELDS),
            "suite": "convergence",
            "op": PROBLEM,
            "candidate": case.candidate,
            **record.backend(device, True),
            "dtype": dtype,
            "n": sum(p.numel() for p in model.parameters()),
            "threads": torch.get_num_threads(),
            "examples": EXAMPLES,
            "batch": case.batch,
            "tokens": case.tokens,
            "settings": {"lr": case.lr},
            "perturbation": optimizer.param_groups[0]["perturbation"],
            "rounding": rounding,
            "eps": EPS,
            "seed": case.seed,
            "searched": False,
            "queries": curve[-1][0],
            "steps": case.steps,
            "seconds": seconds,
            "curve": [(q, loss if math.isfinite(loss) else None) for q, loss in curve],
            "train_losses": [round(loss, 5) if math.isfinite(loss) else None for loss in losses],
            "final_loss": curve[-1][1] if math.isfinite(curve[-1][1]) else None,
            "optimum": None,
            "test_accuracy": reader.evaluate(model, test, AT_ONCE)["accuracy"],
            **record.where(device),
        }
    ]
