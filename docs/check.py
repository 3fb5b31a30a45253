"""Runs every fenced `sh` and `python` block of the Markdown files given, in order: what the docs tell a user to type must work.

A file's python blocks share one namespace, as a reader would run them. Blocks of other languages (text, or none) are not run.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def run(language, code, namespace):
    if language == "python":
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                exec(compile(code, "<block>", "exec"), namespace)
            finally:
                os.chdir(ROOT)
    elif language == "sh":
        # In the repository, with its .venv's python first, as after `source .venv/bin/activate`. What a block installs goes elsewhere,
        # where it finds it.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with tempfile.TemporaryDirectory() as folder:
            found = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))
            environment = {**os.environ, "PATH": path, "PIP_TARGET": folder, "PIP_NO_DEPS": "1", "PYTHONPATH": found}
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    else:
        return False
    return True


def main(paths):
    failed = 0
    for path in paths:
        namespace = {"__name__": "__main__"}
        text = Path(path).read_text()
        for block in FENCE.finditer(text):
            where = f"{path}:{text.count(chr(10), 0, block.start()) + 1}"
            start = time.perf_counter()
            try:
                ran = run(block[1], block[2], namespace)
            except BaseException as error:
                failed += 1
                print(f"{where}: {block[1]} block failed: {type(error).__name__}: {error}", flush=True)
            else:
                print(f"{where}: {block[1]} block {'ran' if ran else 'is not run'} ({time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
