"""MaxPool2d and AvgPool2d: TensorFlow's rule for "same", and torch's own layers for everything else."""

import inspect
import itertools

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from torchconv import AvgPool2d, MaxPool2d


def windows(size: int, kernel: int, stride: int, dilation: int = 1) -> list[list[int]]:
    """The elements that each of TensorFlow's SAME windows sees."""
    out = -(-size // stride)
    before = max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size) // 2
    return [[i for t in range(kernel) if 0 <= (i := o * stride + t * dilation - before) < size] for o in range(out)]


@pytest.mark.parametrize("kernel", [1, 2, 3, (5, 2)])
@pytest.mark.parametrize("stride", [None, 1, 2, (3, 5)])
@pytest.mark.parametrize("size", [(1, 9), (4, 8), (13, 6)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_same(kernel, stride, size, memory_format):
    x = torch.randn(2, 3, *size).to(memory_format=memory_format)
    kernels = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    strides = kernels if stride is None else stride if isinstance(stride, tuple) else (stride, stride)
    seen = itertools.product(*map(windows, size, kernels, strides))
    parts = [x[:, :, rows][..., cols].flatten(2) for rows, cols in seen]
    shape = (2, 3, -(-size[0] // strides[0]), -(-size[1] // strides[1]))

    def stack(reduce):
        return torch.stack([reduce(part) for part in parts], -1).view(shape)

    y, at = MaxPool2d(kernel, stride, "same", return_indices=True)(x)
    assert torch.equal(y, stack(lambda part: part.amax(-1)))
    assert torch.equal(MaxPool2d(kernel, stride, "same")(x), y)
    assert torch.equal(x.flatten(2).gather(2, at.flatten(2)).view(shape), y)
    torch.testing.assert_close(AvgPool2d(kernel, stride, "same")(x), stack(lambda part: part.mean(-1)))
    counted = AvgPool2d(kernel, stride, "same", count_include_pad=True)(x)
    torch.testing.assert_close(counted, stack(lambda part: part.sum(-1)) / (kernels[0] * kernels[1]))
    divided = AvgPool2d(kernel, stride, "same", divisor_override=7)(x)
    torch.testing.assert_close(divided, stack(lambda part: part.sum(-1)) / 7)


def test_dilated_same():
    x = torch.randn(2, 3, 9, 8)
    seen = list(itertools.product(windows(9, 3, 2, 2), windows(8, 3, 2, 2)))
    wanted = torch.stack([x[:, :, rows][..., cols].amax((2, 3)) for rows, cols in seen], -1).view(2, 3, 5, 4)
    assert torch.equal(MaxPool2d(3, 2, "same", 2)(x), wanted)


def test_padding_has_no_index():
    for x in (torch.full((1, 1, 4, 4), float("-inf")), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)):
        values, at = MaxPool2d(3, 1, "same", return_indices=True)(x)
        assert torch.equal(x.flatten()[at.flatten()], values.flatten())
        assert at.min() >= 0
        assert at.max() < 16


@pytest.mark.parametrize("pool", [MaxPool2d(3, 2, "same"), AvgPool2d(3, 2, "same"), AvgPool2d(2, 2, "same")], ids=str)
def test_export_with_dynamic_sizes(pool):
    auto = torch.export.Dim.AUTO
    program = torch.export.export(nn.Sequential(pool), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({2: auto, 3: auto},))
    for size in (8, 9, 11):
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(program.module()(x), pool(x))


def test_half_precision_does_not_overflow():
    x = torch.full((1, 1, 4, 4), 40000.0, dtype=torch.float16)
    torch.testing.assert_close(AvgPool2d(3, 1, "same")(x), x)


def test_integers():
    x = -torch.randint(1, 9, (1, 2, 5, 5))
    assert torch.equal(MaxPool2d(3, 2, "same")(x), MaxPool2d(3, 2, "same")(x.double()).long())


@pytest.mark.parametrize("pool", [MaxPool2d, AvgPool2d])
def test_errors_equal_torch(pool):
    for kernel, stride in ((3, 0), (0, 1)):  # the last words are those of some versions of torch
        with pytest.raises(RuntimeError, match=r"should (not be zero|be greater than zero)|integer out of range"):
            pool(kernel, stride, "same")(torch.zeros(1, 1, 5, 5))
    with pytest.raises(RuntimeError, match="dilation should be greater than zero"):
        MaxPool2d(3, 2, "same", 0)(torch.zeros(1, 1, 5, 5))


def test_unbatched_and_gradients():
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    for pool in (MaxPool2d(3, 2, "same"), AvgPool2d(3, 2, "same"), AvgPool2d(2, 2, "same", count_include_pad=True)):
        assert torch.equal(pool(x), pool(x[None])[0])
        assert gradcheck(pool, x)
        assert torch.equal(torch.compile(pool, fullgraph=True, backend="aot_eager")(x), pool(x))


@pytest.mark.parametrize(("ours", "theirs"), [(MaxPool2d, nn.MaxPool2d), (AvgPool2d, nn.AvgPool2d)])
def test_other_paddings_equal_torch(ours, theirs):
    x = torch.randn(2, 3, 9, 8)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    for arguments in ((3,), (3, 2), ((3, 2), (2, 1), (1, 1)), (2, 2, 1)):
        for ceil in (False, True):
            assert torch.equal(ours(*arguments, ceil_mode=ceil)(x), theirs(*arguments, ceil_mode=ceil)(x))
        assert repr(ours(*arguments)) == repr(theirs(*arguments))
    assert torch.equal(ours(3, 2, "valid")(x), theirs(3, 2)(x))
    assert isinstance(ours(2), theirs)
    with pytest.raises(ValueError, match=r"Invalid padding string 'full', should be one of 'valid', 'same'"):
        ours(2, padding="full")
    assert "padding=same" in repr(ours(2, padding="same"))


def test_padding_is_counted_as_in_torch_unless_it_is_same():
    x = torch.ones(1, 1, 3, 3)
    assert AvgPool2d(3, 1, 1)(x)[0, 0, 0, 0] == pytest.approx(4 / 9)
    assert AvgPool2d(3, 1, "same")(x)[0, 0, 0, 0] == 1
    assert AvgPool2d(3, 1, 1, count_include_pad=False)(x)[0, 0, 0, 0] == 1
