"""Outliers in an operand of Winograd spoil no output that does not read them (csrc/cpu/kernels/winograd_guard.h)."""

import pytest
import torch
from cases import Case, normals
from grid import FAST, dtypes_of, run_op, supported
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

INFINITY, NAN = float("inf"), float("nan")
WINOGRAD = [row for row in FAST if row.endswith("winograd")]
OPS = "conv2d", "conv2d_grad_input"
PLAIN = Case("plain", (2, 40, 18, 21), (36, 40, 3, 3), padding=(1, 1, 1, 1))
GROUPED = Case("grouped", (1, 32, 9, 14), (48, 16, 3, 3), padding=(1, 1, 1, 1), groups=2)
#: Transformed weights of more than 3 MiB, or more than 768 channels: computed in another way.
MANY_WEIGHTS = Case("many_weights", (1, 800, 9, 10), (64, 800, 3, 3), padding=(1, 1, 1, 1))
CASES = [PLAIN, GROUPED, MANY_WEIGHTS]
#: The gradient of its weights is computed in blocks of weights.
FEW_TILES = Case("few_tiles", (2, 130, 6, 7), (132, 130, 3, 3), padding=(1, 1, 1, 1))

rows = pytest.mark.parametrize("row", WINOGRAD)
ops = pytest.mark.parametrize("op", OPS)
cases = pytest.mark.parametrize("case", CASES, ids=str)
weight_cases = pytest.mark.parametrize("case", [PLAIN, GROUPED, FEW_TILES], ids=str)


def operands(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """x, w and y: uniform in [0, 1), but for normal weights."""
    x, y = (torch.rand(size, generator=torch.Generator().manual_seed(1)) for size in (case.x, case.y))
    return [tensor.to(dtype) for tensor in (x, normals(case.w), y)]


def source(op: str, tensors: list[Tensor]) -> Tensor:
    """What a correlation reads: x, or the gradient y."""
    return tensors[0 if op == "conv2d" else 2]


def largest_by_group(case: Case, tensor: Tensor) -> Tensor:
    """Of each pixel: the largest |element| over the channels of a group. [N, groups, ...]"""
    return tensor.double().abs().unflatten(1, (case.groups, -1)).amax(2)


def products(op: str, case: Case, tensors: list[Tensor]) -> Tensor:
    """What the errors of a result are measured with, see winograd_guard.h and winograd_grad_weight_guard.h."""
    (pad, *_), groups = case.padding, case.groups
    if op == "conv2d_grad_weight":
        x, y = (largest_by_group(case, tensors[i]) for i in (0, 2))
        sums = conv2d_weight(x, (groups, 1, 3, 3), y, padding=pad, groups=groups)
        return sums.repeat_interleave(case.w[0] // groups, 0)
    read = largest_by_group(case, source(op, tensors))
    window = F.max_pool2d(F.pad(read, 4 * ((pad if op == "conv2d" else 2 - pad),)), 3, 1)
    filters = tensors[1].double().abs().unflatten(0, (groups, -1))
    sums = filters.sum((2, 3, 4)) if op == "conv2d" else filters.sum((1, 3, 4))
    return window.repeat_interleave(sums.shape[1], 1) * sums.flatten()[:, None, None]


#: max_spread (winograd_guard.h) times what the rounding errors of a tile are, of the tile's largest element.
BOUND = 16 * 24


def assert_within_bound(op: str, case: Case, tensors: list[Tensor], row: str) -> None:
    dtype = tensors[0].dtype
    found = run_op(op, case, tensors, row).double()
    exact = run_op(op, case, [tensor.double() for tensor in tensors], "cpu.reference")
    assert torch.equal(found.isnan()[~exact.isfinite()], exact.isnan()[~exact.isfinite()])
    scale = products(op, case, tensors).expand_as(exact)
    usual = exact.isfinite() & (scale < torch.finfo(dtype).max / 4)  # no partial sum overflows, either
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    bound = BOUND * eps * scale + torch.finfo(dtype).eps * exact.abs() + 64 * torch.finfo(dtype).tiny
    excess = ((found - exact).abs() - bound)[usual]
    assert not excess.isnan().any()
    assert (excess <= 0).all(), float(excess.max())


@rows
@ops
@cases
@pytest.mark.parametrize("fill", [-9999.0, 1e6, 1e20, 3e38, NAN, INFINITY, -INFINITY])
def test_one_pixel(row, op, case, fill):
    for dtype in dtypes_of(row):
        tensors = operands(case, dtype)
        source(op, tensors)[0, :, 5, 7] = fill
        assert_within_bound(op, case, tensors, row)


@rows
@ops
@cases
def test_large_pixels_in_half_of_the_image(row, op, case):
    """Tiles beside those of which all pixels are large."""
    for dtype in dtypes_of(row):
        tensors = operands(case, dtype)
        source(op, tensors)[..., :5] *= 1e4
        assert_within_bound(op, case, tensors, row)


@rows
@pytest.mark.parametrize("op", [*OPS, "conv2d_grad_weight"])
@pytest.mark.parametrize("tiny", [0, 1, 2], ids=["x", "w", "y"])
def test_tiny_elements(row, op, tiny):
    """Transforms that underflow, beside a large operand."""
    dtype = torch.bfloat16 if row.startswith("cpu.avx512_bf16") else torch.float32
    # No element is subnormal: those count as zeros in any case.
    tensors = [tensor.sign() * (1 + tensor.abs()) for tensor in operands(PLAIN, torch.float32)]
    tensors = [(tensor * (2e-38 if i == tiny else 1e10)).to(dtype) for i, tensor in enumerate(tensors)]
    tensors[tiny][0] *= 3
    assert_within_bound(op, PLAIN, tensors, row)


def spread(pattern: str, x: Tensor, fill: float) -> Tensor:
    """x with outliers."""
    rows, cols = torch.arange(x.shape[2])[:, None], torch.arange(x.shape[3])
    match pattern:
        case "pixel":
            x[0, :, 2, 3] = fill
        case "channel":
            x[:, 1, 1, 2] = fill
        case "rectangle":
            x[..., 2:6, 3:9] = fill
        case "checkerboard":
            x = torch.where((rows + cols) % 2 == 0, fill, x)
        case "constant":
            x = torch.full_like(x, fill)
        case "sparse":
            x = torch.where(x > 0.98, fill * x, 0)
        case "half":
            x[..., : x.shape[3] // 2] = fill
        case "border":
            x[..., 0, :] = x[..., :, -1] = fill
    return x


PATTERNS = "pixel", "channel", "rectangle", "checkerboard", "constant", "sparse", "half", "border"
fills = st.one_of(
    st.floats(2, 38).map(lambda exponent: 10**exponent),
    st.floats(-45, -2).map(lambda exponent: 10**exponent),
    st.sampled_from([0.0, -9999.0, 1e-40, 3.4e38, NAN, INFINITY, -INFINITY]),
)


def draw_case(data) -> Case:
    groups = data.draw(st.sampled_from([1, 1, 2]))
    C, K = (groups * data.draw(st.sampled_from([1, 3, 8, 17, 33])) for _ in range(2))
    size, pad = (data.draw(st.integers(7, 15)), data.draw(st.integers(9, 18))), data.draw(st.integers(0, 2))
    return Case("drawn", (2, C, *size), (K, C // groups, 3, 3), padding=4 * (pad,), groups=groups)


def draw_dtype(data, row: str, op: str, case: Case) -> torch.dtype:
    return data.draw(st.sampled_from([dtype for dtype in dtypes_of(row) if op in supported(row, case, dtype)]))


def draw_pattern(data, tensor: Tensor, fill: float) -> Tensor:
    scaled = tensor.float() * 10 ** data.draw(st.floats(-6, 3))
    patterns = PATTERNS if tensor.shape[1] > 1 else [name for name in PATTERNS if name != "channel"]
    return spread(data.draw(st.sampled_from(patterns)), scaled, fill).to(tensor.dtype)


drawn = settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))


@rows
@ops
@drawn
@given(st.data())
def test_patterns(row, op, data):
    case = draw_case(data)
    tensors = operands(case, draw_dtype(data, row, op, case))
    if data.draw(st.booleans()):  # a delta
        tensors[1] = torch.zeros_like(tensors[1])
        tensors[1][:, :, data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))] = 1
    index = 0 if op == "conv2d" else 2
    tensors[index] = draw_pattern(data, tensors[index], data.draw(fills))
    assert_within_bound(op, case, tensors, row)


@rows
@ops
@cases
def test_outlier_tiles_are_computed_directly(row, op, case):
    """With the bits of gemm; all other tiles keep theirs."""
    dtype = dtypes_of(row)[-1]
    gemm = row.replace("_bf16.winograd", ".gemm").replace("winograd", "gemm")
    tensors = operands(case, dtype)
    clean = run_op(op, case, tensors, row)
    source(op, tensors)[0, :, 5, 7] = 1e30 if dtype != torch.float16 else NAN
    found, direct = run_op(op, case, tensors, row), run_op(op, case, tensors, gemm)
    touched = torch.zeros(found.shape, dtype=torch.bool)
    touched[0, :, 4:8, 4:12] = True  # the pixel is in the patches of two tiles
    assert torch.equal(found[touched].nan_to_num(), direct[touched].nan_to_num())
    assert torch.equal(found[~touched], clean[~touched])


@rows
@ops
@cases
@pytest.mark.parametrize("fill", [NAN, INFINITY, 1e20])
def test_weights_out_of_range(row, op, case, fill):
    """All is computed directly: one filter does not spoil the others."""
    dtype = dtypes_of(row)[-1]
    gemm = row.replace("_bf16.winograd", ".gemm").replace("winograd", "gemm")
    tensors = operands(case, dtype)
    tensors[1][3, 2, 1, 0] = fill
    found, direct = run_op(op, case, tensors, row), run_op(op, case, tensors, gemm)
    assert torch.equal(found.nan_to_num(), direct.nan_to_num())
    assert torch.equal(found.isnan(), direct.isnan())


@rows
@ops
def test_no_sample_depends_on_another(row, op):
    dtype = dtypes_of(row)[-1]
    tensors = operands(PLAIN, dtype)
    clean = run_op(op, PLAIN, tensors, row)
    for fill in (NAN, 1e4):
        source(op, tensors)[1] = fill
        assert torch.equal(run_op(op, PLAIN, tensors, row)[0], clean[0])


@rows
@weight_cases
@pytest.mark.parametrize("operand", [0, 2], ids=["x", "y"])
@pytest.mark.parametrize("fill", [-9999.0, 1e6, 1e20, 3e38, NAN, INFINITY, -INFINITY])
def test_one_pixel_in_grad_weight(row, case, operand, fill):
    for dtype in dtypes_of(row):
        tensors = operands(case, dtype)
        tensors[operand][0, :, 3, 2] = fill
        assert_within_bound("conv2d_grad_weight", case, tensors, row)


@rows
@weight_cases
@pytest.mark.parametrize("fill", [1e6, 1e20, 3e38])
def test_masked_pixels_do_not_affect_grad_weight(row, case, fill):
    """Where all gradients of the outputs that read a pixel are zero, its value is of no account."""
    for dtype in dtypes_of(row):
        tensors = operands(case, dtype)
        tensors[2][..., 1:6, :5] = 0  # those that read the pixel
        tensors[0][:, :, 3, 2] = fill if dtype != torch.float16 else 6e4
        assert_within_bound("conv2d_grad_weight", case, tensors, row)


@rows
@weight_cases
@pytest.mark.parametrize("fill", [1e6, 1e20, NAN, INFINITY])
def test_a_border_pixel_reaches_only_its_taps(row, case, fill):
    """The last row of taps never reads the first row of x."""
    dtype = dtypes_of(row)[-1]
    tensors = operands(case, dtype)
    tensors[0][:, :, 0] = fill if dtype != torch.float16 else NAN
    assert_within_bound("conv2d_grad_weight", case, tensors, row)


@rows
@drawn
@given(st.data())
def test_patterns_in_grad_weight(row, data):
    case = draw_case(data)
    tensors = operands(case, draw_dtype(data, row, "conv2d_grad_weight", case))
    for index in data.draw(st.sampled_from([(0,), (2,), (0, 2)])):
        # An infinite gradient times padding may be NaN.
        fill = data.draw(fills if index == 0 else fills.filter(lambda fill: abs(fill) < INFINITY))
        tensors[index] = draw_pattern(data, tensors[index], fill)
    if tensors[2].isfinite().all():  # float16 has few exponents
        assert_within_bound("conv2d_grad_weight", case, tensors, row)


@rows
@weight_cases
def test_grad_weight_with_outliers_is_computed_directly(row, case):
    """With the bits of gemm."""
    dtype = dtypes_of(row)[0]
    gemm = row.replace("_bf16.winograd", ".gemm").replace("winograd", "gemm")
    tensors = operands(case, dtype)
    clean = [run_op("conv2d_grad_weight", case, tensors, name) for name in (row, gemm)]
    assert dtype == torch.bfloat16 or not torch.equal(*clean)
    tensors[0][0, 1, 0] = 1e30
    found, direct = (run_op("conv2d_grad_weight", case, tensors, name) for name in (row, gemm))
    assert torch.equal(found, direct)
