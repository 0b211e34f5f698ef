"""Padding: TensorFlow's rule for 'same', and every form in which padding may be written."""

import pytest
import torch
from torch.nn import functional as F

import torchconv
from torchconv import functional
from torchconv.padding import explicit_padding, same_padding

# size, kernel, stride, dilation -> (before, after), output size: from TensorFlow's documentation and by its formula.
TF_TABLE = [
    ((13, 6, 5, 1), (1, 2), 3),  # the documentation's example
    ((5, 3, 2, 1), (1, 1), 3),
    ((7, 3, 2, 1), (1, 1), 4),
    ((6, 3, 2, 1), (0, 1), 3),
    ((4, 2, 2, 1), (0, 0), 2),
    ((5, 2, 1, 1), (0, 1), 5),
    ((5, 4, 1, 1), (1, 2), 5),
    ((10, 3, 1, 2), (2, 2), 10),
    ((10, 3, 2, 2), (1, 2), 5),
    ((10, 2, 3, 4), (2, 2), 4),
    ((3, 1, 2, 1), (0, 0), 2),
    ((9, 2, 5, 1), (0, 0), 2),  # the window never reaches the end: nothing to pad
    ((224, 7, 2, 1), (2, 3), 112),
    ((1, 5, 3, 1), (2, 2), 1),
]


@pytest.mark.parametrize(("problem", "padding", "size"), TF_TABLE, ids=str)
def test_tensorflows_same(problem, padding, size):
    assert same_padding(*problem) == padding
    length, kernel, stride, dilation = problem
    for axis in (0, 1):
        shape, window = [2, 2], [1, 1]
        shape[axis], window[axis] = length, kernel
        x, w = torch.randn(1, 1, *shape), torch.randn(1, 1, *window)
        found = functional.conv2d(x, w, None, stride, "same", dilation)
        assert found.shape[2 + axis] == size
        sides = (*padding, 0, 0) if axis else (0, 0, *padding)
        torch.testing.assert_close(found, F.conv2d(F.pad(x, sides), w, None, stride, 0, dilation))


def test_the_books_valid_example():
    """Width 13, filter 6, stride 5: VALID gives 2, SAME gives 3. And a 5 x 7 input, 3 x 3, stride 2: 3 x 4."""
    x, w = torch.randn(1, 1, 1, 13), torch.randn(1, 1, 1, 6)
    assert functional.conv2d(x, w, stride=5, padding="valid").shape[-1] == 2
    assert functional.conv2d(x, w, stride=5, padding="same").shape[-1] == 3
    assert functional.conv2d(torch.randn(1, 1, 5, 7), torch.randn(1, 1, 3, 3), stride=2, padding="same").shape[2:] == (
        3,
        4,
    )


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_without_stride_equals_torch(kernel, dilation):
    x, w = torch.randn(1, 2, 9, 8), torch.randn(3, 2, kernel, kernel)
    torch.testing.assert_close(
        functional.conv2d(x, w, padding="same", dilation=dilation), F.conv2d(x, w, padding="same", dilation=dilation)
    )


@pytest.mark.parametrize(
    ("written", "sides"),
    [
        (1, (1, 1, 1, 1)),
        ([2], (2, 2, 2, 2)),
        ((1, 2), (1, 1, 2, 2)),
        ([1, 2], (1, 1, 2, 2)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        (((1, 2), (3, 4)), (1, 2, 3, 4)),
        ([[1, 2], [3, 4]], (1, 2, 3, 4)),
        (torch.Size((1, 2)), (1, 1, 2, 2)),
    ],
    ids=str,
)
def test_forms_of_padding(written, sides):
    assert explicit_padding(written) == sides
    top, bottom, left, right = sides
    x, w = torch.randn(1, 1, 5, 5), torch.randn(1, 1, 2, 2)
    torch.testing.assert_close(
        functional.conv2d(x, w, padding=written), F.conv2d(F.pad(x, (left, right, top, bottom)), w)
    )


@pytest.mark.parametrize("one", [2, (2,), [2], (2, 2)], ids=str)
def test_forms_of_stride_and_dilation(one):
    x, w = torch.randn(1, 1, 9, 9), torch.randn(1, 1, 3, 3)
    torch.testing.assert_close(functional.conv2d(x, w, stride=one, dilation=one), F.conv2d(x, w, stride=2, dilation=2))


def test_numpy_integers():
    np = pytest.importorskip("numpy")
    x, w = torch.randn(1, 2, 9, 9), torch.randn(2, 1, 3, 3)
    found = functional.conv2d(x, w, stride=np.int64(2), padding=np.int32(1), dilation=np.int64(1), groups=np.int64(2))
    torch.testing.assert_close(found, F.conv2d(x, w, stride=2, padding=1, groups=2))
    found = functional.conv2d(x, w, stride=np.int64(2), padding="same", groups=2)
    torch.testing.assert_close(found, functional.conv2d(x, w, stride=2, padding="same", groups=2))


def test_the_books_memory_example():
    """5 x 5 filters, stride 1, same, 150 x 100 RGB -> 200 maps: 15,200 parameters, 225,000,000 multiplications, 12 MB."""
    layer = torchconv.Conv2d(3, 200, 5, padding="same")
    assert sum(parameter.numel() for parameter in layer.parameters()) == 15_200
    with torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        out = layer(torch.randn(1, 3, 100, 150))
    assert counter.get_total_flops() == 2 * 225_000_000
    assert out.numel() * out.element_size() == 12_000_000
