#!/usr/bin/env bash
# packaging/smoke.sh FILE PYTHON [REQUIREMENT...]: installs FILE, a wheel or a source of zokern, into a new environment of PYTHON, with
# the REQUIREMENTs, such as torch==2.6.0, and tries what was installed. packaging/smoke.sh dist/*cp310*.whl python3.10 torch==2.6.0
set -euo pipefail
file=$(realpath "$1") smoke=$(realpath "$(dirname "$0")/smoke.py") python=$2
shift 2
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$python" -m venv "$environment"
cd "$environment" # from where no source of zokern is seen
bin/pip install -q --upgrade pip
bin/pip install -q "$file" "$@"
bin/python -I "$smoke"
