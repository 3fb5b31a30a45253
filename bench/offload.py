"""Suite ``offload``: MeZO on a model whose weights lie in a file, or in host memory, beside the same run in memory: memory of its own,
steps, and the weights that it ends with. Each run is a process; the most that it holds is looked at from outside."""

import contextlib
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import zokern
from zokern.finetune.offload import without_weights
from zokern.mapped import write
from zokern.mapped.file import read

from . import record
from .models import DTYPES, MODELS, rows_of
from .oracle import EPS, Refused

MEMORY, HOST, DISK = "in memory", "from host memory", "from a file"
LR = 1e-6
EVERY = 0.01  # seconds between looks at a process's memory


@dataclass(frozen=True)
class Offload:
    """``steps`` steps of MeZO on a model with random weights."""

    model: str
    dtype: str
    batch: int
    tokens: int
    steps: int


def cases(quick=False, dtypes=None) -> list[Offload]:
    """A Llama of 1.1e9 parameters in float32, whose part is 0.2 of 4.2 GB."""
    case = Offload("tiny", "fp32", 2, 8, 3) if quick else Offload("Llama-1.1B", "fp32", 1, 16, 20)
    return [case] if not dtypes or case.dtype in dtypes else []


def measure(case: Offload, device) -> list[dict]:
    """-> records, one a place of the weights.

    Raises:
        Refused: two runs end with other weights, or other losses.
    """
    found = {}
    with tempfile.TemporaryDirectory(dir=Path("out") if Path("out").is_dir() else None) as folder:
        for place in (DISK, HOST, MEMORY):
            path = Path(folder) / "weights.safetensors"
            write(path, dict(empty(case).named_parameters()), random_values(case))
            found[place] = of_process(place, path, case, device)
    (first, one), *others = found.items()
    for place, other in others:
        for what in ("losses", "digest"):
            if one[what] != other[what]:
                raise Refused(f"{case}: {what} {first} and {place} differ")
    here = record.where(device)
    return [
        dict.fromkeys(record.FIELDS)
        | {"suite": "offload", "op": f"MeZO, {case.steps} steps", "candidate": place, **record.backend(torch.device("cpu"), True)}
        | {key: value for key, value in asdict(case).items() if key != "steps"}
        | {"largest_part_bytes": largest_part(case), **times(each.pop("seconds"))}
        | each
        | here
        for place, each in found.items()
    ]


def times(seconds) -> dict:
    """Of every step but the first, which makes what stays."""
    q1, median, q3 = statistics.quantiles(seconds[1:], method="inclusive")
    rate = len(seconds) / sum(seconds)
    return {"rounds": len(seconds) - 1, "q1_s": q1, "median_s": median, "q3_s": q3, "min_s": min(seconds), "steps_per_s": rate}


def empty(case):
    """The model, whose parameters have no memory."""
    import transformers

    _, config, size = MODELS[case.model]
    config = getattr(transformers, config)(**size, use_cache=False)
    return without_weights(transformers.AutoModelForCausalLM, config, DTYPES[case.dtype])


def random_values(case):
    """name -> N(0, 0.02^2) in float32; ones where a norm has its weights."""
    shapes = {name: p.shape for name, p in empty(case).named_parameters()}

    def values(name):
        generator = torch.Generator().manual_seed(list(shapes).index(name))
        return torch.ones(shapes[name]) if "norm" in name else torch.randn(shapes[name], generator=generator) * 0.02

    return values


def largest_part(case) -> int:
    return max(sum(p.numel() * p.element_size() for p in part.params) for part in zokern.Streamed(empty(case)).parts)


def of_process(place, path, case, device) -> dict:
    """What a run says of itself, and the most bytes of memory of its own that it held."""
    command = [sys.executable, "-m", __name__, place, str(path), json.dumps(asdict(case)), device.type]
    with subprocess.Popen(command, cwd=record.ROOT, stdout=subprocess.PIPE, text=True) as process:
        most = 0
        while process.poll() is None:
            most = max(most, own_bytes(process.pid))
            time.sleep(EVERY)
        said = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{place}: the run ended with {process.returncode}")
    return json.loads(said.splitlines()[-1]) | {"peak_anonymous_bytes": most}


def own_bytes(process="self") -> int:
    """Resident memory of a process that no file stands behind; 0 when it has ended."""
    with contextlib.suppress(OSError):
        if found := re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process}/status").read_text()):
            return int(found[1]) << 10
    return 0


def main(place, path, case, device) -> dict:
    case = Offload(**json.loads(case))
    model = empty(case)
    before = own_bytes()
    if place == DISK:
        streamed = zokern.Streamed(model, source=path, device=device)
    else:
        held = read(Path(path))
        model.load_state_dict({name: tensor.clone() for name, tensor in held.items()}, strict=False, assign=True)
        model.tie_weights()
        if place == MEMORY:
            model.to(device)
        streamed = zokern.Streamed(model, source="host" if place == HOST else None, device=device)
    optimizer = zokern.MeZO(model.named_parameters(), lr=LR, eps=EPS, perturbation=streamed)
    ids, labels = (rows.to(device) for rows in rows_of(model, case.batch, case.tokens))
    losses, seconds = [], []
    for _ in range(case.steps):
        begin = time.perf_counter()
        losses.append(float(optimizer.step(lambda: model(input_ids=ids, labels=labels).loss)))
        seconds.append(time.perf_counter() - begin)
    digest = hashlib.sha256()
    for _, p in sorted(model.named_parameters()):
        digest.update(p.detach().cpu().view(torch.uint8).numpy().data)
    if streamed.source:
        streamed.source.close()
    params = list(model.parameters())
    return {
        "n": sum(p.numel() for p in params),
        "weights_bytes": sum(p.numel() * p.element_size() for p in params),
        "threads": torch.get_num_threads(),
        "libraries_bytes": before,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "losses": losses,
        "seconds": seconds,
        "digest": digest.hexdigest(),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
