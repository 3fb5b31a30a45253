"""Runs of ``zokern finetune`` on disks that are too small: python full_disk.py tmpfs|limit FOLDER SIZES ... -- OPTIONS.

Of every size, in KiB: a run on a disk of so many, or whose files may not be larger; then, with room, what its message advises. Prints a
JSON line each: {"size", "runs": [[exit code, last line of standard error], ...], "model": sha256 of what is saved, "left": names after the
first run}. One process imports what takes long, and forks a child for every size. A tmpfs needs ``unshare --map-root-user --mount``.
"""

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import accelerate  # noqa: F401
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

from zokern.cli import app


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


def limited(kind, folder, size):
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", folder], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size << 10, resource.RLIM_INFINITY))


def unlimited(kind, folder):
    if kind == "tmpfs":
        subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def of_size(kind, folder, size, options):
    folder.mkdir()
    limited(kind, folder, size)
    run = folder / "run"
    runs = [command("finetune", *options, "--out", run)]
    left = sorted(path.name for path in run.iterdir()) if run.is_dir() else None
    unlimited(kind, folder)
    if runs[0][0]:
        given = ["--resume", run] if "--resume" in runs[0][1] else [*options, "--out", run]
        runs.append(command("finetune", *given))
    saved = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() if not runs[-1][0] else None
    return {"size": size, "runs": runs, "model": saved, "left": left}


if __name__ == "__main__":
    where = sys.argv.index("--")
    kind, folder, *sizes = sys.argv[1:where]
    for size in map(int, sizes):
        if not os.fork():
            found = of_size(kind, Path(folder) / str(size), size, sys.argv[where + 1 :])
            print(f"RESULT {json.dumps(found)}", flush=True)
            os._exit(0)  # at once: taking down what the parent has imported takes seconds
        os.wait()
