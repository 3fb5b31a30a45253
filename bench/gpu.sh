#!/usr/bin/env bash
# All that a GPU must tell, in under eight minutes: bench/gpu.sh DIR (bench/gpu.py says how)
#
# PYTHON names the interpreter (.venv/bin/python where there is one, else python3); it needs torch, triton, pybind11, ninja, setuptools,
# pytest and transformers. BENCH_COMMIT names the commit of a copy without .git.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
command -v "$python" >/dev/null || { echo "no $python: name a Python with torch in PYTHON" >&2; exit 2; }
exec "$python" "$root/bench/gpu.py" "$@"
