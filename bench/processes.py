"""Suite ``processes``: a step of MeZO by one process and by two, on one machine over gloo, one thread each. ``zokern.DistributedClosure``
lets two processes measure a direction each, or a side of one direction each, of the same batch; or each has half of the batch. The
processes of all candidates are there at once, and take turns, step by step, so that a slow phase of the machine comes to all of them."""

import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass

import torch
from torch import distributed

import zokern

from . import models, record, smollm2
from .oracle import EPS, Refused
from .timing import interleave

LR = 1e-6
ONE, TWO = "1 process, q = 1", "1 process, q = 2"
DIRECTIONS, SIDES = "2 processes, q = 2, a direction each", "2 processes, q = 1, a side each"
HALVES = "2 processes, q = 1, half of the batch each"


@dataclass(frozen=True)
class Way:
    """``processes`` in as many groups as ``directions`` says, as ``DistributedClosure`` takes it. A group shares out its batch."""

    processes: int
    q: int
    directions: int = 1

    @property
    def parts(self) -> int:
        """Of the batch."""
        return self.processes // self.directions

    @property
    def alone(self) -> str:
        """One process that makes the same step by itself."""
        return {1: ONE, 2: TWO}[self.q]


WAYS = {ONE: Way(1, 1), TWO: Way(1, 2), DIRECTIONS: Way(2, 2, 2), SIDES: Way(2, 1, 2), HALVES: Way(2, 1)}


@dataclass(frozen=True)
class Processes:
    """``steps`` of each candidate in turns, after ``warm`` that are not timed. The batch is that of a whole step."""

    model: str
    dtype: str
    batch: int
    tokens: int
    warm: int
    steps: int


def cases(quick=False, dtypes=None) -> list[Processes]:
    case = Processes("tiny", "fp32", 4, 8, 2, 3) if quick else Processes(smollm2.NAME, "fp32", 8, 64, 2, 10)
    return [case] if not dtypes or case.dtype in dtypes else []


def missing(case: Processes) -> str:
    """Why the case cannot be measured here; "" where it can."""
    there = distributed.is_available() and distributed.is_gloo_available()
    return models.missing(case.model) if there else "this torch has no gloo"


def measure(case: Processes, device) -> list[dict]:
    """-> records, one a candidate; on the CPU, whatever else is there.

    Raises:
        Refused: processes end with other weights than each other, or than one process that has made the same steps.
    """
    if case.model == smollm2.NAME:
        smollm2.converted()  # once, before several processes look for it
    told = {name: [] for name in WAYS}  # of each step, what each rank said

    def turn(name):
        def step():
            told[name].append(teams[WAYS[name].processes].step(name))
            return max(rank["seconds"] for rank in told[name][-1])

        return step

    with ExitStack() as stack:
        teams = {size: stack.enter_context(Team(size, case)) for size in {way.processes for way in WAYS.values()}}
        samples = interleave({name: turn(name) for name in WAYS}, Told(case.warm), budget=0, least=case.steps, most=case.steps)
        ends = [rank for team in teams.values() for rank in team.end()]
    equal = compared({name: [rank["digests"][name] for rank in ends if name in rank["digests"]] for name in WAYS})
    here = record.where(torch.device("cpu"))
    return [
        dict.fromkeys(record.FIELDS)
        | {"suite": "processes", "op": "MeZO step", "candidate": name, "threads": 1, "timer": Told.name, "rounds": case.steps}
        | dict(zip(("q1_s", "median_s", "q3_s"), timed.quartiles), min_s=timed.min, seconds=timed.seconds)
        | {"speedup": samples[WAYS[name].alone].median / timed.median, "over_one": timed.median / samples[ONE].median}
        | {field: ends[0][field] for field in ("n", "backend", "isa")}
        | {field: value for field, value in asdict(case).items() if field != "steps"}
        | asdict(WAYS[name])
        | within(told[name][case.warm :])
        | equal[name]
        | here
        for name, timed in samples.items()
    ]


def within(steps) -> dict:
    """Medians over the steps of what is in one: of forward passes and of passes over the weights the longest of any process; of the
    collective what it takes the process that waits the least, which is about its own time, and what another waits for that one.

    Args:
        steps: for each step, what each rank said.
    """

    def median(of):
        return statistics.median(map(of, steps))

    def every(part):
        return lambda ranks: [rank["spent"].get(part, 0.0) for rank in ranks]

    collective = every("collective")
    return {
        "forward_s": median(lambda ranks: max(every("forward")(ranks))),
        "passes_s": median(lambda ranks: max(every("passes")(ranks))),
        "collective_s": median(lambda ranks: min(collective(ranks))),
        "waiting_s": median(lambda ranks: max(collective(ranks)) - min(collective(ranks))),
        "forwards": [rank["calls"].get("forward", 0) for rank in steps[-1]],  # of each process, as the next two
        "sweeps": [rank["calls"].get("passes", 0) for rank in steps[-1]],  # reads and writes of all weights
        "collectives": [rank["calls"].get("collective", 0) for rank in steps[-1]],
        "sent_bytes": max(rank["sent_bytes"] for rank in steps[-1]),
        "received_bytes": max(rank["received_bytes"] for rank in steps[-1]),
    }


def compared(digests) -> dict[str, dict]:
    """candidate -> whether its processes ended with the same weights, and with those of one process where they had the same batch (else
    None).

    Args:
        digests: candidate -> the digest of the weights that each of its processes ended with.
    Raises:
        Refused: they did not.
    """
    found = {}
    for name, own in digests.items():
        way = WAYS[name]
        whole = way.parts == 1
        if len(own) != way.processes or len(set(own)) > 1:
            raise Refused(f"{name}: the processes end with different weights")
        if whole and own[0] != digests[way.alone][0]:
            raise Refused(f"{name}: the weights at the end are not those of {way.alone}")
        found[name] = {"digest": own[0], "equal_weights": True, "equal_to_one": True if whole else None}
    return found


class Told:
    """For ``interleave``: the seconds of a sample are what the call itself returns."""

    name, late = "host, from a barrier to the last process", False

    def __init__(self, warm):
        self.warm = warm

    def calibrate(self, call) -> int:
        for _ in range(self.warm):
            call()
        return 1

    def sample(self, call, repeats) -> float:
        return call()


class Team:
    """So many processes, under torchrun's environment. They wait for the name of a candidate, and take a step of it."""

    def __init__(self, size, case):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), OMP_NUM_THREADS="1")
        command = [sys.executable, "-m", __name__, json.dumps(asdict(case))]
        self.ranks = [
            subprocess.Popen(
                command,
                cwd=record.ROOT,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()

    def step(self, name) -> list[dict]:
        """What each process says of its step."""
        for process in self.ranks:
            with suppress(BrokenPipeError):  # of one that has ended, which ``_said`` tells
                process.stdin.write(f"{name}\n")
                process.stdin.flush()
        return self._said()

    def end(self) -> list[dict]:
        """What each process says at its end."""
        for process in self.ranks:
            process.stdin.close()
        said = self._said()
        for process in self.ranks:
            process.wait()
        return said

    def _said(self) -> list[dict]:
        lines = [process.stdout.readline() for process in self.ranks]
        if not all(lines):
            raise RuntimeError(f"process {lines.index('')} of {len(lines)} has ended with {self.ranks[lines.index('')].wait()}")
        return [json.loads(line) for line in lines]


class Meter:
    """Seconds, calls and bytes of the parts of a step, in a process."""

    def __init__(self):
        self.spent, self.calls, self.gathered = Counter(), Counter(), 0
        zokern.ops.add_noise_ = self.of("passes", zokern.ops.add_noise_)
        zokern.ops.replay_ = self.of("passes", zokern.ops.replay_)
        gather = self.of("collective", distributed.all_gather)

        def all_gather(every, mine):
            self.gathered += mine.numel() * mine.element_size()
            return gather(every, mine)

        distributed.all_gather = all_gather

    def of(self, part, call):
        """The call, counted as a part of the step."""

        def metered(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[part] += time.perf_counter() - begin
                self.calls[part] += 1

        return metered

    def step(self, step, size) -> dict:
        """A step, begun by all processes at once. A process sends its numbers to each of the others; what gloo and TCP add is left out."""
        if size > 1:
            distributed.barrier()
        self.spent.clear()
        self.calls.clear()
        self.gathered = 0
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
        payload = self.gathered * (size - 1)
        return {"seconds": seconds, "spent": self.spent, "calls": self.calls, "sent_bytes": payload, "received_bytes": payload}


class Trained:
    """A candidate in one of its processes: a model of its own, and its steps."""

    def __init__(self, case, way, rank, meter):
        self.model = models.build(case.model, case.dtype, "cpu")
        self.optimizer = zokern.MeZO(self.model.named_parameters(), lr=LR, eps=EPS, q=way.q, perturbation="in-place")
        ids, labels = (rows[rank % way.parts :: way.parts] for rows in models.rows_of(self.model, case.batch, case.tokens))
        loss = meter.of("forward", lambda: self.model(input_ids=ids, labels=labels).loss)
        self.closure = zokern.DistributedClosure(loss, directions=way.directions)

    def step(self):
        self.optimizer.step(self.closure)

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def digest(self) -> str:
        digest = hashlib.sha256()
        for _, p in sorted(self.model.named_parameters()):
            digest.update(p.detach().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def main(case):
    """A process of a ``Team``: a step for each line that comes in, and a line of what it took; one more line at the end."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    case, size, rank = Processes(**json.loads(case)), int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if size > 1:
        distributed.init_process_group("gloo")
    meter = Meter()
    trained = {name: Trained(case, way, rank, meter) for name, way in WAYS.items() if way.processes == size}
    for line in sys.stdin:
        print(json.dumps(meter.step(trained[line.strip()].step, size)), file=said, flush=True)
    end = {"digests": {name: one.digest() for name, one in trained.items()}, "n": next(iter(trained.values())).size}
    print(json.dumps(end | record.backend(torch.device("cpu"), True)), file=said, flush=True)
    if size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
