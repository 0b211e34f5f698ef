"""Memory formats and strides: every tensor is read as it lies, and the result's layout is torch's."""

import grid
import pytest
import torch
from cases import CASES, DTYPES, WIDE, Case, arrange, device_of, integer_problem, integers, on
from torch.nn import functional as F

import torchconv
from torchconv import functional

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("x_format", FORMATS)
@pytest.mark.parametrize("w_format", FORMATS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_result_and_gradients_have_torchs_layout(x_format, w_format, kernel):
    def order(tensor):
        """The strides that mean something."""
        return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]

    found = []
    for kind in (torchconv.Conv2d, torch.nn.Conv2d):
        layer = kind(4, 6, kernel).to(memory_format=FORMATS[w_format])
        x = torch.randn(2, 4, 5, 6).to(memory_format=FORMATS[x_format]).requires_grad_()
        out = layer(x)
        out.backward(torch.randn_like(out))
        found.append((out.stride(), order(x.grad), order(layer.weight.grad)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "size", [(2, 1, 5, 5), (1, 3, 1, 1), (4, 1, 1, 1), (2, 3, 1, 5), (2, 3, 5, 1), (1, 1, 4, 4)], ids=str
)
@pytest.mark.parametrize("x_format", FORMATS)
def test_ambiguous_memory_formats_are_decided_as_torch_does(size, x_format):
    x = torch.randn(size).to(memory_format=FORMATS[x_format])
    w = torch.randn(5, size[1], 1, 1)
    assert functional.conv2d(x, w).stride() == F.conv2d(x, w).stride()


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (3,), (0, 1), (2, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("x_format", FORMATS)
def test_memory_format_of_expanded_tensors_is_decided_as_torch_does(dims, x_format):
    size = [1 if i in dims else n for i, n in enumerate((2, 4, 5, 5))]
    x = torch.randn(size).to(memory_format=FORMATS[x_format]).expand(2, 4, 5, 5)
    w = torch.randn(3, 4, 3, 3)
    wanted = F.conv2d(x, w)
    assert functional.conv2d(x, w).stride() == wanted.stride()
    without_data = torch.empty_strided(x.shape, x.stride(), device="meta")
    assert functional.conv2d(without_data, w.to("meta")).stride() == wanted.stride()


def mixed_views(base):
    """The same tensor, as views that are anything but contiguous."""
    size = base.shape
    _, c, h, w = size
    yield base.transpose(2, 3).contiguous().transpose(2, 3)
    yield base.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    yield torch.nn.functional.pad(base, (3, 2, 1, 4))[:, :, 1 : 1 + h, 3 : 3 + w]
    yield base.flip(2).contiguous().flip(2)
    yield torch.cat([base, base], 1)[:, :c]
    yield torch.as_strided(torch.cat([base.new_zeros(1), base.flatten()]), size, base.stride(), 1)


VIEWED = [
    case
    for case in (*CASES, *WIDE)
    if case.name in ("3x3", "stride2", "awkward", "depthwise", "groups_of_4", "wide_stem")
]


@grid.each(VIEWED, grid.ANY_STRIDES, layouts=["strided"])
def test_any_strides(row, case):
    tensors, wanted = integer_problem(case)
    for dtype, _ in grid.variants(row, case, layouts=["strided"]):
        for views in zip(*(mixed_views(tensor.to(dtype)) for tensor in tensors), strict=True):
            assert all(torch.equal(view, tensor.to(dtype)) for view, tensor in zip(views, tensors, strict=True))
            for op, found in grid.run(case, *views, row).items():
                if grid.is_exact(row):
                    assert torch.equal(found, wanted[op].to(dtype))
                else:
                    plain = grid.run(case, *(tensor.to(dtype) for tensor in tensors), row)
                    assert torch.equal(found, plain[op])


#: One image, one filter, one constant gradient (what .sum().backward() makes): stride 0.
EXPANDED = [
    Case("dense", (3, 4, 6, 6), (5, 4, 3, 3)),
    Case("depthwise", (3, 32, 6, 6), (32, 1, 3, 3), groups=32),
]


@grid.each(EXPANDED, grid.ANY_STRIDES, layouts=["strided"])
def test_expanded_tensors(row, case):
    for dtype, layout in grid.variants(row, case):
        sizes = (1, 1, *case.x[2:]), (1, *case.w[1:]), (1, 1, 1, 1)
        expanded = [
            integers(size, 2, seed).to(dtype).expand(full)
            for seed, (size, full) in enumerate(zip(sizes, (case.x, case.w, case.y), strict=True))
        ]
        plain = grid.run(case, *(arrange(tensor, layout) for tensor in expanded), row)
        for op, found in grid.run(case, *expanded, row).items():
            assert torch.equal(found, plain[op]), (op, dtype, layout)


#: A stride that leaves one output, as every stride above 4 does.
HUGE = Case("huge", (1, 2, 4, 4), (3, 2, 3, 3), (2**63 - 1, 2**63 - 1), (1, 1, 1, 1))
LARGE = Case("large", HUGE.x, HUGE.w, (100, 100), HUGE.padding)


@grid.each([HUGE], [row for row in grid.ROWS if grid.variants(row, HUGE, ops=["conv2d"])], ops=["conv2d"])
def test_huge_stride(row, case):
    for dtype, layout in grid.variants(row, case, ops=["conv2d"]):
        tensors = [on(device_of(row), arrange(tensor.to(dtype), layout)) for tensor in integer_problem(LARGE)[0]]
        assert torch.equal(grid.run_op("conv2d", HUGE, tensors, row), grid.run_op("conv2d", LARGE, tensors, row))


def test_expanded_bias():
    x, w = integers((1, 2, 4, 4)), integers((3, 2, 3, 3))
    assert torch.equal(functional.conv2d(x, w, torch.ones(1).double().expand(3)), functional.conv2d(x, w) + 1)


WINDOWS = {  # size and strides of x: its channels are windows of a vector, and overlap
    "of_all_images": ((2, 512, 1, 8), (0, 1, 8, 1)),
    "of_neighbours": ((3, 64, 5, 7), (1, 1, 7, 1)),
    "tokens": ((2, 64, 40, 1), (40 * 64, 1, 64, 1)),
}


POINTWISE = Case("pointwise", (2, 64, 8, 8), (64, 64, 1, 1))


@grid.each_row([row for row in grid.ANY_STRIDES if any(grid.supported(row, POINTWISE, dtype) for dtype in DTYPES)])
@pytest.mark.parametrize("name", WINDOWS)
def test_pixels_that_overlap(row, name):
    size, stride = WINDOWS[name]
    case = Case(name, size, (64, size[1], 1, 1))
    for dtype in grid.dtypes_of(row):
        w, y = integers(case.w).to(dtype), integers(case.y).to(dtype)
        x = integers((1, 1, 1, 6000)).to(dtype).as_strided(size, stride)
        overlapping, dense = (grid.run(case, *(on(device_of(row), t) for t in (x, w, y)), row) for x in (x, x.clone()))
        assert all(torch.equal(result, dense[op]) for op, result in overlapping.items())


LAST_COLUMN = Case("last_column", (1, 16, 1, 17201), (512, 16, 1, 2), stride=(1, 100), dilation=(1, 16000))


@grid.each([LAST_COLUMN], [row for row in grid.ROWS if grid.supported(row, LAST_COLUMN, torch.bfloat16)])
def test_a_row_whose_last_block_is_a_single_column(row, case):
    """Its taps lie far apart, so that it takes more memory than the wider blocks before it."""
    tensors = [on(device_of(row), integers(size).bfloat16()) for size in (case.x, case.w, case.y)]
    wanted = grid.run(case, *tensors, f"{device_of(row)}.reference")
    assert all(torch.equal(result, wanted[op]) for op, result in grid.run(case, *tensors, row).items())


@grid.each([*CASES, *WIDE], grid.ANY_STRIDES, layouts=["strided"])
def test_nothing_is_written_beside_the_result(row, case):
    """The operands do not change, and what lies between the elements of a strided one is never read (it is NaN)."""
    for dtype, layout in grid.variants(row, case, layouts=["strided"]):
        tensors = [on(device_of(row), arrange(integers(size).to(dtype), layout)) for size in (case.x, case.w, case.y)]
        bases = [tensor._base.clone() for tensor in tensors]
        results = grid.run(case, *tensors, row)
        for tensor, base in zip(tensors, bases, strict=True):
            assert torch.equal(tensor._base.nan_to_num(7), base.nan_to_num(7))
        assert not any(result.isnan().any() for result in results.values())
