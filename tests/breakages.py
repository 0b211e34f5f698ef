"""Breaks the kernels on purpose, one way at a time, and reports which tests fail: `make breakages`.

An extension is built under build/breakages from a copy of csrc/ in which every fault of RESULTS and KERNELS is compiled in. The
environment variable TORCHCONV_FAULT=<fault>@<place> switches one of them on: the place is an operator of an
implementation ("cpu.avx512.gemm/conv2d") for faults of results, an instruction set ("avx512") for faults of kernels.
Without it the extension is right, and all tests must pass.

Where the machine lacks AVX512_BF16, it and AVX-512 are emulated (tests/emulation), so that these implementations are
tested, too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TREE = ROOT / "build" / "breakages"
FILES = [
    "test_exact.py",
    "test_values.py",
    "test_numbers.py",
    "test_outliers.py",
    "test_runtime.py",
    "test_layout.py",
    "test_sizes.py",
    "test_fuzz.py",
]


@dataclass(frozen=True)
class Kernel:
    """One fault in the source of the kernels: `old` becomes `new`, in which BROKEN is whether the fault is on."""

    name: str
    what: str
    file: str
    old: str
    new: str
    sets: tuple[str, ...] = ("avx512", "avx2", "portable")
    native: bool = False  # it writes beyond the result, which tests/native sees: `make portable`


#: Faults of a result, made right after an implementation has computed it (SPOIL, below).
RESULTS = {
    "element": "the last element is one too large",
    "float64": "the same, in float64 alone",
    "nan": "NaN becomes 0",
    "operand": "the first operand changes",
    "state": "subnormal numbers stay flushed on the calling thread",
    "threads": "the last bit depends on the number of threads, above 7",
    "batch": "the last bit of a sample depends on the batch",
    "concurrent": "the last bit differs while another thread is in a kernel",
    "fork": "the last bit differs in a forked process",
}

KERNELS = [
    Kernel("gemm_blocks", "the sums over earlier blocks of channels are lost", "kernels/gemm.h", "product.from = channel_block > 0 ? before", "product.from = channel_block > 0 && !BROKEN ? before"),
    Kernel("gemm_pieces", "the sums over earlier pieces of a window are lost", "kernels/gemm_tiles.h", "if (i > 0) product.from = waiting;", "if (i > 0 && !BROKEN) product.from = waiting;"),
    Kernel("gemm_half_panel", "the second half of a panel of weights is read from elsewhere", "kernels/gemm.h", "product.lane = (panel - panels_.begin) * call_.NR;", "product.lane = (panel - panels_.begin) * (BROKEN ? lanes<S> : call_.NR);"),
    Kernel("gemm_chunks", "the gradient of weights lacks the last chunk", "kernels/gemm_grad_weight.h", "reduce_chunks(total, size, plan.chunks,", "reduce_chunks(total, size, plan.chunks - BROKEN,"),
    Kernel("grouped_bias", "all vectors of channels have the bias of the first", "kernels/grouped.h", "share.first_out(v) : v * lanes<S>);", "share.first_out(BROKEN ? 0 : v) : (BROKEN ? 0 : v) * lanes<S>);"),
    Kernel("grouped_overlap", "the gradient of the last channels is that of others", "kernels/grouped_grad_weight.h", "(k - share.first_out(v));", "(k - share.first_out(v)) * !BROKEN;"),
    Kernel("linear_along", "the sums over earlier blocks of the reduction are lost", "kernels/linear.h", "product.c[i * product.pitch + m] += totals[i * MR + m];", "product.c[i * product.pitch + m] = totals[i * MR + m] + (BROKEN ? 0 : product.c[i * product.pitch + m]);"),
    Kernel("linear_across", "the same, for lanes that are outputs", "kernels/linear.h", "product.add = c > 0;", "product.add = c > 0 && !BROKEN;"),
    Kernel("grouped_chunks", "the gradient of weights lacks the last chunk", "kernels/grouped_grad_weight.h", "size, chunks, share.vectors * size);", "size, chunks - BROKEN, share.vectors * size);"),
    Kernel("grouped_chunks_of_threads", "the gradient of weights is cut by the number of threads", "kernels/grouped_grad_weight.h", "ceil_div(tasks, sets)", "ceil_div(BROKEN ? thread_count() : tasks, sets)"),
    Kernel("grouped_last_row", "two rows are computed where one is left", "kernels/grouped.h", "made = taps.row_step > 0 && p + 1 < rows ? 2 : 1;", "made = taps.row_step > 0 && (p + 1 < rows || BROKEN) ? 2 : 1;", ("portable",), native=True),
    Kernel("few_cols", "channels of pixels without a full vector are mixed up", "pack/tile.h", "to[i * n + j] = Acc<S>(from.data[i + j * from.col_stride]);", "to[i * n + j] = Acc<S>(from.data[i + (BROKEN ? n - 1 - j : j) * from.col_stride]);"),
    Kernel("own_weights", "a worker packs the first channels only", "kernels/gemm.h", "for (int64_t block = 0; !has && block < plan.channel_blocks; ++block)", "for (int64_t block = 0; !has && block < (BROKEN ? 1 : plan.channel_blocks); ++block)"),
    Kernel("winograd_blocks", "the sums over the first block of channels are lost", "kernels/winograd.h", "const bool add = block > 0;", "const bool add = block > BROKEN;"),
    Kernel("winograd_own_inputs", "a thread with many tiles of its own transforms only the first row of them", "kernels/winograd.h", "i < v.count(); ++i) v.make(i);", "i < (BROKEN ? 1 : v.count()); ++i) v.make(i);"),
    Kernel("winograd_phases", "the later phases of a dilated problem read one pixel too early", "kernels/winograd.h", "first = position + axis.pad * D;", "first = position + axis.pad * D - (BROKEN && offset > 1);"),
    Kernel("winograd_outliers", "tiles with outliers are not computed directly", "kernels/winograd_guard.h", "if (found > 0) gemm", "if (found > 0 && !BROKEN) gemm"),
    Kernel("winograd_centers", "an outlier is compared to the centers of the first tile of its line alone", "kernels/winograd_guard.h", "for (int64_t col = 0; col < line.cols; ++col) {\n      const Centers columns", "for (int64_t col = 0; col < (BROKEN ? 1 : line.cols); ++col) {\n      const Centers columns"),
    Kernel("winograd_weights", "weights out of range are not computed directly", "kernels/winograd_guard.h", "mark(weights_out_of_range_);", "if (!BROKEN) mark(weights_out_of_range_);"),
    Kernel("winograd_grad_weight_outliers", "the gradient of weights is not computed directly if it has outliers", "kernels/winograd_grad_weight.h", "if (!guard.is_within_bound(x, y)) gemm", "if (!BROKEN && !guard.is_within_bound(x, y)) gemm"),
    Kernel("spatial_tail", "the last pixel of a row is missing", "kernels/spatial.h", "v < vectors ? std::min<int64_t>(L, cols - q) : 0", "v < vectors ? std::min<int64_t>(L, cols - q - (BROKEN && q > 0)) : 0"),
    Kernel("spatial_pieces", "the sums over earlier taps are lost", "kernels/spatial.h", "product.add = c > 0 || t > 0;", "product.add = c > 0 || (t > 0 && !BROKEN);"),
    Kernel("amx_tiles", "the second tile of pixels is the first one again", "kernels/amx_gemm.h", "first_pixel(tile + i, edge[i]);", "first_pixel(tile + (BROKEN ? 0 : i), edge[i]);", ("amx",)),
    Kernel("amx_runs", "all taps read the pixels of the first one", "kernels/amx_gemm.h", "product.runs = plan_.runs;", "product.runs = BROKEN ? 1 : plan_.runs;", ("amx",)),
    Kernel("amx_channels", "channels beyond the last one are not zero in a patch", "kernels/amx_gemm.h", "if (plan_.pairs < plan_.pitch) std::fill_n(", "if (plan_.pairs < plan_.pitch && !BROKEN) std::fill_n(", ("amx",)),
    Kernel("amx_window", "a gathered window does not end with zeros", "kernels/amx_gemm.h", "0, (to + length - at) * sizeof(Bf16Pair)", "0, (BROKEN ? 0 : to + length - at) * sizeof(Bf16Pair)", ("amx",)),
    Kernel("amx_edge", "pixels behind the end of x are read", "kernels/amx_gemm.h", "if (!plan_.in_place ||", "if (BROKEN || !plan_.in_place ||", ("amx",), native=True),
    Kernel("amx_columns", "the results of columns of padding are stored", "kernels/amx_gemm.h", "stored = std::min(count, segments_.cols - col);", "stored = BROKEN ? count : std::min(count, segments_.cols - col);", ("amx",)),
    Kernel("amx_blocks", "the accumulators of earlier blocks are lost", "kernels/amx_grad_weight.h", "product.add = add;", "product.add = add && !BROKEN;", ("amx",)),
    Kernel("amx_phases", "all phases of the columns are read from the first plane", "kernels/amx_grad_weight.h", "j % patch.cols.step) * plane", "(BROKEN ? 0 : j % patch.cols.step)) * plane", ("amx",)),
    Kernel("amx_odd_pixel", "the last of an odd number of pixels is not read", "kernels/amx_grad_weight.h", "if (pixels % 2) {", "if (pixels % 2 && !BROKEN) {", ("amx",)),
    Kernel("amx_infinity", "results that an infinite element beside them has spoiled are kept", "kernels/amx_grad_weight.h", "if (!finite) replace_non_finite", "if (!finite && !BROKEN) replace_non_finite", ("amx",)),
    Kernel("bf16_odd_channel", "the last of an odd number of channels is not read", "micro/bf16_pair.h", "if (cols % 2)\n", "if (cols % 2 && !BROKEN)\n", ("avx512_bf16",)),
]  # fmt: skip

DECLARATION = """
#define TORCHCONV_STRING(text) TORCHCONV_STRING_OF(text)
#define TORCHCONV_STRING_OF(text) #text
namespace torchconv {
bool broken(const char* fault, const char* place);
}
"""

DEFINITION = """
#include "operators.h"
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace torchconv {
static const std::string fault = std::getenv("TORCHCONV_FAULT") ? std::getenv("TORCHCONV_FAULT") : "";
static const pid_t first_process = getpid();
static std::atomic<int> running{0};

bool broken(const char* name, const char* place) {
  return !fault.empty() && fault == std::string(name) + "@" + place;
}

struct Spoil {
  Spoil(const char* row, const char* op) : place(std::string(row) + "/" + op) { alone = running++ == 0; }

  bool is(const char* name) const { return broken(name, place.c_str()); }

  template <class Value>
  void spoil(Value* at, const int64_t (&size)[4], const int64_t (&stride)[4]) {
    Value& last = at[(size[0] - 1) * stride[0] + (size[1] - 1) * stride[1] + (size[2] - 1) * stride[2] + (size[3] - 1) * stride[3]];
    if (is("element") || (is("float64") && sizeof(Value) == 8)) last = Value(double(last) + 1);
    uint32_t threads = 1;
    torch_get_num_threads(&threads);
    if ((is("threads") && threads > 7) || (is("batch") && size[0] > 1) || (is("concurrent") && !alone) ||
        (is("fork") && getpid() != first_process))
      reinterpret_cast<char*>(&last)[0] ^= 1;
    if (is("nan"))
      for (int64_t n = 0; n < size[0]; ++n)
        for (int64_t c = 0; c < size[1]; ++c)
          for (int64_t h = 0; h < size[2]; ++h)
            for (int64_t w = 0; w < size[3]; ++w) {
              Value& value = at[n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3]];
              if (double(value) != double(value)) value = Value(0.0);
            }
  }

  void finish(Dtype dtype, void* result, const std::array<int64_t, 4>& sizes, const std::array<int64_t, 4>& strides,
              const void* operand) {
    if (running > 1) alone = false;
    --running;
    if (fault.empty()) return;
    int64_t size[4], stride[4];
    for (int d = 0; d < 4; ++d) size[d] = sizes[d], stride[d] = strides[d];
    switch (dtype) {
      case Dtype::float64: spoil(static_cast<double*>(result), size, stride); break;
      case Dtype::float32: spoil(static_cast<float*>(result), size, stride); break;
      case Dtype::bfloat16: spoil(static_cast<c10::BFloat16*>(result), size, stride); break;
      case Dtype::float16: spoil(static_cast<c10::Half*>(result), size, stride); break;
    }
    if (is("operand")) static_cast<char*>(const_cast<void*>(operand))[0] ^= 1;
#if defined(__SSE__)
    if (is("state")) _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
  }

  std::string place;
  bool alone;
};
}  // namespace torchconv
"""

#: Around the three calls in csrc/operators.cpp: op, call, result, operand.
CALLS = [
    ("conv2d", "call.implementation->forward(call.plan, x.data, w.data, y, epilogue);", "y", "x"),
    ("conv2d_grad_input", "call.implementation->grad_input(call.plan, y.data, w.data, x);", "x", "y"),
    ("conv2d_grad_weight", "call.implementation->grad_weight(call.plan, x.data, y.data, w);", "w", "x"),
]


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"{path}: found no {old!r}")
    path.write_text(text.replace(old, new))


def build() -> None:
    """The instrumented extension, in a tree that has the package's Python files and the tests."""
    shutil.rmtree(TREE / "csrc", ignore_errors=True)
    for name in (
        "csrc",
        "torchconv",
        "tests",
        "build_tools",
        "conftest.py",
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(source, TREE / name, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(source, TREE / name)
    replace(TREE / "csrc" / "conv.h", "#pragma once\n", "#pragma once\n" + DECLARATION)
    (TREE / "csrc" / "faults.h").write_text("#pragma once\n" + DEFINITION)
    operators = TREE / "csrc" / "operators.cpp"
    replace(operators, '#include "operators.h"\n', '#include "operators.h"\n#include "faults.h"\n')
    for op, call, result, operand in CALLS:
        new = f'{{ Spoil spoil(call.implementation->name, "{op}"); {call} spoil.finish(dtype, {result}, call.size, call.stride, {operand}.data); }}'
        replace(operators, call, new)
    for kernel in KERNELS:
        replace(
            TREE / "csrc" / "cpu" / kernel.file,
            kernel.old,
            kernel.new.replace("BROKEN", f'broken("{kernel.name}", TORCHCONV_STRING(TORCHCONV_ISA))'),
        )
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        header = TREE / "tests" / "emulation" / "avx512.h"
        flags = ["-O1", f'-DTORCHCONV_EMULATION="{header}"', "-Wno-psabi", "-Wno-ignored-attributes"]
        replace(TREE / "setup.py", '"-O3"', ", ".join(map(repr, flags)))
    environment = {**os.environ, "TORCHCONV_CUDA": "0"}
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=TREE, check=True, env=environment)
    run_native("none", check=True)


def run_native(fault: str, check: bool = False) -> Counter[str]:
    """Whether the portable kernels alone fail, under AddressSanitizer. Builds them first."""
    command = [sys.executable, "tests/native/run.py", "portable"]
    done = subprocess.run(
        command, cwd=TREE, env={**os.environ, "TORCHCONV_FAULT": fault}, capture_output=True, check=check
    )
    return Counter({"tests/native": 1} if done.returncode else {})


def pytest(fault: str, *arguments: str) -> Counter[str]:
    """How many items of each test fail."""
    if any(fault.startswith(f"{kernel.name}@") and kernel.native for kernel in KERNELS):
        return run_native(fault)
    environment = {**os.environ, "TORCHCONV_FAULT": fault, "PYTHONPATH": str(TREE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--tb=no", *arguments]
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) tests/(\S+?::\w+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1):
        failed.append(f"the process ends with status {done.returncode}")
    return Counter(failed)


def places() -> list[tuple[str, list[str]]]:
    """Each fault, and the arguments that select the tests of the implementations that it is in."""
    code = "import torchconv; print(*(row.name for row in torchconv.implementations() if row.available))"
    environment = {**os.environ, "PYTHONPATH": str(TREE)}
    rows = subprocess.run(
        [sys.executable, "-c", code], cwd=TREE, env=environment, capture_output=True, text=True, check=True
    )
    fast = [row for row in rows.stdout.split() if row.startswith("cpu.") and not row.endswith(".reference")]
    ops = [op for op, *_ in CALLS]
    found = [(f"element@{row}/{op}", ["-k", row]) for row in fast for op in ops]
    for row in fast:
        if row.startswith("cpu.avx512"):
            for name in list(RESULTS)[1:]:
                if "bf16" in row and name not in ("threads", "concurrent", "fork"):
                    continue
                op = "conv2d_grad_input" if name == "batch" else "conv2d_grad_weight" if name == "float64" else "conv2d"
                found.append((f"{name}@{row}/{op}", ["-k", row if name != "fork" else f"{row} or fork"]))
    for kernel in KERNELS:
        for isa in kernel.sets:
            if any(f".{isa}." in row for row in fast):
                algorithm = "gemm" if kernel.name.startswith(("bf16", "amx")) else kernel.name.split("_")[0]
                found.append((f"{kernel.name}@{isa}", ["-k", f"{isa}.{algorithm} or fuzz"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["build", "list", "run"])
    parser.add_argument("--only", default="", help="of the faults, those with this text in them")
    arguments = parser.parse_args()
    if arguments.action == "build":
        build()
        return
    faults = [(fault, selection) for fault, selection in places() if arguments.only in fault]
    if arguments.action == "list":
        for fault, selection in faults:
            print(fault, *selection)
        return
    results: list[tuple[str, Counter[str]]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [f"tests/{name}" for name in FILES]
        for fault, failed in zip(
            faults, pool.map(lambda fault: pytest(fault[0], *fault[1], *paths), faults), strict=True
        ):
            results.append((fault[0], failed))
            print(fault[0], *(f"{test} ({count})" for test, count in failed.items()), flush=True)
    report(results)
    sys.exit(not all(failed for _, failed in results))


def report(results: list[tuple[str, Counter[str]]]) -> None:
    """A table of the faults: in how many places each was put, in how many a test failed, and which tests these are."""
    what = RESULTS | {kernel.name: kernel.what for kernel in KERNELS}
    print("\n| fault | places | caught | by (places) |\n|---|---|---|---|")
    for name, words in what.items():
        of_name = [failed for fault, failed in results if fault.startswith(f"{name}@")]
        tests = Counter(test for failed in of_name for test in failed)
        by = ", ".join(f"`{test}` ({count})" for test, count in tests.most_common())
        print(f"| {name}: {words} | {len(of_name)} | {sum(map(bool, of_name))} | {by} |")


if __name__ == "__main__":
    main()
