"""torchconv.tf.conv2d is tf.nn.conv2d: the formula, SAME and VALID, the forms of its arguments, views without copies."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import torchconv
from torchconv import tf
from torchconv.tf import conv2d


def integers(*size):
    return torch.randint(-3, 4, size).float()


def formula(images, filters, strides, before, size, dilations=(1, 1), groups=1):
    """The textbook's sum, tap by tap. before: (top, left); size: (P, Q)."""
    N, H, W, _ = images.shape
    R, S, c, K = filters.shape
    z = torch.zeros(N, *size, K)
    for (i, j), (u, v) in itertools.product(
        itertools.product(*map(range, size)), itertools.product(range(R), range(S))
    ):
        row = i * strides[0] + u * dilations[0] - before[0]
        col = j * strides[1] + v * dilations[1] - before[1]
        if 0 <= row < H and 0 <= col < W:
            pixels = images[:, row, col].reshape(N, groups, c)
            taps = filters[u, v].reshape(c, groups, K // groups)
            z[:, i, j] += torch.einsum("ngc,cgk->ngk", pixels, taps).reshape(N, K)
    return z


@pytest.mark.parametrize(
    ("width", "filter_width", "stride", "padding", "out", "left"),
    [
        (13, 6, 5, "VALID", 2, 0),
        (13, 6, 5, "SAME", 3, 1),  # 1 zero on the left, 2 on the right
        (7, 3, 2, "SAME", 4, 1),
        (8, 3, 2, "SAME", 4, 0),  # the only zero is on the right
        (5, 1, 3, "SAME", 2, 0),
        (4, 7, 1, "SAME", 4, 3),
    ],
)
def test_same_and_valid(width, filter_width, stride, padding, out, left):
    images, filters = integers(2, 3, width, 2), integers(1, filter_width, 2, 3)
    z = conv2d(images, filters, (1, stride), padding)
    assert z.shape == (2, 3, out, 3)
    assert torch.equal(z, formula(images, filters, (1, stride), (0, left), (3, out)))


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_formula_with_everything(data_format):
    images, filters = integers(2, 9, 8, 4), integers(3, 2, 2, 6)
    wanted = formula(images, filters, (2, 1), (1, 2), (4, 8), (2, 3), 2)
    if data_format == "NHWC":
        z = conv2d(images, filters, [1, 2, 1, 1], [[0, 0], [1, 2], [2, 1], [0, 0]], [1, 2, 3, 1])
    else:
        images = images.permute(0, 3, 1, 2).contiguous()
        pads = [[0, 0], [0, 0], [1, 2], [2, 1]]
        z = conv2d(images, filters, [1, 1, 2, 1], pads, [1, 1, 2, 3], data_format="NCHW").permute(0, 2, 3, 1)
    assert torch.equal(z, wanted)


def test_forms_of_strides_dilations_and_padding():
    images, filters = integers(2, 9, 9, 2), integers(3, 3, 2, 3)
    wanted = conv2d(images, filters, (2, 2), ((1, 1), (1, 1)))
    for strides in (2, [2], (2, 2), [1, 2, 2, 1]):
        assert torch.equal(conv2d(images, filters, strides, [[0, 0], [1, 1], [1, 1], [0, 0]]), wanted)
    wanted = conv2d(images, filters, 1, "VALID", (2, 2))
    for dilations in (2, [2], [1, 2, 2, 1]):
        assert torch.equal(conv2d(images, filters, 1, "valid", dilations), wanted)


def test_bias_and_activation():
    images, filters, bias = integers(2, 5, 5, 2), integers(3, 3, 2, 3), integers(3)
    z = conv2d(images, filters, 1, "SAME") + bias
    assert torch.equal(conv2d(images, filters, 1, "SAME", bias=bias, activation="relu"), z.relu())
    leaky = conv2d(images, filters, 1, "SAME", bias=bias, activation="leaky_relu", negative_slope=0.5)
    assert torch.equal(leaky, torch.nn.functional.leaky_relu(z, 0.5))


@pytest.mark.parametrize("batch", [(2, 3), (2, 1, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_leading_batch_dimensions(batch, data_format):
    images, filters, bias = integers(*batch, 9, 8, 4), integers(3, 3, 2, 6), integers(6)
    pads, strides = [[0, 0], [1, 1], [2, 1], [0, 0]], [1, 2, 1, 1]
    if data_format == "NCHW":
        images = images.movedim(-1, -3)
        pads, strides = [[0, 0], [0, 0], [1, 1], [2, 1]], [1, 1, 2, 1]
    for padding in ("SAME", pads):
        options = {"data_format": data_format, "bias": bias, "activation": "relu"}
        z = conv2d(images, filters, strides, padding, **options)
        flat = conv2d(images.flatten(0, -4), filters, strides, padding, **options)
        assert z.shape == (*batch, *flat.shape[1:])
        assert torch.equal(z.flatten(0, -4), flat)


def test_gradients_with_leading_batch_dimensions():
    images = torch.randn(2, 2, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda images, filters: conv2d(images, filters, 2, "SAME"), (images, filters))


def test_nothing_is_copied(monkeypatch):
    images, filters = integers(2, 5, 6, 4), integers(3, 3, 4, 8)
    seen = []
    real = torchconv.functional.conv2d
    monkeypatch.setattr(
        torchconv.functional, "conv2d", lambda x, w, *rest, **kw: seen.append((x, w)) or real(x, w, *rest, **kw)
    )
    z = conv2d(images, filters, 1, "SAME")
    ((x, w),) = seen
    assert (x.data_ptr(), w.data_ptr()) == (images.data_ptr(), filters.data_ptr())
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert z.is_contiguous()


def test_gradients_of_both_orders():
    images = torch.randn(2, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(3, 2, 2, 4, dtype=torch.float64, requires_grad=True)

    def function(images, filters):
        return conv2d(images, filters, [1, 2, 1, 1], "SAME")

    assert gradcheck(function, (images, filters))
    assert gradgradcheck(function, (images, filters))
    function(images, filters).sum().backward()
    assert images.grad.stride() == images.stride()
    assert filters.grad.stride() == filters.stride()


def test_compiles_in_one_graph():
    images, filters = torch.randn(2, 7, 7, 4), torch.randn(3, 3, 4, 8)
    compiled = torch.compile(conv2d, fullgraph=True, backend="aot_eager")
    for size in (7, 9):
        images = torch.randn(2, size, size, 4)
        torch.testing.assert_close(compiled(images, filters, 2, "SAME"), conv2d(images, filters, 2, "SAME"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strides": [2, 1, 1, 1]}, ValueError, r"strides of the batch and of the channels must be 1, but got strides=\[2, 1, 1, 1\]"),
        ({"strides": [1, 1, 1, 2]}, ValueError, r"strides of the batch and of the channels must be 1"),
        ({"strides": [1, 1, 1]}, ValueError, r"strides must be one number, 2 or 4 numbers, but got strides=\[1, 1, 1\]"),
        ({"strides": 0}, RuntimeError, "non-positive stride is not supported"),
        ({"dilations": [1, 1, 1, 3]}, ValueError, r"dilations of the batch and of the channels must be 1"),
        ({"dilations": 0}, RuntimeError, "dilation should be greater than zero"),
        ({"padding": "FULL"}, ValueError, "padding must be 'SAME', 'VALID' or explicit, but got 'FULL'"),
        ({"padding": 1}, ValueError, r"padding must be 'SAME', 'VALID', or a \(before, after\) .* but got 1"),
        ({"padding": [[1, 0], [0, 0], [0, 0], [0, 0]]}, ValueError, r"padding of the batch and of the channels must be \(0, 0\)"),
        ({"padding": [[0, 0], [0, 0], [0, 0], [0, 1]]}, ValueError, r"padding of the batch and of the channels must be \(0, 0\)"),
        ({"padding": [[0, 0], [-1, 0], [0, 0], [0, 0]]}, RuntimeError, "negative padding is not supported"),
        ({"data_format": "NWHC"}, ValueError, "data_format must be one of 'NHWC', 'NCHW', but got 'NWHC'"),
        ({"images": None}, TypeError, "argument 'images' must be Tensor, not NoneType"),
        ({"filters": [1.0]}, TypeError, "argument 'filters' must be Tensor, not list"),
        ({"images": torch.zeros(5, 5, 4)}, ValueError, r"images must have 4 dimensions or more, but got size \[5, 5, 4\]"),
        ({"filters": torch.zeros(3, 3, 4)}, ValueError, r"filters must have 4 dimensions, but got size \[3, 3, 4\]"),
        ({"filters": torch.zeros(3, 3, 3, 4)}, ValueError, r"must be a multiple of the input channels of filters.* 4 channels .*\[3, 3, 3, 4\]"),
        ({"filters": torch.zeros(3, 3, 0, 4)}, ValueError, r"must be a multiple of the input channels of filters"),
        ({"filters": torch.zeros(3, 3, 2, 5)}, ValueError, r"output channels of filters must be a multiple of the number of groups, 4 / 2 = 2"),
        ({"filters": torch.zeros(3, 3, 4, 4).double()}, RuntimeError, "should be the same"),
        ({"filters": torch.zeros(9, 3, 4, 4)}, RuntimeError, "Kernel size can't be greater than actual input size"),
        ({"activation": "gelu"}, ValueError, "activation must be None or one of"),
    ],
)  # fmt: skip
def test_errors(change, error, message):
    arguments = {
        "images": torch.zeros(2, 5, 5, 4),
        "filters": torch.zeros(3, 3, 4, 4),
        "strides": 1,
        "padding": "VALID",
    }
    with pytest.raises(error, match=message):
        conv2d(**{**arguments, **change})


#: From NHWC to a data_format, and back.
ORDERS = {"NHWC": ((0, 1, 2, 3), (0, 1, 2, 3)), "NCHW": ((0, 3, 1, 2), (0, 2, 3, 1))}


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 1))], ids=str)
@pytest.mark.parametrize(("strides", "dilations"), [(1, 1), ((2, 3), 1), (1, (2, 1))])
def test_conv2d_transpose_is_the_gradient_of_conv2d(strides, dilations, padding, data_format):
    size = (2, 9, 11, 3)
    filters, images = integers(3, 4, 3, 5), torch.zeros(size).permute(ORDERS[data_format][0]).requires_grad_()
    z = conv2d(images, filters, strides, padding, dilations, data_format=data_format)
    y = integers(*z.shape)
    (wanted,) = torch.autograd.grad(z, images, y)
    found = tf.conv2d_transpose(y, filters, images.shape, strides, padding, dilations, data_format=data_format)
    assert torch.equal(found, wanted)


def test_conv2d_transpose_is_differentiable():
    y, filters = (integers(*size).double().requires_grad_() for size in ((1, 3, 2, 2), (3, 2, 2, 2)))
    assert gradcheck(lambda y, filters: tf.conv2d_transpose(y, filters, (1, 5, 4, 2), 2), (y, filters))


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_depthwise_conv2d_is_a_convolution_of_each_channel(data_format):
    images, filters = integers(2, 9, 8, 3), integers(3, 2, 3, 2)
    order, back = ORDERS[data_format]
    found = tf.depthwise_conv2d(images.permute(order), filters, 2, "SAME", data_format=data_format).permute(back)
    for c, m in itertools.product(range(3), range(2)):
        alone = conv2d(images[..., c : c + 1], filters[:, :, c : c + 1, m : m + 1], 2, "SAME")
        assert torch.equal(found[..., 2 * c + m], alone[..., 0])


def test_refusals_of_the_other_functions():
    images, filters = torch.ones(2, 5, 5, 3), torch.ones(3, 3, 4, 3)
    with pytest.raises(ValueError, match=r"filters must have as many input channels as images, but got .* 3 channels"):
        tf.depthwise_conv2d(images, filters, 1, "SAME")
    with pytest.raises(ValueError, match=r"output_shape must have 4 numbers, but got \(5, 5\)"):
        tf.conv2d_transpose(images, filters, (5, 5), 1)
    for shape in ((2, 5, 5, 3), (1, 5, 5, 4)):
        with pytest.raises(ValueError, match=r"the batch of images, but got .* output_shape="):
            tf.conv2d_transpose(images, filters, shape, 1)
    with pytest.raises(RuntimeError, match=r"expected the gradient of the output to be of size \[2, 3, 4, 4\]"):
        tf.conv2d_transpose(images, filters, (2, 7, 7, 4), 2)
    with pytest.raises(TypeError, match=r"conv2d_transpose\(\): argument 'filters' must be Tensor, not int"):
        tf.conv2d_transpose(images, 1, (2, 5, 5, 4), 1)
    with pytest.raises(ValueError, match="images must have 4 dimensions, but got size"):
        tf.conv2d_transpose(images[0], filters, (2, 5, 5, 4), 1)
