"""Suite ``engines``: evolution strategies on vLLM, inside its workers, beside the published way to perturb them: the generator seeded,
``torch.randn`` for each tensor added in the weights' dtype, subtracted again, and once more for each member in the update. Where vLLM is
installed (``make test-vllm`` makes such an environment), on a CPU with ``VLLM_ENABLE_V1_MULTIPROCESSING=0``."""

import os
import statistics
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import torch

import zokern

from . import models, record, smollm2

OURS, PUBLISHED, PLAIN = "zokern on vLLM", "as published, on vLLM", "zokern on transformers"
SIGMA = 1e-3
PROMPT = "Question: what is {} plus {}? Write the sum in words, and say how you found it. Answer:"


@dataclass(frozen=True)
class Engine:
    """``members`` that answer ``rows`` prompts with ``new`` tokens at most; passes alone ``rounds`` times; ``drift`` perturbations."""

    model: str
    dtype: str
    members: int
    rows: int
    new: int
    rounds: int
    drift: int


def cases(quick=False, dtypes=None) -> list[Engine]:
    sizes = (2, 4, 4, 1, 2) if quick else (4, 64, 64, 5, 100)
    return [Engine(smollm2.NAME, dtype, *sizes) for dtype in ("fp32", "bf16") if not dtypes or dtype in dtypes]


def missing(case: Engine) -> str:
    return ("" if find_spec("vllm") else "vLLM is not installed: make test-vllm") or models.missing(case.model)


def add(worker, seed, c):
    """In a worker: every parameter <- itself + c randn(seed), tensor by tensor."""
    with torch.no_grad():
        for p in worker.get_model().parameters():
            generator = torch.Generator(p.device).manual_seed(seed)
            p.data.add_(torch.randn(p.shape, dtype=p.dtype, device=p.device, generator=generator), alpha=c)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def keep(worker):
    """In a worker: remember the weights."""
    worker.kept = [p.detach().clone() for p in worker.get_model().parameters()]


def drifted(worker):
    """In a worker: (distance from the weights that were kept, of their norm; share of elements that are others; the weights again)."""
    pairs = [(p.detach().float(), q.float()) for p, q in zip(worker.get_model().parameters(), worker.kept)]
    distance = sum(float((p - q).square().sum()) for p, q in pairs) ** 0.5 / sum(float(q.square().sum()) for _, q in pairs) ** 0.5
    changed = sum(int((p != q).sum()) for p, q in pairs) / sum(p.numel() for p, _ in pairs)
    with torch.no_grad():
        for p, q in zip(worker.get_model().parameters(), worker.kept):
            p.data.copy_(q)
    return distance, changed


def measure(case: Engine, device) -> list[dict]:
    """-> records, one a candidate of passes, of drift and of whole iterations."""
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # for what is measured beside ours, and called in the workers
    from zokern.engines import Local, Pool, Sampling
    from zokern.engines.vllm import VLLM

    dtype = {"fp32": "float32", "bf16": "bfloat16"}[case.dtype]
    folder = str(smollm2.converted())
    options = dict(dtype=dtype, max_model_len=128, max_num_seqs=max(case.rows, 8), enforce_eager=device.type == "cpu")
    engine = VLLM(folder, **options)
    model = smollm2.load(getattr(torch, dtype)).to(device)
    model.config.use_cache = True
    pools = {OURS: Pool([engine]), PLAIN: Pool([Local(model, engine.tokenizer, case.rows)])}
    optimizers = {
        name: zokern.EvolutionStrategies(
            smollm2.load(getattr(torch, dtype)).named_parameters(), population=case.members, sigma=SIGMA, maximize=True, perturbation=pool
        )
        for name, pool in pools.items()
    }
    prompts = [engine.tokenizer(PROMPT.format(7 * i + 3, 5 * i + 1))["input_ids"] for i in range(case.rows)]
    sampling, tokens = Sampling(case.new), dict.fromkeys((OURS, PUBLISHED, PLAIN), 0)
    moved = dict.fromkeys(tokens, 0.0)

    def write(name, engine):
        written = engine.generate(prompts, sampling)
        tokens[name] += written.tokens
        return float(sum(map(len, written.texts)))

    def within(name):
        def reward(engine, number):
            moved[name] += engine.moving
            return write(name, engine)

        began = time.perf_counter()
        optimizers[name].step(pools[name].driver(reward))
        pools[name].go()
        return time.perf_counter() - began

    def published():
        began = time.perf_counter()
        for seed in range(case.members):
            each = timed(lambda: call(add, seed, SIGMA))  # noqa: B023
            write(PUBLISHED, engine)
            moved[PUBLISHED] += each + timed(lambda: call(add, seed, -SIGMA))  # noqa: B023
        for seed in range(case.members):
            call(add, seed, 1e-6)
        return time.perf_counter() - began

    def call(function, *args):
        return engine.llm.collective_rpc(function, args=args)[0]

    write(PUBLISHED, engine), write(PLAIN, pools[PLAIN].engines[0])  # warm up
    tokens = dict.fromkeys(tokens, 0)
    whole = {OURS: within(OURS), PLAIN: within(PLAIN), PUBLISHED: published()}
    written = dict(tokens)
    passes, drift = _passes(case, pools[OURS], call), _drift(case, pools[OURS], call)
    engine.close()
    size = sum(p.numel() for p in model.parameters())
    common = dict.fromkeys(record.FIELDS) | asdict(case) | {"suite": "engines", "n": size, "threads": torch.get_num_threads()}
    here = record.where(device)
    here["versions"] = here["versions"] | {"vllm": engine_version()}
    found = [
        {"op": op, "candidate": name, **record.backend(device, name == OURS), "seconds": each, "median_s": statistics.median(each)}
        | {"min_s": min(each), "speedup": statistics.median(by_name[PUBLISHED]) / statistics.median(each)}
        for op, by_name in passes.items()
        for name, each in by_name.items()
    ]
    found += [
        {"op": "drift", "candidate": name, **record.backend(device, name == OURS), "distance": distance, "changed": changed}
        for name, (distance, changed) in drift.items()
    ]
    found += [
        {"op": "iteration", "candidate": name, **record.backend(device, name != PUBLISHED), "median_s": seconds, "tokens": written[name]}
        | {"tokens_per_second": written[name] / seconds, "moving_s": moved[name], "share_moving": moved[name] / seconds}
        for name, seconds in whole.items()
    ]
    return [common | one | here for one in found]


def _passes(case, pool, call):
    """{what: {candidate: seconds of each round}}: to a point and back, and the update of an iteration of 30 members."""
    keys = [zokern.NoiseKey(1, step) for step in range(30)]
    seconds = {"a point and back": {OURS: [], PUBLISHED: []}, "update of 30 members": {OURS: [], PUBLISHED: []}}

    def update():
        """An update, and the next point, less what that takes by itself."""
        alone = timed(lambda: pool.go([(keys[1], SIGMA)]))
        pool.update(zokern.estimators.perturbation.Pass([(key, 1e-6) for key in keys]))
        return timed(lambda: pool.go([(keys[0], SIGMA)])) - alone

    for round in range(case.rounds + 1):  # the first one warms up
        point, updates = seconds.values()
        point[OURS].append(timed(lambda: pool.go([(keys[0], SIGMA)])) + timed(lambda: pool.go()))
        point[PUBLISHED].append(timed(lambda: call(add, 0, SIGMA)) + timed(lambda: call(add, 0, -SIGMA)))
        updates[OURS].append(update())
        if round < 3:
            updates[PUBLISHED].append(timed(lambda: [call(add, seed, 1e-6) for seed in range(30)]))
    return {op: {name: each[1:] for name, each in by_name.items()} for op, by_name in seconds.items()}


def _drift(case, pool, call):
    """{candidate: (distance, share of elements changed)} after so many perturbations, each restored."""
    found = {}
    for name in (OURS, PUBLISHED):
        pool.go([(zokern.NoiseKey(3), SIGMA)])
        pool.go()  # theta, whatever was in its place
        call(keep)
        for seed in range(case.drift):
            if name == OURS:
                pool.go([(zokern.NoiseKey(2, seed), SIGMA)])
            else:
                call(add, seed, SIGMA)
                call(add, seed, -SIGMA)
        if name == OURS:
            pool.go()
        found[name] = call(drifted)
    return found


def timed(run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def engine_version() -> str:
    import vllm

    return str(vllm.__version__)
