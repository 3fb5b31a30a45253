"""Suite ``rewards``: ``zokern evolve`` on a pretrained model, which is to answer in one word whether a review is positive or negative, a
reward that it mostly misses at first. What is reported is the mean reward on held-out rows, by iteration. A run is a case, and one that
the file of records holds is not made again."""

import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from . import models, problems, record, smollm2

PROBLEM = f"{smollm2.NAME}, SST-2 in one word"
PROMPT = "Review: {} Is the review positive or negative? Answer:"
ANSWERS = ("negative", "positive")


@dataclass(frozen=True)
class Reward:
    """One run. ``train``, ``held_out``: rows, of which each iteration takes ``rows``; pairs are mirrored."""

    problem: str
    seed: int
    steps: int
    every: int
    rows: int
    population: int
    lr: float
    sigma: float
    train: int
    held_out: int
    data: str | None = None
    engine: str = "local"

    @property
    def candidate(self) -> str:
        return "zokern evolve" if self.engine == "local" else f"zokern evolve --engine {self.engine}"


def cases(quick=False, data=None) -> list[Reward]:
    if quick:
        return [Reward(PROBLEM, 0, 1, 1, 2, 2, 2e-3, 1e-3, 8, 4, data)]
    runs = [(seed, "local") for seed in range(3)] + [(0, "vllm")]
    return [Reward(PROBLEM, seed, 12, 4, 32, 16, 2e-3, 1e-3, 1024, 256, data, engine) for seed, engine in runs]


def missing(case: Reward, out: Path) -> str:
    """Why the case cannot be measured here, or need not, being in the file of records; "" where it can."""
    records = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    wanted = {
        "op": PROBLEM,
        "candidate": case.candidate,
        "seed": case.seed,
        "steps": case.steps,
        "rows": case.rows,
        "population": case.population,
    }
    if any(not r.get("error") and wanted.items() <= r.items() for r in records):
        return f"{out} has seed {case.seed} of {case.candidate}"
    if case.engine == "vllm" and not find_spec("vllm"):
        return "vLLM is not installed: make test-vllm"
    return models.missing(smollm2.NAME) or problems.no_data(case.data)


def measure(case: Reward, device) -> list[dict]:
    from zokern.evolve import Settings, evolve

    with tempfile.TemporaryDirectory() as folder:
        train, held_out = written(case, Path(folder))
        out = Path(folder) / "run"
        result = evolve(
            Settings(
                model=str(smollm2.converted()),
                data=str(train),
                eval_data=str(held_out),
                reward=("exact:answer",),
                rows=case.rows,
                max_new_tokens=2,
                lr=case.lr,
                optimizer_settings={"sigma": case.sigma, "population": case.population, "mirrored": True},
                seed=case.seed,
                steps=case.steps,
                eval_every=case.every,
                engine=case.engine,
                engine_option=("enforce_eager=true",) if case.engine == "vllm" and device.type == "cpu" else (),
                device=device.type if case.engine == "local" else None,
                out=str(out),
            ),
            say=lambda line: None,
        )
        history = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        dict.fromkeys(record.FIELDS)
        | {"suite": "rewards", "op": case.problem, "candidate": case.candidate, **record.backend(device, True), "dtype": "fp32"}
        | {"n": result.parameters, "threads": torch.get_num_threads(), "max_new_tokens": 2}
        | {name: value for name, value in asdict(case).items() if name not in ("problem", "data")}
        | {"curve": [(entry["step"], entry["eval_reward"]) for entry in history if "eval_reward" in entry], "iterations": history}
        | {name: getattr(result, name) for name in ("before", "after", "best", "generated", "dropped", "skipped", "noise_share")}
        | record.where(device)
    ]


def written(case: Reward, folder: Path) -> tuple[Path, Path]:
    """The rows as ``zokern evolve`` takes them: training rows of train.tsv, held-out rows of test.tsv."""
    from zokern import tasks

    files = []
    for name, count in (("train", case.train), ("test", case.held_out)):
        rows = tasks.get("sst2").load(f"{case.data}/{name}.tsv")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()[:count]
        chosen = [{"prompt": PROMPT.format(rows[i]["sentence"].strip()), "answer": ANSWERS[rows[i].label]} for i in order]
        files.append(folder / f"{name}.jsonl")
        files[-1].write_text("".join(f"{json.dumps(row)}\n" for row in chosen))
    return files[0], files[1]
