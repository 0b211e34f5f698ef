#!/usr/bin/env bash
# Everything that needs a GPU, with one command, which writes what it sees to a folder:
#
#     tests/gpu.sh [FOLDER]        (default: build/gpu; needs nvcc, and a Python with torch, pybind11, ninja, pytest)
#
# It builds and installs torchconv with its CUDA kernels, runs the tests, then the memory checkers of compute-sanitizer
# on a part of them, then the benchmarks beside cuDNN. A step that fails does not keep the next ones from running.
set -uo pipefail
out=$(realpath -m "${1:-build/gpu}")
cd "$(dirname "$0")/.."
mkdir -p "$out"
python=${PYTHON:-python3}
failed=()

step() {  # NAME SECONDS COMMAND...: its output goes to $out/NAME.txt, and its last lines to the screen
  local name=$1 seconds=$2
  shift 2
  echo "== $name"
  timeout "$seconds" "$@" > "$out/$name.txt" 2>&1 || failed+=("$name")
  tail -n 25 "$out/$name.txt"
}

nvidia-smi --query-gpu=name,driver_version --format=csv > "$out/gpu.txt"
export TORCHCONV_CUDA=1
step build 900 "$python" -m pip install --no-build-isolation --no-deps .
away=$(mktemp -d)  # where the package in this folder, which has no extension, is not found
cp -r tests benchmarks pyproject.toml conftest.py "$away"
cd "$away"
step rows 60 "$python" -m torchconv
step tests 600 "$python" -m pytest -q -x --maxfail=20 -p no:cacheprovider -m "not slow" \
  tests/test_cuda.py tests/test_exact.py tests/test_values.py tests/test_autograd.py
step large 300 "$python" -m pytest -q -p no:cacheprovider -m slow tests/test_cuda.py
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck initcheck; do
    step "$tool" 240 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py -k sanitizer
  done
fi
name=$("$python" -c "import torch; print(torch.cuda.get_device_name().lower().replace(' ', '-'))")
bench() {  # NAME SECONDS ARGUMENTS...
  local what=$1 seconds=$2
  shift 2
  step "bench-$what" "$((seconds + 60))" "$python" benchmarks/bench_gpu.py --rounds 7 --seconds "$seconds" \
    --out "$out/$name-$what" "$@"
}
bench depthwise-bfloat16 120 --dtype bfloat16 --batch 64 --layer depthwise
bench depthwise-float32 120 --dtype float32 --batch 64 --layer depthwise
bench grouped-bfloat16 60 --dtype bfloat16 --batch 64 --network resnext50_32x4d --layer g32
bench stem-bfloat16 60 --dtype bfloat16 --batch 64 --layer 3-\>
bench resnet50-bfloat16 120 --dtype bfloat16 --batch 64 --network resnet50
bench resnet50-float32 120 --dtype float32 --batch 64 --network resnet50
bench resnet50-tf32 60 --dtype float32 --tf32 --batch 64 --network resnet50
bench resnet50-deterministic 60 --dtype bfloat16 --deterministic --op grad_weight --batch 64 --network resnet50

echo "== failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
