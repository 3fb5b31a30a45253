"""An example in a process of its own: python example_worker.py EXAMPLE ARGUMENTS... It ends with an error if a thread of gloo outlives it.

One that does may abort the interpreter where it lets go of a tensor while Python ends.
"""

import runpy
import sys
from pathlib import Path

del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
if any("gloo" in name for name in threads):
    sys.exit(f"the process group is held: {threads}")
