"""Which implementation does what, how one is chosen, and how the fast ones agree with one another."""

import os
import subprocess
import sys

import grid
import pytest
import torch
from cases import CASES, Case, arrange, integers, normals

import torchconv
from torchconv import _C

OPS = ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"]
KERNELS = ["gemm", "grouped", "spatial", "winograd"]
ROWS = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
SETS = sorted({row.split(".")[1] for row in ROWS if row.endswith("spatial")})  # those that have all kernels
FULL_ROWS = [f"cpu.{isa}.{kernel}" for isa in SETS for kernel in KERNELS]
PAIRS, AMX = "cpu.avx512_bf16.gemm", "cpu.amx.gemm"

#: Where there is nothing to convolve, the reference fills in the zeros.
NOT_EMPTY = [case.name for case in CASES if 0 not in case.x]
PLAIN_3X3 = ["3x3", "3x3_valid", "depthwise", "depthwise_of_16"]
DILATED_3X3 = ["dilated"]


def operands(case: Case, op: str, fill=normals, dtype=torch.float32):
    x, w, y = (fill(size).to(dtype) for size in (case.x, case.w, case.y))
    if op == "conv2d":
        return x, w
    return (y, w, case.x[2:]) if op == "conv2d_grad_input" else (x, y, case.w[2:])


def chosen(
    case: Case, op: str, names: str | None = None, layout: str = "contiguous", dtype: torch.dtype = torch.float32
) -> str:
    a, b, *rest = operands(case, op, dtype=dtype)
    return torchconv.chosen(op, arrange(a, layout), arrange(b, layout), *rest, *case.geometry, names)


def cases_of(row: str, op: str, dtype: torch.dtype = torch.float32) -> list[str]:
    return [case.name for case in CASES if chosen(case, op, f"{row},cpu.reference", dtype=dtype) == row]


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("op", OPS)
def test_cases_that_each_kernel_supports(isa, op):
    assert cases_of(f"cpu.{isa}.gemm", op) == NOT_EMPTY
    dilated = [] if op == "conv2d_grad_weight" else DILATED_3X3
    assert set(cases_of(f"cpu.{isa}.winograd", op)) == {*PLAIN_3X3, *dilated}
    assert {"grouped", "depthwise", "depthwise_multiplier"} <= set(cases_of(f"cpu.{isa}.grouped", op))
    assert cases_of(f"cpu.{isa}.linear", op) == ([] if op == "conv2d_grad_weight" else ["window_is_input"])


@pytest.mark.parametrize("op", OPS)
def test_the_choice(op):
    best = next(row.split(".")[1] for row in ROWS if row.split(".")[1] in SETS)
    wide = Case("wide", (2, 64, 14, 14), (64, 64, 3, 3), padding=(1, 1, 1, 1))
    depthwise = Case("depthwise", (2, 64, 14, 14), (64, 1, 3, 3), padding=(1, 1, 1, 1), groups=64)
    pointwise = Case("pointwise", (2, 64, 14, 14), (64, 64, 1, 1))
    assert chosen(wide, op) == f"cpu.{best}.winograd"
    assert chosen(wide, op, "!winograd") == f"cpu.{best}.gemm"
    assert chosen(depthwise, op) == f"cpu.{best}.grouped"
    assert chosen(pointwise, op, layout="channels_last") == f"cpu.{best}.gemm"
    window = Case("window", (2, 64, 7, 7), (64, 64, 7, 7))
    assert chosen(window, op) == f"cpu.{best}.{'gemm' if op == 'conv2d_grad_weight' else 'linear'}"
    few_channels = Case("few_channels", (2, 1, 28, 28), (6, 1, 5, 5))
    assert chosen(few_channels, op) == f"cpu.{best}.spatial"


@pytest.mark.skipif(PAIRS not in ROWS, reason="this machine does not have AVX512_BF16")
@pytest.mark.parametrize("op", OPS)
def test_pairs(op):
    """Products of pairs of bfloat16: of nothing else, and not where another kernel saves more."""
    assert cases_of(PAIRS, op, torch.bfloat16) == NOT_EMPTY
    assert not any(cases_of(PAIRS, op, dtype) for dtype in (torch.float64, torch.float32, torch.float16))
    pointwise = Case("pointwise", (2, 64, 14, 14), (64, 64, 1, 1))
    wide = Case("wide", (2, 64, 14, 14), (64, 64, 3, 3), padding=(1, 1, 1, 1))
    assert chosen(pointwise, op, "!amx", dtype=torch.bfloat16) == PAIRS
    assert chosen(wide, op, "!amx", dtype=torch.bfloat16) == "cpu.avx512_bf16.winograd"
    assert chosen(wide, op, "!amx,!winograd", dtype=torch.bfloat16) == PAIRS


@pytest.mark.skipif(AMX not in ROWS, reason="needs AMX; `make amx` runs it on emulated tiles")
@pytest.mark.parametrize("op", OPS)
def test_amx(op):
    """Bfloat16 with 16 channels and more, and first layers; few pixels, few filters and depthwise layers are left."""
    assert cases_of(AMX, op, torch.bfloat16) == NOT_EMPTY
    assert not any(cases_of(AMX, op, dtype) for dtype in (torch.float64, torch.float32, torch.float16))
    pointwise = Case("pointwise", (2, 64, 14, 14), (64, 64, 1, 1))
    strided = Case("strided", (2, 16, 15, 15), (16, 16, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    groups = Case("groups", (2, 64, 14, 14), (64, 16, 3, 3), padding=(1, 1, 1, 1), groups=4)
    for case in pointwise, strided, groups:
        for layout in "contiguous", "channels_last":
            assert chosen(case, op, layout=layout, dtype=torch.bfloat16) == AMX
    stem = Case("stem", (2, 3, 32, 32), (64, 3, 7, 7), stride=(2, 2), padding=(3, 3, 3, 3))
    assert (chosen(stem, op, dtype=torch.bfloat16) == AMX) == (op != "conv2d_grad_input")  # which writes 3 channels
    small = Case("small", (2, 64, 2, 2), (64, 64, 1, 1))
    few = Case("few", (2, 64, 14, 14), (8, 64, 1, 1))
    depthwise = Case("depthwise", (2, 64, 14, 14), (64, 1, 3, 3), padding=(1, 1, 1, 1), groups=64)
    for case in small, few, depthwise:
        assert chosen(case, op, dtype=torch.bfloat16) != AMX


def test_a_list_takes_the_first_that_supports_the_problem():
    names = "cpu.portable.winograd,cpu.portable.gemm"
    by_name = {case.name: case for case in CASES}
    assert chosen(by_name["3x3"], "conv2d", names) == "cpu.portable.winograd"
    assert chosen(by_name["stride2"], "conv2d", names) == "cpu.portable.gemm"
    with torchconv.use(*names.split(",")):
        assert torchconv.chosen("conv2d", *operands(by_name["3x3"], "conv2d"), *by_name["3x3"].geometry) == (
            "cpu.portable.winograd"
        )
    with pytest.raises(RuntimeError, match=r'"cpu\.portable\.winograd" does not do this conv2d problem'):
        chosen(by_name["stride2"], "conv2d", "cpu.portable.winograd")
    with pytest.raises(RuntimeError, match='"!cpu" does not do this conv2d problem'):
        chosen(by_name["3x3"], "conv2d", "!cpu")
    with pytest.raises(ValueError, match=r"name must be one of .* but got 'cpu\.magic'"), torchconv.use("cpu.magic"):
        pass


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_instruction_sets_agree(layout):
    """The same sums in another order: no more apart than their errors."""
    shapes = [
        Case("wide", (2, 40, 17, 30), (70, 40, 3, 3), padding=(1, 1, 1, 1)),
        Case("strided", (2, 35, 33, 20), (40, 35, 5, 3), stride=(2, 2), padding=(2, 2, 1, 1)),
        Case("depthwise", (2, 48, 23, 31), (48, 1, 7, 7), padding=(3, 3, 3, 3), groups=48),
        Case("grouped", (2, 40, 15, 15), (40, 4, 3, 3), padding=(1, 1, 1, 1), groups=10, dilation=(2, 1)),
        Case("groups_of_16", (2, 80, 13, 18), (80, 16, 3, 3), padding=(1, 1, 1, 1), groups=5),
        Case("uneven_groups", (1, 66, 9, 30), (40, 33, 3, 3), padding=(0, 1, 2, 0), groups=2),
        Case("dilated", (2, 40, 19, 24), (70, 40, 3, 3), padding=(3, 2, 5, 7), dilation=(3, 2)),
        Case("dilated_beyond", (1, 33, 5, 7), (35, 33, 3, 3), padding=(9, 8, 6, 6), dilation=(6, 5)),
        Case("many_tiles", (4, 20, 63, 90), (70, 20, 3, 3), padding=(1, 1, 1, 1)),
    ]
    ran = set()
    for case in shapes:
        tensors = [arrange(normals(size).float(), layout) for size in (case.x, case.w, case.y)]
        for op in OPS:
            rows = [row for row in FULL_ROWS if grid.takes(row, op, case, tensors)]
            first, *others = (grid.run_op(op, case, tensors, row) for row in rows)
            assert all((result - first).norm() <= 2e-6 * first.norm() for result in others)
            ran.update(rows)
    assert ran == set(FULL_ROWS)


#: Problems whose weights, sums or transforms would outgrow the memory that a kernel keeps per thread.
LARGE = [
    Case("many_channels", (1, 300_000, 1, 2), (3, 300_000, 1, 1)),
    Case("many_filters", (1, 2, 2, 2), (300_000, 2, 1, 1)),
    Case("many_channels_3x3", (1, 4096, 5, 5), (2, 4096, 3, 3)),
    Case("many_filters_3x3", (1, 2, 5, 5), (4096, 2, 3, 3)),
    Case("depthwise_large_kernel", (1, 2048, 40, 2), (2048, 1, 39, 2), groups=2048),
    Case("depthwise_many_channels", (1, 300_000, 3, 3), (300_000, 1, 3, 3), groups=300_000),
    Case("large_kernel", (1, 40, 70, 70), (40, 40, 69, 69)),
    Case("many_channels_stride2", (2, 2500, 5, 5), (40, 2500, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
]


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_scratch_is_bounded(case):
    """A row supports what fits into its memory, and is right there; the rest is done by others. Some row does each."""
    tensors = [integers(size).float() for size in (case.x, case.w, case.y)]
    for op in OPS:
        expected = grid.run_op(op, case, tensors, "cpu.reference")
        for layout in "contiguous", "channels_last":
            arranged = [arrange(tensor, layout) for tensor in tensors]
            rows = [row for row in FULL_ROWS if grid.takes(row, op, case, arranged)]
            assert rows
            for row in rows:
                result = grid.run_op(op, case, arranged, row)
                assert (result - expected).norm() <= (0 if grid.is_exact(row) else 3e-6) * expected.norm(), (op, row)


def test_biases_of_many_groups_fit_or_are_left_to_the_reference():
    case = Case("many_groups", (1, 600_000, 3, 3), (600_000, 1, 3, 3), padding=(1, 1, 1, 1), groups=600_000)
    x, w = integers(case.x).float(), integers(case.w).float()
    bias = torch.arange(600_000.0)
    expected = torch.ops.torchconv.conv2d(x, w, *case.geometry, "cpu.reference") + bias[:, None, None]
    for row in FULL_ROWS:
        result = torch.ops.torchconv.conv2d_bias_act(x, w, bias, *case.geometry, implementation=f"{row},cpu.reference")
        assert torch.equal(result, expected)


@pytest.mark.parametrize("channels", [1900, 3500])
@pytest.mark.parametrize("filters", [3, 128, 2048])
def test_wide_layers_are_not_left_to_the_reference(channels, filters, dtype):
    """Whatever the batch, on which the cut of a gradient of weights depends."""
    case = Case("wide", (1, channels, 9, 9), (filters, channels, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    w = torch.empty(case.w, dtype=dtype, device="meta")
    for N in (1, 8, 64, 1000):
        x, y = (torch.empty(N, *size[1:], dtype=dtype, device="meta") for size in (case.x, case.y))
        for args in (
            ("conv2d", x, w),
            ("conv2d_grad_input", y, w, case.x[2:]),
            ("conv2d_grad_weight", x, y, case.w[2:]),
        ):
            assert torchconv.chosen(*args, *case.geometry) != "cpu.reference"


#: Sizes at which a limit of some kernel lies, for one image or for several.
NEAR_LIMITS = [
    ((16, 16), (257, 2, 3, 3), 1, 1),
    ((16, 16), (2, 257, 3, 3), 1, 1),
    ((4, 4), (1024, 8, 3, 3), 1, 1),
    *(((n, n), (64, 64, 3, 3), 1, 1) for n in (4, 7, 14, 56)),
    ((8, 8), (64, 64, 3, 3), 1, 2),
    ((6, 6), (512, 512, 1, 1), 0, 1),
    ((10, 10), (96, 1, 5, 5), 2, 1),
    ((9, 9), (128, 4, 3, 3), 1, 1),
    ((3, 3), (300, 3, 3, 3), 1, 1),
]


@pytest.mark.parametrize(("size", "w", "padding", "stride"), NEAR_LIMITS, ids=str)
def test_the_choice_does_not_depend_on_the_batch(size, w, padding, stride, dtype):
    for groups in {1, *([w[0]] if w[1] == 1 else []), *([w[0] // 4] if w[1] == 4 else [])}:
        geometry = ((stride,) * 2, (padding,) * 4, (1, 1), groups)
        out = [(n + 2 * padding - k) // stride + 1 for n, k in zip(size, w[2:], strict=True)]
        for memory_format in (torch.contiguous_format, torch.channels_last):
            chosen = set()
            for N in (1, 2, 7, 8, 64, 1000):
                x, y = (
                    torch.empty(N, C, *of, dtype=dtype, device="meta").contiguous(memory_format=memory_format)
                    for C, of in ((w[1] * groups, size), (w[0], out))
                )
                weight = torch.empty(w, dtype=dtype, device="meta").contiguous(memory_format=memory_format)
                chosen.add((
                    torchconv.chosen("conv2d", x, weight, *geometry),
                    torchconv.chosen("conv2d_grad_input", y, weight, size, *geometry),
                ))  # fmt: skip
            assert len(chosen) == 1, chosen


def test_import_queries_no_device():
    """Whether a row can run is asked when somebody wants to know: a driver of a GPU may have to answer."""
    script = f"""
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("torchconv._C", {_C.__file__!r})
_C = sys.modules["torchconv._C"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_C)
_C.is_available = lambda name: sys.exit(f"asked for {{name}}")
import torchconv
assert torchconv.implementations is not None and torchconv.functional._C is _C
torchconv.implementations()
"""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHCONV_USE"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert result.stderr.strip().startswith("asked for cpu."), result.stderr


def test_errors_of_chosen_name_the_argument():
    x, w, geometry = torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 1, 1), ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    with pytest.raises(
        ValueError, match="op must be one of 'conv2d', 'conv2d_grad_input', 'conv2d_grad_weight', but got 'conv'"
    ):
        torchconv.chosen("conv", x, w, *geometry)
    with pytest.raises(
        RuntimeError, match=r"a must be float64, float32, bfloat16 or float16, but got torch\.complex64"
    ):
        torchconv.chosen("conv2d", x.to(torch.complex64), w, *geometry)
