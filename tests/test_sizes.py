"""Sizes, strides and offsets beyond 32 bits, and sizes of nothing at all.

Most of it needs no memory: addresses are reserved, and pages that nobody writes to are all one page of zeros.
"""

import itertools
import math
import mmap
import re
import sys
from dataclasses import replace

import grid
import pytest
import torch
from cases import Case, device_of, integers, torch_conv2d
from grid import OPS, run, run_op, takes
from torch import nn
from torch.nn import functional as F

import torchconv

ops = torch.ops.torchconv
ROWS = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
BEYOND = 2**31 + 3
LAST = "cpu.reference"


def sparse(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until they are written to."""
    noreserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # named since Python 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve
    try:
        memory = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
    except OSError:
        pytest.skip("this system does not give addresses without memory")
    return torch.frombuffer(memory, dtype=dtype)


def spread(tensor: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """The same values, but neighbours in one dimension are more than 2^31 elements apart."""
    stride = list(tensor.contiguous().stride())
    stride[dim] = BEYOND
    last = sum((size - 1) * step for size, step in zip(tensor.shape, stride, strict=True))
    return sparse(last + 1, dtype).as_strided(tensor.shape, stride).copy_(tensor)


def by_hand(case: Case, x, w, y):
    """The three operators in numbers of Python, which have no size that they could outgrow."""
    (n_, c_, h_, w_), (k_, _, r_, s_), (_, _, p_, q_) = case.x, case.w, case.y
    out, dx, dw = torch.zeros(case.y).double(), torch.zeros(case.x).double(), torch.zeros(case.w).double()
    c_per_group, k_per_group = c_ // case.groups, k_ // case.groups
    for n, k, p, q, c, r, s in itertools.product(*map(range, (n_, k_, p_, q_, c_per_group, r_, s_))):
        i = p * case.stride[0] + r * case.dilation[0] - case.padding[0]
        j = q * case.stride[1] + s * case.dilation[1] - case.padding[2]
        if 0 <= i < h_ and 0 <= j < w_:
            channel = k // k_per_group * c_per_group + c
            out[n, k, p, q] += x[n, channel, i, j] * w[k, c, r, s]
            dx[n, channel, i, j] += y[n, k, p, q] * w[k, c, r, s]
            dw[k, c, r, s] += x[n, channel, i, j] * y[n, k, p, q]
    return {"conv2d": out, "conv2d_grad_input": dx, "conv2d_grad_weight": dw}


def close(found, wanted, row):
    """The integers of these tests are exact, but in Winograd."""
    found, wanted = found.double(), wanted.double()
    return (found - wanted).norm() <= (0.02 if "winograd" in row else 0) * wanted.norm()


def results(row, case, tensors):
    """Those of the operators that the row supports, if any."""
    return {op: run_op(op, case, tensors, row) for op in OPS if takes(row, op, case, tensors)}


def done_by(row, op, a, b, *rest):
    """Whether the row can do this problem."""
    return torchconv.chosen(op, a, b, *rest, f"{row},{LAST}") == row


# --- strides -----------------------------------------------------------------------------------------------------------

SPREAD = [
    Case("3x3", (2, 40, 6, 7), (33, 40, 3, 3), padding=(1, 1, 1, 1)),
    Case("stride2", (2, 5, 7, 8), (4, 5, 3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    Case("depthwise", (2, 32, 6, 9), (32, 1, 3, 3), padding=(1, 1, 1, 1), groups=32),
    Case("groups_of_4", (2, 32, 6, 9), (32, 4, 3, 3), padding=(1, 1, 1, 1), groups=8),
    Case("pointwise", (2, 40, 5, 6), (33, 40, 1, 1)),
]


@pytest.mark.parametrize("case", SPREAD, ids=str)
@pytest.mark.parametrize("dim", range(4), ids="dim{}".format)
def test_strides_beyond_32_bits(case, dim):
    """Each operand in turn has a dimension with such a stride, in every implementation."""
    ran = set()
    for dtype in torch.float32, torch.bfloat16:
        operands = [integers(size).to(dtype) for size in (case.x, case.w, case.y)]
        wanted = run(case, *operands, LAST)
        for i in range(3):
            if operands[i].shape[dim] == 1:
                continue
            spread_out = [spread(t, dim, dtype) if i == j else t for j, t in enumerate(operands)]
            for row in ROWS:
                for op, found in results(row, case, spread_out).items():
                    assert close(found, wanted[op], row), (row, "xwy"[i])
                    ran.add(row)
    assert ran >= {row for row in ROWS if row.endswith(".gemm")}


@pytest.mark.parametrize("case", SPREAD, ids=str)
@pytest.mark.parametrize("stride", [2**40, 2**62], ids=["2^40", "2^62"])
def test_the_stride_of_a_single_element_is_ignored(case, stride):
    """Each operand in turn has one image, one row and one column, and says that others would be far away."""
    ran = set()
    one = replace(case, x=(1, case.x[1], 1, 1), w=(*case.w[:2], 1, 1), padding=(1, 1, 1, 1))
    for memory_format in torch.contiguous_format, torch.channels_last:
        operands = [integers(size).float().contiguous(memory_format=memory_format) for size in (one.x, one.w, one.y)]
        wanted = run(one, *operands, LAST)
        for i, tensor in enumerate(operands):
            far = tensor.as_strided(
                tensor.shape, [step if n > 1 else stride for n, step in zip(tensor.shape, tensor.stride(), strict=True)]
            )
            changed = [far if i == j else t for j, t in enumerate(operands)]
            for row in ROWS:
                for op, found in results(row, one, changed).items():
                    assert torch.equal(found, wanted[op]), (row, "xwy"[i])
                    ran.add(row)
    assert ran >= {row for row in ROWS if row.endswith(".gemm") and "bf16" not in row}


# --- sizes -------------------------------------------------------------------------------------------------------------


def few_of(size, dim, places, dtype, seed=0):
    """A tensor of this size, zero but at a few places of one dimension, and that small part of it."""
    small = [len(places) if d == dim else n for d, n in enumerate(size)]
    values = integers(tuple(small), 2, seed).to(dtype)
    values[values == 0] = 1
    large = sparse(math.prod(size), dtype).reshape(size)
    for i, place in enumerate(places):
        large.select(dim, place).copy_(values.select(dim, i))
    return large, values


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_input_beyond_32_bits_under_few_windows(axis, dtype):
    """More than 2^31 pixels on one axis, of which a stride and a dilation, both huge, leave out nearly all."""
    step = 2**30 + 1
    places = [0, 1, step, step + 1, 2 * step, 2 * step + 1]
    size, stride = [1, 3, 1, 1], [1, 1]
    size[2 + axis], stride[axis] = places[-1] + 1, step
    x, part = few_of(tuple(size), 2 + axis, places, dtype)
    kernel = (2, 1) if axis == 0 else (1, 2)
    case = Case("near", tuple(size), (4, 3, *kernel), stride=tuple(stride))
    small = Case("near", tuple(part.shape), case.w, stride=tuple(2 if s > 1 else 1 for s in stride))
    assert case.y == small.y
    w, y = integers(case.w).to(dtype), integers(case.y).to(dtype)
    wanted = ops.conv2d(part, w, *small.geometry, LAST), ops.conv2d_grad_weight(part, y, kernel, *small.geometry, LAST)
    ran = set()
    for row in [None, *ROWS]:
        for op, args, want in (("conv2d", (x, w), wanted[0]), ("conv2d_grad_weight", (x, y, kernel), wanted[1])):
            if row is None or done_by(row, op, *args, *case.geometry):
                assert torch.equal(getattr(ops, op)(*args, *case.geometry, row), want), (row, op)
                ran.add(row)
    assert len(ran) > 3, ran
    # The taps of one window lie more than 2^31 apart; the stride leaves one window.
    far = replace(
        case,
        stride=tuple(2**40 if s > 1 else 1 for s in stride),
        dilation=tuple(2 * s if s > 1 else 1 for s in stride),
    )
    assert math.prod(far.y[2:]) == 1
    taps = part.index_select(2 + axis, torch.tensor([0, 4]))
    want = F.conv2d(taps.double(), w.double()).to(dtype)
    for row in ROWS:
        if done_by(row, "conv2d", x, w, *far.geometry):
            assert torch.equal(ops.conv2d(x, w, *far.geometry, row), want), row


@pytest.mark.parametrize(
    "size", [(2, 2, 2**31 + 1, 2), (2, 2, 2, 2**31 + 1), (2, 2, 2**31 + 1, 2**20 + 1)], ids=["rows", "columns", "both"]
)
def test_expanded_operands_beyond_32_bits(size):
    """Stride 0 makes up to 2^53 elements of nothing; a stride of the window makes small outputs of them."""
    x = integers((1, 1, 1, 1), 1, 5).add(3).expand(size)
    stride = [n - 2 if n > 2 else 1 for n in size[2:]]
    case = Case("expanded", size, (4, size[1], 2, 2), stride=tuple(stride))
    w, y = integers(case.w), integers((1, 1, 1, 1), 1, 9).add(2).expand(case.y)
    tiny = Case("tiny", (2, size[1], 2, 2), case.w)
    count = math.prod(case.y[2:])
    one = x[:2, :, :2, :2].contiguous()
    dw = ops.conv2d_grad_weight(one, y[:2, :, :1, :1].contiguous(), (2, 2), *tiny.geometry, LAST) * count
    for row in ROWS:
        if done_by(row, "conv2d", x, w, *case.geometry):
            found = ops.conv2d(x, w, *case.geometry, row)
            assert torch.equal(found, ops.conv2d(one, w, *tiny.geometry, LAST).expand(case.y)), row
        if done_by(row, "conv2d_grad_weight", x, y, (2, 2), *case.geometry):
            assert torch.equal(ops.conv2d_grad_weight(x, y, (2, 2), *case.geometry, row), dw), row


def test_a_row_of_many_windows():
    """More than working memory could list."""
    case = Case("long", (1, 16, 1, 700_001), (16, 1, 1, 3), padding=(0, 0, 1, 1), groups=16)
    x, w = (integers(size).float().contiguous(memory_format=torch.channels_last) for size in (case.x, case.w))
    wanted = torch_conv2d(x, w, case)
    grouped = [row for row in ROWS if row.endswith(".grouped") and done_by(row, "conv2d", x, w, *case.geometry)]
    for row in [None, *grouped]:
        assert torch.equal(ops.conv2d(x, w, *case.geometry, row), wanted), row
    assert grouped


#: Paddings and strides beyond 32 bits, whose results are small.
PADDED = [
    Case("padding", (2, 3, 4, 5), (4, 3, 3, 2), (2**31, 1), (2**31, 2**31, 0, 0)),
    Case("padding_columns", (2, 3, 4, 5), (4, 3, 3, 2), (1, 2**31 - 1), (0, 0, 2**31, 2**31)),
    Case("both", (1, 4, 5, 5), (4, 2, 2, 2), (2**31 + 1, 2**32 - 1), (2**31, 2**32, 2**33 - 3, 2**31), (1, 1), 2),
    Case("dilated", (2, 3, 4, 5), (4, 3, 3, 2), (1, 1), (2**31, 2**31, 0, 0), (2**31, 1)),
    Case("dilated_columns", (1, 3, 4, 5), (2, 3, 2, 3), (1, 1), (1, 1, 2**32 + 1, 2**32), (1, 2**32)),
    Case("dilated_strided", (1, 2, 6, 5), (2, 2, 3, 3), (3, 2**33), (2**32, 2**32, 2**33, 2**33), (2**32, 2**33)),
    Case("far_beyond", (1, 2, 3, 3), (2, 2, 2, 2), (2**61, 2**61), (2**61, 2**61, 2**61 - 1, 2**61)),
    Case("depthwise", (2, 16, 4, 5), (16, 1, 3, 3), (2**31, 2**31), (2**31, 2**31, 2**31, 2**31), groups=16),
    Case("one_side", (1, 3, 4, 5), (2, 3, 3, 3), (2**31 - 1, 1), (2**32, 0, 1, 1)),
    Case("tall_depthwise", (1, 16, 4, 5), (16, 1, 3, 3), (2**40, 1), (2**40, 2**40, 1, 1), groups=16),
    Case("tall_depthwise_in_place", (1, 16, 4, 5), (16, 1, 3, 3), (2**31, 1), (2**31, 2**31, 1, 1), groups=16),
    Case("far_depthwise", (1, 16, 3, 6), (16, 1, 2, 3), (2**61, 1), (2**61, 2**61, 1, 1), groups=16),
    Case("far_groups_of_4", (2, 16, 3, 6), (16, 4, 2, 2), (1, 2**61), (0, 0, 2**61 - 1, 2**61), groups=4),
    Case("far_dilated", (1, 3, 4, 5), (2, 3, 3, 3), (1, 1), (1, 1, 2**60, 2**60), (1, 2**60)),
    Case("far_dilated_tap", (1, 3, 4, 5), (2, 3, 1, 3), (1, 1), (0, 0, 1, 1), (2**62, 1)),
    Case("far_phases", (1, 16, 5, 6), (16, 1, 2, 3), (2**40, 1), (2**40, 2**40, 1, 1), (2**40 + 1, 1), 16),
    Case("far_pointwise", (1, 4, 6, 7), (4, 4, 1, 1), (2**61, 2**61), (2**61, 2**61, 2**61, 2**61)),
]


#: A window of several taps that spans more than working memory could hold.
REFERENCE_ALONE = ("dilated", "dilated_columns", "dilated_strided", "far_dilated")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", PADDED, ids=str)
def test_padded_sizes_beyond_32_bits(case, memory_format):
    x, w, y = (integers(size).contiguous(memory_format=memory_format) for size in (case.x, case.w, case.y))
    wanted = by_hand(case, x, w, y)
    assert all(want.any() for want in wanted.values()), "windows that meet the input"
    ran = set()
    for dtype in torch.float64, torch.float32, torch.bfloat16:
        operands = [tensor.to(dtype) for tensor in (x, w, y)]
        for row in ROWS:
            for op, found in results(row, case, operands).items():
                assert close(found, wanted[op], row), (row, op)
                ran.add(row)
        for op, found in run(case, *operands, None).items():
            assert torch.equal(found.double(), wanted[op])
    assert bool(ran & set(grid.FAST)) == (case.name not in REFERENCE_ALONE)


# --- sizes of nothing --------------------------------------------------------------------------------------------------


def step(layer, x, y=None):
    """The result and all gradients, or what was wrong."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    try:
        y = layer(x)
        y.sum().backward()
    except RuntimeError as error:
        return re.sub(r"\[[\d, ]+\]", "[...]", str(error).splitlines()[0])  # Conv1d's images of one row have a height
    return y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())


PAIRS = {"Conv2d": 2, "Conv1d": 1, "ConvTranspose2d": 2}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("groups", [1, 2])
def test_an_empty_batch_equals_torch(kind, groups, dtype):
    theirs, ours = (getattr(m, kind)(4, 6, 3, padding=1, groups=groups, dtype=dtype) for m in (nn, torchconv))
    x = torch.ones(0, 4, *[6] * PAIRS[kind], dtype=dtype)
    for found, wanted in zip(step(ours, x), step(theirs, x), strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted), "nothing, and zeros for gradients of parameters"


@pytest.mark.parametrize("kind", ["Conv2d", "Conv1d"])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_input_channels(kind, batch, dtype):
    """An empty sum for each filter: the bias is left. (torch gives as many channels as it got: none.)"""
    layer = getattr(torchconv, kind)(0, 4, 3, padding=1, dtype=dtype)
    nn.init.normal_(layer.bias)
    size = [6] * PAIRS[kind]
    y, dx, dw, db = step(layer, torch.ones(batch, 0, *size, dtype=dtype))
    assert torch.equal(y, layer.bias.detach().reshape(1, 4, *[1] * len(size)).expand(batch, 4, *size))
    assert (dx.shape, dw.shape) == ((batch, 0, *size), layer.weight.shape)
    assert torch.equal(db, torch.full((4,), float(batch * math.prod(size)), dtype=dtype))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_filters_are_refused_as_in_torch(kind, batch):
    channels = (0, 4) if kind == "ConvTranspose2d" else (4, 0)  # of a weight whose first size is 0
    theirs, ours = (getattr(m, kind)(*channels, 3, bias=False) for m in (nn, torchconv))
    x = torch.ones(batch, channels[0], *[6] * PAIRS[kind])
    assert step(ours, x) == step(theirs, x)
    assert "expected weight to be at least 1 at dimension 0" in step(ours, x)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_transposed_to_no_channels(batch, dtype):
    """Which torch's own library refuses, in words of its own."""
    layer = torchconv.ConvTranspose2d(4, 0, 3, dtype=dtype)
    y, dx, dw, db = step(layer, torch.ones(batch, 4, 6, 6, dtype=dtype))
    assert y.shape == (batch, 0, 8, 8)
    assert torch.equal(dx, torch.zeros(batch, 4, 6, 6, dtype=dtype))
    assert (dw.shape, db.shape) == ((4, 0, 3, 3), (0,))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("batch", "channels"), [(0, 4), (2, 0), (0, 0)])
def test_operators_on_empty_tensors(batch, channels, groups, dtype):
    case = Case("", (batch, channels, 5, 6), (4, channels // groups, 3, 2), (2, 1), (1, 1, 0, 0), groups=groups)
    x, w, y = (torch.ones(size, dtype=dtype) for size in (case.x, case.w, case.y))
    for row in (None, *(row for row in grid.ROWS if grid.is_reference(row))):
        for result, size in zip(run(case, x, w, y, row).values(), (case.y, case.x, case.w), strict=True):
            assert torch.equal(result, torch.zeros(size, dtype=dtype))
    for row in grid.ROWS:
        tensors = [tensor.to(device_of(row)) for tensor in (x, w, y)]
        assert all(takes(row, op, case, tensors) == grid.is_reference(row) for op in OPS), "the reference's alone"


# --- tensors of more than 2^31 elements --------------------------------------------------------------------------------

#: In bfloat16 each such tensor has 4.3 GB. The operands are zeros but for a few pixels, and take next to nothing; of
#: results, an operator makes one.
LARGE = [
    Case("batch", (2**19 + 77, 64, 8, 8), (1, 64, 3, 3), padding=(1, 1, 1, 1)),
    Case("batch_of_filters", (2**19 + 77, 1, 8, 8), (64, 1, 3, 3), padding=(1, 1, 1, 1)),
    Case("channels", (1, 2**25 + 7, 8, 8), (1, 2**25 + 7, 1, 1)),
    Case("filters", (1, 1, 8, 8), (2**25 + 7, 1, 1, 1)),
    Case("rows", (1, 4, 2**23 + 5, 64), (4, 4, 3, 3), padding=(1, 1, 1, 1)),
    Case("columns", (1, 1, 4, 2**29 + 5), (1, 1, 3, 3), padding=(1, 1, 1, 1)),
    Case("3x3", (4, 32, 4100, 4100), (32, 32, 3, 3), padding=(1, 1, 1, 1)),
    Case("depthwise", (4, 32, 4100, 4100), (32, 1, 3, 3), padding=(1, 1, 1, 1), groups=32),
    Case("weights", (1, 46_400, 1, 1), (46_400, 46_400, 1, 1)),
]


def planted(size: tuple[int, ...], seed: int) -> tuple[torch.Tensor, dict[tuple[int, ...], float]]:
    """A tensor of zeros but for a few elements, at both ends and around 2^31; a small tensor is full."""
    count = math.prod(size)
    if count <= 10**4:
        values = integers(size, 2, seed)
        return values.bfloat16(), {tuple(at): values[tuple(at)].item() for at in values.nonzero().tolist()}
    tensor, elements = sparse(count, torch.bfloat16), {}
    for i, place in enumerate(
        sorted({p for p in (0, 1, count // 3, 2**31 - 1, 2**31, 2**31 + 1, count - 1) if p < count})
    ):
        tensor[place] = i + 1
        elements[tuple(int(n) for n in torch.unravel_index(torch.tensor(place), size))] = i + 1.0
    return tensor.reshape(size), elements


def near(op: str, case: Case, x, w, y) -> dict[tuple[int, ...], float]:
    """By hand, from the elements that are not zero: what the operator's result has where it is not zero."""
    result = {}
    k_per_group, c_per_group = case.w[0] // case.groups, case.w[1]

    def add(at, value, size):
        if all(0 <= i < n for i, n in zip(at[2:], size[2:], strict=True)):
            result[at] = result.get(at, 0) + value

    if op == "conv2d":
        for ((n, c, i, j), value), ((k, cc, r, s), weight) in itertools.product(x.items(), w.items()):
            if c == k // k_per_group * c_per_group + cc:
                add((n, k, i + case.padding[0] - r, j + case.padding[2] - s), value * weight, case.y)
    elif op == "conv2d_grad_input":
        for ((n, k, p, q), gradient), ((kk, c, r, s), weight) in itertools.product(y.items(), w.items()):
            if k == kk:
                channel = k // k_per_group * c_per_group + c
                add((n, channel, p + r - case.padding[0], q + s - case.padding[2]), gradient * weight, case.x)
    else:
        for ((n, c, i, j), value), ((m, k, p, q), gradient) in itertools.product(x.items(), y.items()):
            if n == m and k // k_per_group == c // c_per_group:
                at = k, c % c_per_group, i + case.padding[0] - p, j + case.padding[2] - q
                add(at, value * gradient, case.w)
    return {at: value for at, value in result.items() if value}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "row"),
    [*((case, None) for case in LARGE), *((case, "!winograd") for case in LARGE if case.name == "3x3")],
    ids=str,
)
@pytest.mark.parametrize("op", OPS)
def test_more_than_2_31_elements(case, op, row):
    (x, x_at), (w, w_at), (y, y_at) = (planted(size, i) for i, size in enumerate((case.x, case.w, case.y)))
    wanted = near(op, case, x_at, w_at, y_at)
    args = {"conv2d": (x, w), "conv2d_grad_input": (y, w, case.x[2:]), "conv2d_grad_weight": (x, y, case.w[2:])}[op]
    found = getattr(ops, op)(*args, *case.geometry, row)
    assert wanted
    flat, values = found.reshape(-1), {}
    for start in range(0, flat.numel(), 2**26):  # nonzero() of all of it would need 16 bytes for each element
        part = flat[start : start + 2**26]
        for at in part.nonzero().flatten().tolist() if part.any() else ():
            values[tuple(int(n) for n in torch.unravel_index(torch.tensor(start + at), found.shape))] = part[at].item()
    if "winograd" in torchconv.chosen(op, *args, *case.geometry, row):
        # Its tiles round, so that next to an element there is noise, far below it.
        assert all(values.get(at, 0) == pytest.approx(value, abs=0.1) for at, value in wanted.items())
        assert all(abs(value) < 0.1 for at, value in values.items() if at not in wanted)
    else:
        assert values == wanted
