"""What a log says of its run, for people."""

import math
from collections import Counter
from typing import Any

import numpy as np

from ..estimators.estimate import LARGEST
from ..optim.settings import PER_PARAMETER
from .header import logged_class, settings_of
from .text import header_line
from .trajectory import Trajectory
from .weights import combined


def describe(trajectory: Trajectory) -> dict[str, Any]:
    """What a log says of its run, as JSON can hold it: a dict with these keys.

    - steps; skipped: steps that moved nothing, because a loss was not finite; dropped: members of populations that were left out for that
    reason; followed: steps that can be replayed
    - first_loss, last_loss: None where there is none, or it was not finite
    - optimizer; settings: at step 0, a list where groups differ; changed: names of the settings that did
    - groups, tensors, parameters: how many; dtypes: name -> parameters; sparse_or_in_blocks: which of "keep" and "block" there are
    - noise_spec, version, format, fingerprint; base: 16 hex digits for all base weights; torn; notes
    - bytes: of the file; bytes_a_step: of its lines, None where there are none

    Args:
        trajectory: the log.
    """
    header, losses = trajectory.header, trajectory.losses()
    dtypes: Counter[str] = Counter()
    for _, shape, dtype, _ in header["parameters"]:
        dtypes[dtype] += math.prod(shape)
    settings = settings_of(header)
    return {
        "steps": len(trajectory),
        "skipped": _counted(trajectory, "skipped_in"),
        "dropped": _counted(trajectory, "dropped_in"),
        "followed": min(trajectory.steps.changes.get("disturbed", ()), default=len(trajectory)),
        "first_loss": _finite(losses[:1]),
        "last_loss": _finite(losses[-1:]),
        "optimizer": header["optimizer"],
        "settings": settings,
        "changed": [name for name in settings if name in trajectory.steps.changes],
        "groups": len(header["groups"]),
        "tensors": len(header["parameters"]),
        "parameters": sum(dtypes.values()),
        "dtypes": dict(dtypes),
        "sparse_or_in_blocks": [name for name in PER_PARAMETER if name in header["groups"][0]],
        **{name: header[name] for name in ("noise_spec", "version", "format", "fingerprint")},
        "base": combined(row[3] for row in header["parameters"]),
        "bytes": trajectory.size,
        "bytes_a_step": round((trajectory.size - len(header_line(header))) / len(trajectory), 1) if len(trajectory) else None,
        "torn": trajectory.torn,
        "notes": header["notes"],
    }


def lines(trajectory: Trajectory) -> list[str]:
    """What ``describe`` says of a ``trajectory``, as lines to print."""
    return [f"{name}: {text}" for name, text in facts(trajectory)]


def facts(trajectory: Trajectory) -> list[tuple[str, str]]:
    """What ``describe`` says of a ``trajectory``, as texts with a name each."""
    d = describe(trajectory)
    what = "reward" if d["settings"].get("maximize") else "loss"
    losses = "" if d["first_loss"] is None and d["last_loss"] is None else f", {what} {_shown(d['first_loss'])} to {_shown(d['last_loss'])}"
    skipped = "".join(f", {d[name]} {said}" for name, said in (("skipped", "skipped"), ("dropped", "members dropped")) if d[name])
    found = [(d["optimizer"], f"{_many(d['steps'], 'step')}{losses}{skipped}")]
    found.append(("settings", ", ".join(f"{name}={_shown(value)}" for name, value in d["settings"].items())))
    if d["changed"]:
        found.append(("changed in the run", ", ".join(d["changed"])))
    kinds = ", ".join(f"{count:,} {dtype}" for dtype, count in d["dtypes"].items())
    each = f", with {' and '.join(d['sparse_or_in_blocks'])} of their own" if d["sparse_or_in_blocks"] else ""
    found.append(("parameters", f"{kinds} in {_many(d['tensors'], 'tensor')} and {_many(d['groups'], 'group')}{each}"))
    made = f"layout {d['fingerprint']}, noise specification {d['noise_spec']}, zokern {d['version']}"
    found.append(("base weights", f"{d['base']}, {made}"))
    found.append(("size", f"{d['bytes']:,} bytes" + (f", {d['bytes_a_step']} a step" if d["bytes_a_step"] else "")))
    notes = d["notes"] if isinstance(d["notes"], dict) else {"notes": d["notes"]}
    found += [(name, str(value)) for name, value in notes.items()]
    if d["torn"]:
        found.append(("torn", f"the last line was cut off and is left out: the log is good up to step {d['steps']}"))
    if d["followed"] < d["steps"]:
        followed = f"the weights can be made again up to step {d['followed']}: there something beside the steps moved them"
        found.append(("disturbed", followed))
    return found


def _counted(trajectory: Trajectory, what: str) -> int:
    """What the optimizer's class counts of measurements."""
    if bool((np.abs(trajectory.steps.measurements) < LARGEST).all()):
        return 0
    steps = (measurements for measurements, _ in trajectory.steps)
    return int(getattr(logged_class(trajectory.header), what)(steps, trajectory.header["groups"][0]))


def _finite(values: np.ndarray) -> float | None:
    return float(values[0]) if len(values) and math.isfinite(values[0]) else None


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "not finite"
    if isinstance(value, dict):
        return _shown(value["tensor"])
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else str(value)


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("s" if n != 1 else "")
