"""Runs every fenced `sh` and `python` block of the Markdown files given, in order, and every cell of the notebooks: what the docs tell a
user to type must work.

A file's python blocks share one namespace, as a reader would run them. Blocks of other languages (text, or none) are not run. A notebook
runs in a folder of its own, up to the first cell that fails; with --store its outputs are written into it.
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
            (ROOT / "out").mkdir(exist_ok=True)
            os.symlink(ROOT / "out", "out")  # what blocks before it have made there
            try:
                exec(compile(code, "<block>", "exec"), namespace)
            finally:
                os.chdir(ROOT)
    elif language == "sh":
        with tempfile.TemporaryDirectory() as installed:
            command = ["bash", "-euo", "pipefail", "-c", code]
            subprocess.run(command, cwd=ROOT, env=environment(installed), check=True, stdout=subprocess.DEVNULL)
    else:
        return False
    return True


def environment(installed):
    """As after `source .venv/bin/activate`, for a python of .venv; what is installed goes to a folder, where it is found."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), installed]))
    return {**os.environ, "PATH": path, "PIP_TARGET": installed, "PIP_NO_DEPS": "1", "PYTHONPATH": found}


def run_notebook(path, store):
    """-> whether all cells ran. ``store``: once all did, their outputs are kept in the file, without the path of the folder they ran in."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as installed:
        options = dict(kernel_name="python3", record_timing=False, coalesce_streams=True)
        client = NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options)
        with client.setup_kernel(env=environment(installed)):
            for number, cell in enumerate(notebook.cells):
                start = time.perf_counter()
                try:
                    client.execute_cell(cell, number)
                except Exception as error:
                    print(f"{path}: cell {number} failed: {type(error).__name__}: {error}", flush=True)
                    return False
                if cell.cell_type == "code":
                    print(f"{path}: cell {number} ran ({time.perf_counter() - start:.0f} s)", flush=True)
    if store:
        Path(path).write_text(nbformat.writes(notebook).replace(f"{folder}/", "") + "\n")
    return True


def main(arguments):
    failed, store = 0, "--store" in arguments
    for path in (argument for argument in arguments if argument != "--store"):
        if path.endswith(".ipynb"):
            failed += not run_notebook(path, store)
            continue
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
