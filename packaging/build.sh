#!/usr/bin/env bash
# packaging/build.sh DIR PYTHON...: a release of the last commit, in DIR: its source, and a wheel for Linux for each PYTHON, built
# from that source alone. With the CUDA kernels, or it fails; ZOKERN_CUDA=0 leaves them out.
# The same commit and the same compilers make the same bytes: every time is the commit's, and whatever else builds is pinned.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
shift
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH ZOKERN_CUDA=${ZOKERN_CUDA-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pins=$PWD/constraints/pinned.txt
rm -rf "$out"
mkdir -p "$out" "$work/tree"

git archive HEAD | tar -x -C "$work/tree"
uv build --sdist --build-constraints "$pins" -o "$work" "$work/tree"
# setuptools packs a source with the time of day: the same files once more.
source=$(basename "$work"/zokern-*.tar.gz .tar.gz)
tar -x -f "$work/$source.tar.gz" -C "$work"
tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --format=ustar \
    -C "$work" -c "$source" | gzip -9n >"$out/$source.tar.gz"

for python; do
    executable=$("$python" -c 'import sys; print(sys.executable)')
    uv build --wheel --build-constraints "$pins" --python "$executable" -o "$work/wheels" "$out/$source.tar.gz"
done
# OpenMP is torch's: zokern imports _cpu after torch, whose library of this name is then there. One in the wheel would be loaded as
# well, and not used: symbols are looked up in torch's first.
for wheel in "$work"/wheels/*.whl; do
    auditwheel repair --exclude libgomp.so.1 -w "$out" "$wheel"
    auditwheel show "$wheel" | sed -n '/manylinux/p' | tail -1
done
twine check --strict "$out"/*
check-wheel-contents "$out"/*.whl
(cd "$out" && sha256sum -- *)
