"""Suite ``finetuned``: ``zokern finetune`` of MiniLM from end to end, every parameter, 16-bit weights, and its trajectory replayed on the
CPU by ``zokern replay``, which must come to the same bytes."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from . import minilm, problems, record
from .oracle import Refused


@dataclass(frozen=True)
class Finetuned:
    """``rows``: of a training, evaluation and test split, as the command line takes them."""

    optimizer: str
    dtype: str
    lr: float
    steps: int
    batch: int = 64
    tokens: int = 40
    rows: str = "512,256,512"
    data: str | None = None


def cases(quick=False, data=None) -> list[Finetuned]:
    if quick:
        return [Finetuned("mezo", "float16", 1e-3, 3, 2, 8, "8,4,4", data)]
    return [Finetuned("mezo", "float16", 1e-3, 1000, data=data), Finetuned("zo-adam", "bfloat16", 1e-3, 300, data=data)]


def missing(case: Finetuned) -> str:
    """Why it cannot be run here; "" where it can."""
    absent = [name for name in ("typer", "rich", "accelerate", "transformers") if not find_spec(name)]
    if absent:
        return f"there is no {absent[0]}: pip install 'zokern[demo]'"
    return problems.no_data(case.data, "train.tsv", "validation.tsv") or minilm.missing()


def measure(case: Finetuned, device) -> list[dict]:
    """-> the record of a run and its replay.

    Raises:
        Refused: they end with other weights.
        RuntimeError: one of them has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run, again = Path(folder, "run"), Path(folder, "again")
        options = {name: getattr(case, name) for name in ("optimizer", "dtype", "lr", "steps", "rows", "data")}
        options |= {"model": minilm.folder(), "task": "sst2", "adapter": "full", "batch-size": case.batch, "max-length": case.tokens}
        options |= {"eval-every": max(1, case.steps // 4), "device": device.type, "out": run}
        found, _ = command("finetune", *(text for name, value in options.items() for text in (f"--{name}", str(value))))
        _, seconds = command("replay", str(run), "--out", str(again), CUDA_VISIBLE_DEVICES="")
        digest = same(run, again)
        curve = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        size = (run / "trajectory.jsonl").stat().st_size
    return [
        {
            **dict.fromkeys(record.FIELDS),
            "suite": "finetuned",
            "op": minilm.PROBLEM,
            "candidate": case.optimizer,
            **record.backend(device, True),
            **{name: value for name, value in asdict(case).items() if name != "data"},
            "n": found["trained_parameters"],
            "pretrained": minilm.source(),
            **{name: found[name] for name in ("before", "after", "test", "skipped", "train_seconds", "steps_per_second", "peak_mib")},
            "curve": curve,
            "trajectory_bytes": size,
            "replay_seconds": seconds,
            "sha256": digest,
            **record.where(device),
        }
    ]


def same(run: Path, again: Path) -> str:
    """The digest of both models' weights.

    Raises:
        Refused: there are two.
    """
    digest, other = (hashlib.sha256((each / "model.safetensors").read_bytes()).hexdigest() for each in (run, again))
    if digest != other:
        raise Refused(f"replayed on the CPU the run ends with other weights: {other}, not {digest}")
    return digest


def command(*words, **environment) -> tuple[dict, float]:
    """What ``zokern`` says at its end, and the seconds until then."""
    begin = time.perf_counter()
    whole = os.environ | {"PYTHONPATH": str(record.ROOT), **environment}
    done = subprocess.run([sys.executable, "-m", "zokern", *words, "--json", "--quiet"], env=whole, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"zokern {words[0]} ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return json.loads(done.stdout), time.perf_counter() - begin


def rows(records) -> list[dict[str, str]]:
    return [
        {
            "optimizer": r["candidate"],
            "dtype": r["dtype"],
            "steps": f"{r['steps']:,}",
            "steps a second": f"{r['steps_per_second']:.1f}",
            "peak MiB": f"{r['peak_mib']:.0f}",
            "held out": f"{r['before']['accuracy']:.3f} -> {r['after']['accuracy']:.3f}",
            "test": f"{r['test']['accuracy']:.3f}",
            "log, kB": f"{r['trajectory_bytes'] / 1e3:.0f}",
            "replay, s": f"{r['replay_seconds']:.0f}",
        }
        for r in records
        if r["suite"] == "finetuned"
    ]
