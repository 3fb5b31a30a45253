"""Commands of zokern, each in a process of its own that ends as any does, forked from one that has imported everything: they begin in
milliseconds instead of seconds, and can be killed, interrupted, or left without space on the disk at a chosen moment (moments.c)."""

import atexit
import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TEXTS = ("out", "error", "events", "code")


@dataclass
class Ended:
    """How a command ended: exit code (negative: the signal), what it printed, its events on files, its seconds."""

    code: int
    out: str
    error: str
    events: list[str]
    seconds: float

    @property
    def line(self) -> str | None:
        """Where it ended as input does that cannot be used, with code 2 and one line about it at the end: that line."""
        *others, last = self.error.rstrip("\n").split("\n")
        last = last.rpartition("\r")[2]
        good = self.code == 2 and last.startswith("error: ") and not any("error: " in line or "Traceback" in line for line in others)
        return last if good else None


class Forks:
    """
    Args:
        folder: for what commands print.
        warm: arguments of a command that ends well, from which is learnt what there is to import.
    """

    def __init__(self, folder: Path, warm: list):
        self.folder, self.begun = folder, 0
        library = folder / "moments.so"
        subprocess.run(["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-o", library, HERE / "moments.c", "-ldl"], check=True)
        more = {"LD_PRELOAD": library, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        environment = {**os.environ, **more, "PYTHONPATH": str(HERE.parents[1])}
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        done = self.run(*warm, modules=str(folder / "modules"))
        assert done.code == 0, done.error
        self._order(modules=str(folder / "modules"))

    def _order(self, **order):
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()

    def start(self, *arguments, below: Path | None = None, kill: int = -1, room: int = -1, **more) -> "Command":
        """
        Args:
            below: the folder whose events count.
            kill: at this event, from 1. Default: never.
            room: bytes that can be written there until the disk is full. Default: any.
        """
        self.begun += 1
        place = self.folder / str(self.begun)
        arguments = list(map(str, arguments))
        return Command(int(self._order(arguments=arguments, place=str(place), moments=[str(below or ""), kill, room], **more)), place)

    def run(self, *arguments, **moments) -> Ended:
        return self.start(*arguments, **moments).wait()

    def close(self):
        self.server.communicate()


class Command:
    """One that has begun."""

    def __init__(self, pid: int, place: Path):
        self.pid, self.place, self.begin = pid, place, time.perf_counter()

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def reach(self, events: int) -> None:
        """Wait until so many events have been, or it has ended."""
        told, code = self.place.with_suffix(".events"), self.place.with_suffix(".code")
        while not code.exists() and not (told.exists() and told.read_bytes().count(b"\n") >= events):
            time.sleep(0.001)

    def wait(self, seconds=300) -> Ended:
        code, until = self.place.with_suffix(".code"), time.time() + seconds
        while not code.exists():
            time.sleep(0.002)
            if time.time() > until:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"after {seconds} s: {self.place.with_suffix('.error').read_text()}")
        files = [self.place.with_suffix(f".{name}") for name in TEXTS]
        out, error, events, code = [file.read_text(errors="replace") for file in files]
        for file in files:
            file.unlink()
        return Ended(int(code), out, error, events.splitlines(), time.perf_counter() - self.begin)


def serve():
    """An order a line on standard input, and the id of its process on standard output; a file has its code when it has ended."""
    import zokern.cli  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        if "arguments" not in order:
            for name in Path(order["modules"]).read_text().split():
                with suppress(Exception):
                    importlib.import_module(name)
            gc.collect()
            gc.freeze()  # what has been imported is no garbage: Trainer looks for that in every run
            print("imported", flush=True)
        elif not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if not (pid := os.fork()):
                return order
            print(pid, flush=True)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            draft = Path(f"{order['place']}.draft")
            draft.write_text(str(code))
            draft.rename(f"{order['place']}.code")
            os._exit(0)
    return None


def become(order):
    """The command of an order, in this process."""
    names = {0: os.devnull} | {fd: f"{order['place']}.{name}" for fd, name in enumerate(TEXTS[:2], 1)}
    for fd, name in names.items():
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(file, fd)
        os.close(file)
    if "modules" in order:
        atexit.register(lambda: Path(order["modules"]).write_text("\n".join(sys.modules)))
    below, kill, room = order["moments"]
    events = os.open(f"{order['place']}.events", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    ctypes.CDLL(None).moments(below.encode(), ctypes.c_long(kill), ctypes.c_longlong(room), events)
    sys.argv[1:] = order["arguments"]

    import torch

    from zokern import evolve, finetune
    from zokern.__main__ import main

    torch.set_num_threads(1)
    evolve.report.draw = finetune.report.draw = lambda *given: given[-1].touch()  # it takes as long as all else
    main()


if __name__ == "__main__":
    if (given := serve()) is not None:
        become(given)
