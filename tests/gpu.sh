#!/usr/bin/env bash
# Everything that needs a GPU, with one command:
#
#     tests/gpu.sh [STEP...]        steps: build tests large sanitize bench (all, unless some are named)
#
# It installs torchconv with its CUDA kernels, runs the tests, those of large tensors, the tools of compute-sanitizer on
# a part of them, and the benchmarks beside cuDNN. It needs nvcc, and a Python ($PYTHON) with torch, pybind11, ninja and
# pytest. What each step says goes to a folder ($OUT, or build/gpu). A step that fails does not keep others from running.
# On an H100 each of the steps is meant to take less than ten minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${OUT:-build/gpu}")
mkdir -p "$out"
python=${PYTHON:-python3}
steps=${*:-build tests large sanitize bench}
failed=()

say() {  # NAME SECONDS COMMAND...: its output goes to $out/NAME.txt, and the end of that to the screen
  local name=$1 seconds=$2
  shift 2
  echo "== $name"
  timeout "$seconds" "$@" > "$out/$name.txt" 2>&1 || failed+=("$name")
  tail -n 25 "$out/$name.txt"
}

bench() {  # NAME SECONDS ARGUMENTS OF bench_gpu.py...
  local name=$1 seconds=$2
  shift 2
  say "bench-$name" "$((seconds + 30))" "$python" benchmarks/bench_gpu.py --rounds 7 --batch 64 --seconds "$seconds" \
    --out "$out/$gpu-$name" --plot "$out/$gpu-$name.png" "$@"
}

if [[ $steps == *build* ]]; then
  TORCHCONV_CUDA=1 say build 560 "$python" -m pip install --no-build-isolation --no-deps .
fi
# The package in this folder has no extension: the tests run where it is not found.
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
cp -r tests benchmarks pyproject.toml "$away"
cd "$away"
say machine 60 bash -c "nvidia-smi --query-gpu=name,driver_version --format=csv; $python -m torchconv"
gpu=$("$python" -c "import torch; print(torch.cuda.get_device_name().lower().replace(' ', '-'))") || exit 1

if [[ $steps == *tests* ]]; then
  parallel=$("$python" -c "import xdist" 2> /dev/null && echo "-n 8")
  # shellcheck disable=SC2086
  OMP_NUM_THREADS=2 say tests 420 "$python" -m pytest -q $parallel --maxfail=20 --durations=10 -p no:cacheprovider \
    -m "not slow" -k cuda tests/test_cuda.py tests/test_exact.py tests/test_values.py tests/test_autograd.py \
    tests/test_bits.py
fi
if [[ $steps == *large* ]]; then
  say large 150 "$python" -m pytest -q -p no:cacheprovider -m slow tests/test_cuda.py
fi
if [[ $steps == *sanitize* ]]; then
  for tool in memcheck racecheck initcheck synccheck; do
    ours=(--kernel-name kernel_substring=torchconv)
    [[ $tool == initcheck ]] && ours=()  # it has to see who writes what our kernels read
    say "$tool" 140 compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 "${ours[@]}" \
      "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py -k not_aligned
  done
fi
if [[ $steps == *bench* ]]; then
  bench depthwise-bfloat16 80 --dtype bfloat16 --layer depthwise
  bench depthwise-float32 80 --dtype float32 --layer depthwise
  bench grouped-bfloat16 40 --dtype bfloat16 --layer g32
  bench stem-bfloat16 30 --dtype bfloat16 --layer " 3->"
  bench resnet50-bfloat16 90 --dtype bfloat16 --network resnet50
  bench resnet50-float32 80 --dtype float32 --network resnet50
  bench resnet50-tf32 50 --dtype float32 --tf32 --network resnet50
  bench resnet50-deterministic 30 --dtype bfloat16 --deterministic --op grad_weight --network resnet50
fi

echo "== failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
