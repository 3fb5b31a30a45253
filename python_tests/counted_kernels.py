"""What bench/sass.py counts, for many command lines: one process, which imports Triton once and disassembles each file once."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys
import sass
for given in json.loads(sys.stdin.read()):
    sys.argv[1:] = given
    sass.main()
"""


def count(folder, *commands):
    """-> {the arguments: their lines}, what was printed. A kernel that cannot be counted has no line, and what was printed says why."""
    given = [[*command, "--json", str(folder / f"{n}.jsonl")] for n, command in enumerate(commands)]
    # TRITON_INTERPRET would replace the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "bench"), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {}
    for command, arguments in zip(commands, given):
        lines[command] = [json.loads(line) for line in Path(arguments[-1]).read_text().splitlines()]
    return lines, done.stdout
