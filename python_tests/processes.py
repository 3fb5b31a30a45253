"""Processes of a test, over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def run(script, processes, out, *args, timeout=400):
    """``script OUT args`` in so many processes -> (exit code, log) of each. ``script``: a file, or the words of a command of Python's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_tests"), os.environ.get("PYTHONPATH", "")])
    shared = dict(PYTHONPATH=path, OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    shared |= dict(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
    logs, begun = [out / f"{processes}-{rank}.log" for rank in range(processes)], []
    for rank, path in enumerate(logs):
        with open(path, "w") as log:
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            begun.append(
                subprocess.Popen(
                    [sys.executable, *([script, out] if isinstance(script, str) else script), *args],
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        codes = [process.wait(timeout=timeout) for process in begun]
    finally:
        for process in begun:
            process.kill()
    return [(code, log.read_text()) for code, log in zip(codes, logs)]


def results(script, processes, out, *args, name=None, **settings):
    """What each process of a script has saved, as ``{name}-{rank}.pt``; all of them must have ended well, and have stayed together."""
    ended = run(script, processes, out, *args, **settings)
    assert not any(code for code, _ in ended), "\n".join(log[-3000:] for _, log in ended)
    assert not any("walk apart" in log for _, log in ended)
    return [torch.load(out / f"{name or processes}-{rank}.pt") for rank in range(processes)]
