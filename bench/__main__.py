"""python -m bench: what zokern's noise and its MeZO step cost here, beside what one writes without it."""

import argparse
import gc
import os
import signal
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path

import torch

import zokern

from . import (
    anchors,
    budgets,
    cases,
    convergence,
    drift,
    effective_rank,
    engines,
    finetuned,
    forms,
    kernels,
    memory,
    methods,
    models,
    offload,
    optimizers,
    parts,
    peers,
    populations,
    precision,
    problems,
    processes,
    record,
    replay,
    resident,
    rewards,
    rounding,
    step,
    table,
    trainer,
    variance,
    variants,
)
from .oracle import Refused

SUITES = ("kernels", "forms", "step", "memory", "replay", "optimizers", "trainer", "drift")  # "all" of them
BY_THEMSELVES = (
    "rounding",
    "convergence",
    "methods",
    "offload",
    "populations",
    "rewards",
    "variance",
    "anchors",
    "budgets",
    "finetuned",
    "variants",
    "parts",
    "peers",
    "engines",
    "processes",
)
LOST = 3  # exit status: the cases that are left need another process


def main(argv=None, prog="python -m bench") -> int:
    """-> 0; 1 when a case was refused or has failed; 2 when what was asked for is not here; LOST when the GPU is."""
    arguments = parser(prog).parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() and arguments.backend not in ("cpu", "reference") else "cpu")
    if arguments.isa:
        os.environ["ZOKERN_CPU_ISA"] = arguments.isa
    with ExitStack() as stack:
        try:
            if arguments.backend:
                stack.enter_context(zokern.use_backend(arguments.backend))
            zokern.backends()
        except (RuntimeError, ValueError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
        return run(arguments, device)


def run(arguments, device) -> int:
    """Measure case by case; every case's records are written as soon as they are there."""
    work = work_of(arguments, device)
    records, status = [], 0
    try:
        for done, (suite, case) in enumerate(work[: arguments.most], 1):
            if done < arguments.begin:
                continue
            print(f"bench: {done} of {len(work[: arguments.most])}: {case}", file=sys.stderr, flush=True)
            measured = measure(suite, case, device)
            record.append(arguments.out, measured)
            records += measured
            status = max(status, int(any(map(record.is_fault, measured))))
            if not usable(device):
                print(f"bench: the GPU is lost to this process: go on with --begin {done + 1}", file=sys.stderr)
                return LOST
    finally:  # whatever ends it: what was measured is told
        print(table.text(records))
    return status


def work_of(arguments, device) -> list:
    """-> [(suite, case)] of what was asked for; what cannot be had here is told."""
    chosen = dict(quick=arguments.quick, dtypes=arguments.dtype, threads=arguments.threads)
    few = dict(quick=arguments.quick, data=arguments.data)
    pretrained = arguments.suite != "all"  # which takes long
    # name of a suite -> (what measures, its cases, case -> why it cannot be had)
    offered = {
        "kernels": [(kernels, cases.kernels(device, **chosen), nothing)],
        "forms": [(forms, cases.forms(device, **chosen), nothing)],
        "step": [(step, cases.steps(device, **chosen, pretrained=pretrained), of_model)],
        "memory": [
            (memory, cases.memory(device, **chosen), of_model),
            (resident, cases.residents(device, arguments.quick, arguments.dtype, pretrained), of_model),
        ],
        "replay": [(replay, cases.replays(device, **chosen), of_model)],
        "optimizers": [(optimizers, cases.own_parts(device, **chosen), of_model)],
        "trainer": [(trainer, cases.trained(device, data=arguments.data, **chosen), trainer.missing)],
        "drift": [(drift, cases.drifts(arguments.quick, arguments.dtype, pretrained), of_model)],
        "rounding": [(rounding, cases.roundings(dtypes=arguments.dtype, **few), rounding.missing)],
        "convergence": [
            (convergence, cases.convergences(**few), lambda case: problems.missing(case.problem, case.data)),
            (precision, cases.precisions(**few), lambda case: precision.missing(case, arguments.out)),
            (effective_rank, cases.effective_ranks(arguments.quick), nothing),
        ],
        "methods": [(methods, methods.cases(**few), lambda case: methods.missing(case, arguments.out))],
        "offload": [(offload, offload.cases(arguments.quick, arguments.dtype), of_model)],
        "populations": [(populations, populations.cases(device, arguments.quick, arguments.dtype), of_model)],
        "anchors": [(anchors, anchors.cases(**few), lambda case: anchors.missing(case, arguments.out))],
        "budgets": [(budgets, budgets.cases(**few), budgets.missing)],
        "finetuned": [(finetuned, finetuned.cases(**few), finetuned.missing)],
        "variants": [(variants, variants.cases(device, arguments.quick, arguments.dtype), variants.missing)],
        "parts": [(parts, parts.cases(**few), parts.missing)],
        "variance": [(variance, variance.cases(**few), variance.missing)],
        "peers": [(peers, peers.cases(device, **chosen), of_model)],
        "engines": [(engines, engines.cases(arguments.quick, arguments.dtype), engines.missing)],
        "processes": [(processes, processes.cases(arguments.quick, arguments.dtype), processes.missing)],
        "rewards": [(rewards, rewards.cases(**few), lambda case: rewards.missing(case, arguments.out))],
    }
    work, told = [], set()
    for name in SUITES if arguments.suite == "all" else (arguments.suite,):
        for suite, listed, missing in offered[name]:
            for case in listed:
                problem, model = (getattr(case, field, None) for field in ("problem", "model"))
                if problem and arguments.problem not in (None, problem):
                    continue
                if reason := missing(case):
                    told.add(f"bench: {problem or f'suite {name}' + (f' on {model}' if model else '')} is skipped: {reason}")
                else:
                    work.append((suite, case))
    for line in sorted(told):
        print(line, file=sys.stderr)
    return work


def nothing(case) -> str:
    return ""


def of_model(case) -> str:
    return models.missing(case.model) if hasattr(case, "model") else ""


def measure(suite, case, device) -> list[dict]:
    """-> the records of a case. An exception costs that case only, and is its record."""
    name = suite.__name__.rpartition(".")[2]
    try:
        return suite.measure(case, device)
    except Refused as error:
        print(f"bench: REFUSED, not timed: {error}", file=sys.stderr)
        reason = record.reason(error)
    except torch.cuda.OutOfMemoryError as error:
        print("bench: left out, it does not fit in the memory of this GPU", file=sys.stderr)
        reason = record.reason(error)
    except Exception as error:
        traceback.print_exc()
        reason = record.reason(error)
    return [record.failed(name, case, reason, device)]


def usable(device) -> bool:
    """Whether the GPU still answers, its memory free for the next case: after an illegal access it does nothing more for this process."""
    if device.type != "cuda":
        return True
    gc.collect()  # the next model needs the room of this one, whatever still points in circles
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def parser(prog: str = "python -m bench") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition(": ")[2])
    parser.add_argument(
        "--suite",
        choices=(*SUITES, *BY_THEMSELVES, "all"),
        default="all",
        help="all: those that tell what this machine does with random weights",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works: the times mean nothing")
    parser.add_argument("--out", type=Path, default=Path("out/bench.jsonl"), help="JSON lines, appended (out/bench.jsonl)")
    parser.add_argument("--most", type=int, help="so many cases: the first ones, which on a GPU tell the most (all)")
    parser.add_argument("--begin", type=int, default=1, help="with the case of this number (1)")
    parser.add_argument("--threads", type=int, help="CPU threads (kernels: all; step: one, and then all)")
    parser.add_argument("--isa", choices=("scalar", "avx2", "avx512"), help="of the C++ backend (the best one)")
    parser.add_argument("--dtype", nargs="+", choices=list(models.DTYPES), help="only these (all)")
    parser.add_argument(
        "--problem", choices=[*problems.PROBLEMS, precision.PROBLEM, "effective rank"], help="of convergence, methods (all)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with train.tsv and test.tsv of SST-2, for the suites that train",
    )
    parser.add_argument("--backend", choices=zokern.kernels.NAMES, help="force one (the best one)")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the tables are printed all the same
    sys.exit(main())
