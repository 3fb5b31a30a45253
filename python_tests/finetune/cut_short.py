"""Runs of ``zokern finetune`` that are cut short, and what their message advises: python cut_short.py FOLDER END ... -- OPTIONS.

An END is tmpfs:N, a disk of N KiB (which needs ``unshare --map-root-user --mount``); limit:N, files of no more than N KiB; killed:0,
kill -9 when the model is about to be saved, the last checkpoint being there; or whole:0, nothing. Prints a JSON line each: {"end", "runs":
[[exit code, last line of standard error], ...], "left": the names after the first run, "found": name -> sha256 after the last}. One process
imports what takes long, and forks a child for every end.
"""

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import accelerate  # noqa: F401
import peft  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

from zokern.cli import app
from zokern.finetune import output, report


def command(*arguments):
    """-> [exit code, the last line of standard error]; of a raw exception [1, what it is]."""
    with redirect_stderr(io.StringIO()) as error:
        try:
            app(list(map(str, arguments)))
        except SystemExit as end:
            return [end.code or 0, error.getvalue().rstrip().rpartition("\n")[2]]
        except Exception as raw:
            return [1, repr(raw)]
    return [0, ""]


def killed(*arguments):
    """As ``command``, in a process that dies where the model would be saved."""
    if not (child := os.fork()):
        begin = output.whole
        output.whole = lambda path: os.kill(os.getpid(), signal.SIGKILL) if (path / output.LOG).exists() else begin(path)
        command(*arguments)
        os._exit(1)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ""]


def limit(kind, folder, size):
    """size: KiB; None: there is room again."""
    if kind == "tmpfs":
        how = ["-o", f"size={size}k", "-t", "tmpfs", "none"] if size is not None else ["-o", "remount,size=1g"]
        subprocess.run(["mount", *how, folder], check=True)
    elif kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY if size is None else size << 10, resource.RLIM_INFINITY))


def run_of(end, folder, options):
    kind, _, size = end.partition(":")
    folder.mkdir()
    limit(kind, folder, int(size))
    run = folder / "run"
    runs = [(killed if kind == "killed" else command)("finetune", *options, "--out", run)]
    left = sorted(path.name for path in run.iterdir()) if run.is_dir() else None
    limit(kind, folder, None)
    if runs[0][0]:
        runs.append(command("finetune", *(["--resume", run] if left else [*options, "--out", run])))
    names = ("model.safetensors", "trajectory.jsonl") if not runs[-1][0] else ()
    found = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}
    return {"end": end, "runs": runs, "left": left, "found": found}


if __name__ == "__main__":
    report.draw = lambda *given: given[-1].touch()  # takes half the time of a small run
    where = sys.argv.index("--")
    folder, *ends = sys.argv[1:where]
    for end in ends:
        if not os.fork():
            print(f"RESULT {json.dumps(run_of(end, Path(folder) / end.replace(':', '-'), sys.argv[where + 1 :]))}", flush=True)
            os._exit(0)  # at once: taking down what the parent has imported takes seconds
        os.wait()
