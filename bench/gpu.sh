#!/usr/bin/env bash
# All that a GPU must tell, in under eight minutes: bench/gpu.sh DIR
#
# Builds a copy of this checkout from source, without a network, runs the GPU's tests, some of them under compute-sanitizer, and
# every suite of benchmarks, times the kernels with 7 rounds of Philox too, counts instructions, and leaves its files in DIR;
# docs/benchmarking.md says what is in them, summary.txt how each part went. One part that fails does not stop the others; the
# exit status is then 1. Without a GPU the same parts run small, in Triton's interpreter: a dry run.
#
# PYTHON names the interpreter (.venv/bin/python where there is one, else python3); it needs torch, triton, pybind11, ninja,
# setuptools and pytest. BENCH_COMMIT names the commit of a copy without .git.
set -u

[ $# -eq 1 ] || { echo "usage: bench/gpu.sh DIR" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
python=$("$python" -c 'import sys; print(sys.executable)') || { echo "no $python: name a Python with torch in PYTHON" >&2; exit 2; }
if [ -e "$root/.git" ]; then
    BENCH_COMMIT=$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)
    export BENCH_COMMIT
fi

# A copy, so that nothing in the checkout changes under whoever works in it.
copy=$(mktemp -d)
seven=$(mktemp -d)
trap 'rm -rf "$copy" "$seven"' EXIT
for folder in "$copy" "$seven"; do
    (cd "$root" && cp -r setup.py pyproject.toml README.md LICENSE csrc zokern bench python_tests "$folder") || exit 2
    find "$folder" -name '*.so' -delete
done
# The noise of seven rounds is another noise: its oracle has seven as well.
sed -i 's/^ROUNDS = 10$/ROUNDS = 7/' "$seven/zokern/noise/spec.py"
sed -i 's/kRounds = 10;/kRounds = 7;/' "$seven/csrc/noise/philox.hpp"
cd "$copy" || exit 2
export PYTHONPATH=$copy HF_HUB_OFFLINE=1
rm -f "$out"/{summary,build,tests,sass,nvidia-smi,sanitizer,bench}.txt "$out"/{bench,rounds-7,sass}.jsonl

failed=0
part() { # part NAME FILE SECONDS COMMAND...: run it, append what it says to FILE, and its fate to the summary
    local name=$1 file=$2 limit=$3 start=$SECONDS status fate
    shift 3
    { echo "== $name"; timeout -k 5 "$limit" "$@"; } </dev/null >>"$out/$file" 2>&1
    status=$?
    case $status in
        0) fate=ok ;;
        124 | 137) fate="FAILED: over $limit s" ;;
        *) fate="FAILED: exit status $status" ;;
    esac
    [ $status -eq 0 ] || failed=$((failed + 1))
    printf '%-20s %4d s  %-24s %s\n' "$name" $((SECONDS - start)) "$fate" "$file" | tee -a "$out/summary.txt"
}

gpu=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "")' 2>/dev/null)
{
    date -u '+%Y-%m-%dT%H:%M:%SZ'
    echo "commit ${BENCH_COMMIT:-unknown}"
    if [ -n "$gpu" ]; then
        echo "GPU of compute capability $gpu"
    else
        echo "no GPU here (torch.cuda.is_available() is False): a dry run, its times mean nothing"
    fi
} | tee -a "$out/summary.txt"

record=$out/bench.jsonl
state=(nvidia-smi -q -d CLOCK,MEMORY,PERFORMANCE,POWER,TEMPERATURE,UTILIZATION)
in_seven=(env -C "$seven" PYTHONPATH="$seven")
built=()
case $gpu in 80 | 90) built=(--built) ;; esac # what the build has made for this GPU; for others nvcc is asked
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$gpu" ]; then
    part "state before" nvidia-smi.txt 15 "${state[@]}"
    part build build.txt 150 env ZOKERN_CUDA=1 "$python" setup.py build_ext --inplace
    "${in_seven[@]}" ZOKERN_CUDA=1 "$python" setup.py build_ext --inplace >"$out/build-rounds-7.txt" 2>&1 </dev/null &
    building=$!
    part "tests: gpu" tests.txt 80 "$python" -m pytest -q -m gpu
    if [ -n "$sanitizer" ]; then
        part sanitizer sanitizer.txt 60 "$sanitizer" --error-exitcode 9 \
            "$python" -m pytest -q -m gpu python_tests/kernels/test_cuda.py -k "oracle or bfloat16"
    else
        echo "sanitizer: left out, there is no compute-sanitizer" | tee -a "$out/summary.txt"
    fi
    wait "$building"
    part "bench: kernels" bench.txt 80 "$python" -m bench --suite kernels --out "$record"
    part "bench: step" bench.txt 150 "$python" -m bench --suite step --out "$record"
    part "bench: memory" bench.txt 60 "$python" -m bench --suite memory --out "$record"
    part "bench: replay" bench.txt 60 "$python" -m bench --suite replay --out "$record"
    part "bench: drift" bench.txt 20 "$python" -m bench --suite drift --out "$record"
    part "bench: 7 rounds" bench.txt 60 "${in_seven[@]}" "$python" -m bench --suite kernels --dtype bf16 --out "$out/rounds-7.jsonl"
    part "sass: triton" sass.txt 40 "$python" bench/sass.py --arch "$gpu" --json "$out/sass.jsonl"
    part "sass: cuda" sass.txt 40 "$python" bench/sass.py --backend cuda "${built[@]}" --arch "$gpu" --json "$out/sass.jsonl"
    part "sass: updates" sass.txt 60 "$python" bench/sass.py --backend cuda "${built[@]}" --rule momentum adam --arch "$gpu" --json "$out/sass.jsonl"
    part "state after" nvidia-smi.txt 15 "${state[@]}"
else
    echo "nvidia-smi and compute-sanitizer are not asked: no GPU" | tee "$out/nvidia-smi.txt" >"$out/sanitizer.txt"
    part build build.txt 240 "$python" setup.py build_ext --inplace
    part "build: 7 rounds" build.txt 240 "${in_seven[@]}" ZOKERN_CUDA=0 "$python" setup.py build_ext --inplace
    part "tests: gpu" tests.txt 120 "$python" -m pytest -qq -m gpu --collect-only
    part "tests: kernels" tests.txt 120 "$python" -m pytest -qq -m "not gpu" python_tests/kernels --collect-only
    part "bench: kernels" bench.txt 120 env TRITON_INTERPRET=1 \
        "$python" -m bench --suite kernels --quick --backend triton --dtype bf16 --out "$record"
    part "bench: step" bench.txt 120 "$python" -m bench --suite step --quick --out "$record"
    part "bench: memory" bench.txt 120 "$python" -m bench --suite memory --quick --out "$record"
    part "bench: replay" bench.txt 120 "$python" -m bench --suite replay --quick --out "$record"
    part "bench: 7 rounds" bench.txt 120 "${in_seven[@]}" "$python" -m bench --suite kernels --quick --dtype fp32 --out "$out/rounds-7.jsonl"
    part "sass: triton" sass.txt 120 "$python" bench/sass.py --arch 90 --dtype bf16 --terms 1 --decay no --json "$out/sass.jsonl"
    part "sass: cuda" sass.txt 120 "$python" bench/sass.py --backend cuda --arch 90 --json "$out/sass.jsonl"
    part "sass: updates" sass.txt 120 "$python" bench/sass.py --backend cuda --rule momentum --arch 90 --json "$out/sass.jsonl"
fi

echo "$SECONDS s in all, $failed parts failed" | tee -a "$out/summary.txt"
[ "$failed" -eq 0 ]
