"""Conv1d and ConvTranspose2d are torch's: values, gradients of every order, transforms, errors. And what Conv1d adds."""

import copy
import inspect
import itertools
import pickle
import re

import grid
import pytest
import torch
from cases import integers
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap

import torchconv
from torchconv import Conv1d, ConvTranspose2d
from torchconv.functional import conv1d, conv_transpose2d

#: input, weight, and the other arguments of the functions, by name.
CASES_1D = {
    "plain": ((2, 3, 9), (4, 3, 3), {}),
    "strided": ((2, 3, 10), (4, 3, 4), {"stride": 3, "padding": 2}),
    "grouped": ((2, 6, 11), (4, 3, 3), {"groups": 2, "dilation": (2,), "padding": (1,)}),
    "depthwise": ((2, 32, 40), (32, 1, 5), {"groups": 32, "padding": "same"}),
    "wide": ((3, 40, 50), (70, 40, 3), {"padding": 1}),
    "even_same": ((2, 3, 9), (4, 3, 4), {"padding": "same"}),
    "valid": ((2, 3, 9), (4, 3, 4), {"padding": "valid"}),
    "one": ((1, 1, 1), (1, 1, 1), {}),
    "empty_batch": ((0, 3, 9), (4, 3, 3), {}),
}
CASES_TRANSPOSED = {
    "plain": ((2, 3, 4, 5), (3, 4, 3, 3), {}),
    "strided": ((2, 4, 3, 5), (4, 3, 3, 2), {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}),
    "upsampling": ((2, 32, 6, 7), (32, 16, 2, 2), {"stride": 2}),
    "grouped": ((2, 4, 4, 4), (4, 3, 3, 3), {"groups": 2, "stride": 2, "dilation": 2, "output_padding": 1}),
    "depthwise": ((1, 32, 5, 6), (32, 1, 3, 3), {"groups": 32, "stride": 2, "padding": 1, "output_padding": 1}),
    "phases_without_taps": ((2, 32, 7, 6), (32, 1, 3, 3), {"groups": 32, "stride": 2, "dilation": 2}),
    "padding_above_window": ((2, 3, 9, 8), (3, 2, 2, 2), {"padding": (3, 2)}),
    "output_padding_above_stride": ((2, 3, 4, 5), (3, 2, 2, 3), {"dilation": (4, 5), "output_padding": (3, 4), "stride": 2}),
    "output_padding_beyond_all_windows": ((2, 3, 4, 5), (3, 2, 1, 1), {"dilation": 4, "output_padding": (3, 2), "padding": (1, 0)}),
    "result_beyond_all_windows": ((2, 1, 1, 1), (1, 1, 1, 1), {"stride": 2, "padding": 3, "output_padding": 6, "dilation": 8}),
    "empty_batch": ((0, 3, 4, 5), (3, 4, 3, 3), {}),
}  # fmt: skip
CALLS = [(conv1d, nn.functional.conv1d, name, *case) for name, case in CASES_1D.items()] + [
    (conv_transpose2d, nn.functional.conv_transpose2d, name, *case) for name, case in CASES_TRANSPOSED.items()
]
calls = pytest.mark.parametrize(
    ("ours", "theirs", "name", "x_size", "w_size", "options"), CALLS, ids=[f"{c[0].__name__}-{c[2]}" for c in CALLS]
)
FEW = [
    (conv1d, (2, 4, 7), (4, 2, 3), {"stride": 2, "padding": "same", "groups": 2}),
    (conv1d, (2, 2, 6), (3, 2, 2), {"dilation": 2, "padding": (1, 2)}),
    (conv_transpose2d, (2, 4, 3, 2), (4, 2, 3, 2), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    (conv_transpose2d, (1, 2, 2, 3), (2, 2, 2, 2), {"dilation": (3, 1), "output_padding": (2, 0)}),
]
few = pytest.mark.parametrize(("ours", "x_size", "w_size", "options"), FEW)


def operands(function, x_size, w_size, options, dtype=torch.float64, fill=integers):
    channels = w_size[0] if function is conv1d else w_size[1] * options.get("groups", 1)
    return [fill(size).to(dtype) for size in (x_size, w_size, (channels,))]


def value_and_gradients(function, x, w, bias, options):
    x, w, bias = (tensor.requires_grad_() for tensor in (x, w, bias))
    y = function(x, w, bias, **options)
    dy = integers(tuple(y.shape), seed=1).to(y.dtype)
    return [y, *torch.autograd.grad(y, (x, w, bias), dy)]


@pytest.mark.parametrize("function", [conv1d, conv_transpose2d], ids=lambda function: function.__name__)
@grid.each_row([row for row in grid.ANY_STRIDES if grid.is_exact(row)])
def test_values_and_gradients_equal_torch_on_every_implementation(row, function):
    """Where all that the layer needs is supported; elsewhere it says so."""
    ran = 0
    for ours, theirs, name, x_size, w_size, options in CALLS:
        for dtype in (torch.float64, torch.float32, torch.bfloat16) if ours is function else ():
            tensors = operands(ours, x_size, w_size, options, dtype)
            try:
                with torchconv.use(row):
                    found = value_and_gradients(ours, *tensors, options)
            except RuntimeError as error:
                if not re.search("does not do this .* problem", str(error)):
                    raise
                continue
            wanted = value_and_gradients(theirs, *operands(ours, x_size, w_size, options), options)
            assert all(torch.equal(a, b.to(dtype)) for a, b in zip(found, wanted, strict=True)), (name, dtype)
            ran += 1
    assert ran > 0


@calls
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
def test_values_and_gradients_equal_torch(ours, theirs, name, x_size, w_size, options, dtype, layout):
    found = []
    for function in (ours, theirs):
        x, w, bias = operands(ours, x_size, w_size, options)
        wide = dtype if function is ours else torch.float64
        if layout == "strided":
            x = torch.stack([x, x], -1)[..., 0]
        if layout == "transposed":
            x = x.transpose(0, -1).contiguous().transpose(0, -1)
        with torchconv.use("!winograd"):
            found.append(value_and_gradients(function, x.to(wide), w.to(wide), bias.to(wide), options))
    for mine, wanted in zip(*found, strict=True):
        assert torch.equal(mine, wanted.to(dtype))


@calls
def test_without_bias_and_unbatched(ours, theirs, name, x_size, w_size, options):
    x, w, _ = operands(ours, x_size, w_size, options)
    if x_size[0] > 0:
        assert torch.equal(ours(x[0], w, **options), theirs(x[0], w, None, **options))


@few
def test_gradients_of_every_order(ours, x_size, w_size, options):
    inputs = [
        tensor.requires_grad_()
        for tensor in operands(ours, x_size, w_size, options, fill=lambda s: torch.randn(s).double())
    ]

    def function(*inputs):
        return ours(*inputs, **options)

    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@few
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_difference_quotients(ours, x_size, w_size, options, dtype):
    x, w, bias = operands(ours, x_size, w_size, options, dtype)
    assert gradcheck(lambda x: ours(x, w, bias, **options), x.requires_grad_(), eps=1.0, atol=0, rtol=0)
    assert gradcheck(lambda w: ours(x.detach(), w, bias, **options), w.requires_grad_(), eps=1.0, atol=0, rtol=0)


@few
def test_vmap_and_per_sample_gradients(ours, x_size, w_size, options):
    x, w, bias = operands(ours, x_size, w_size, options)
    xs, ws, biases = (torch.stack([tensor, 2 * tensor, tensor + 1]) for tensor in (x, w, bias))
    for dims in itertools.product((None, 0), repeat=3):
        if any(dim == 0 for dim in dims):
            arguments = [
                many if dim == 0 else one for dim, many, one in zip(dims, (xs, ws, biases), (x, w, bias), strict=True)
            ]
            wanted = [
                ours(*(a[i] if dim == 0 else a for dim, a in zip(dims, arguments, strict=True)), **options)
                for i in range(3)
            ]
            assert torch.equal(vmap(lambda *a: ours(*a, **options), dims)(*arguments), torch.stack(wanted))

    def loss(w, sample):
        return ours(sample, w, bias, **options).square().sum()

    wanted = torch.stack([grad(loss)(w, sample) for sample in x])
    assert torch.equal(vmap(grad(loss), (None, 0))(w, x), wanted)
    primal, tangent = jvp(lambda x: ours(x, w, bias, **options), (x,), (x,))
    assert torch.equal(tangent, primal - ours(0 * x, w, bias, **options))


@pytest.mark.parametrize(("ours", "x_size", "w_size", "options"), FEW[::2])
def test_compile(ours, x_size, w_size, options):
    def function(x, w, bias):
        return ours(x, w, bias, **options)

    def step(function, x, w, bias):
        y = function(x, w, bias)
        return y, *torch.autograd.grad(y.square().sum(), (x, w, bias))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for extra in (0, 2):
        size = (x_size[0] + extra, x_size[1], *(length + extra for length in x_size[2:]))
        inputs = [tensor.requires_grad_() for tensor in operands(ours, size, w_size, options)]
        for mine, wanted in zip(step(compiled, *inputs), step(function, *inputs), strict=True):
            assert torch.equal(mine, wanted)
            assert mine.stride() == wanted.stride()


@few
def test_autocast(ours, x_size, w_size, options):
    x, w, bias = operands(ours, x_size, w_size, options, torch.float32)
    x, w, bias = x.requires_grad_(), w.requires_grad_(), torch.randn_like(bias).requires_grad_()
    with torch.autocast("cpu"):
        y = ours(x, w, bias, **options)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert {tensor.grad.dtype for tensor in (x, w, bias)} == {torch.float32}
    assert torch.equal(y, ours(x.bfloat16(), w.bfloat16(), bias.bfloat16(), **options))
    with torch.autocast("cpu", enabled=False):
        assert ours(x, w, bias, **options).dtype == torch.float32


def test_autocast_does_not_cast_float64():
    x, w, bias = torch.randn(2, 4, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(3, dtype=torch.float64)
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match=r"bias type \(torch.float64\) should be the same"):
        conv_transpose2d(x, w, bias)


@few
def test_complex(ours, x_size, w_size, options):
    def fill(size):
        return torch.complex(integers(size, 2), integers(size, 2, seed=1))

    x, w, bias = operands(ours, x_size, w_size, options, torch.complex128, fill)
    y = ours(x, w, bias, **options)
    real = ours(x.real, w.real, bias.real, **options) - ours(x.imag, w.imag, **options)
    assert torch.equal(y.real, real)
    assert torch.equal(y.imag, ours(x.real, w.imag, bias.imag, **options) + ours(x.imag, w.real, **options))


def test_transposed_may_be_empty():
    assert conv_transpose2d(torch.randn(2, 3, 4, 2), torch.randn(3, 2, 1, 1), padding=(0, 1)).shape == (2, 2, 4, 0)


def test_transposed_is_channels_last_if_either_operand_is():
    x, w = torch.randn(2, 16, 5, 6), torch.randn(16, 8, 3, 3)
    wanted = conv_transpose2d(x, w, stride=2)
    for a, b in ((x.to(memory_format=torch.channels_last), w), (x, w.to(memory_format=torch.channels_last))):
        y = conv_transpose2d(a, b, torch.zeros(8), stride=2)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "relu6", "sigmoid", "tanh"])
def test_activation_of_conv1d(activation):
    x, w, bias = operands(conv1d, (2, 3, 9), (4, 3, 3), {}, torch.float32)
    module = torchconv.activations.ACTIVATIONS[activation]
    torch.testing.assert_close(
        conv1d(x, w, bias, activation=activation, negative_slope=0.2), module.apply(conv1d(x, w, bias), 0.2)
    )


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "left", "right"),
    [(13, 6, 5, 1, 1, 2), (9, 3, 2, 2, 2, 2), (4, 1, 3, 1, 0, 0)],
)
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_strided_same_of_conv1d(size, kernel, stride, dilation, left, right, mode):
    layer = Conv1d(2, 3, kernel, stride, "same", dilation, padding_mode=mode)
    explicit = Conv1d(2, 3, kernel, stride, (left, right), dilation, padding_mode=mode)
    explicit.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, size)
    assert layer(x).shape[-1] == -(-size // stride)
    assert torch.equal(layer(x), explicit(x))


# ----------------------------------------------------------------------------------------------------------- modules

MODULES = [
    (Conv1d, nn.Conv1d, (2, 4, 12), {"in_channels": 4, "out_channels": 6, "kernel_size": 3}),
    (Conv1d, nn.Conv1d, (2, 4, 12), {"in_channels": 4, "out_channels": 6, "kernel_size": 4, "padding": "same", "groups": 2}),
    (Conv1d, nn.Conv1d, (2, 4, 12), {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 2, "padding_mode": "reflect", "stride": 2}),
    (Conv1d, nn.Conv1d, (2, 4, 12), {"in_channels": 4, "out_channels": 6, "kernel_size": 4, "padding": "same", "padding_mode": "circular"}),
    (Conv1d, nn.Conv1d, (2, 4, 12), {"in_channels": 4, "out_channels": 6, "kernel_size": 4, "padding": "valid", "padding_mode": "circular", "bias": False}),
    (ConvTranspose2d, nn.ConvTranspose2d, (2, 4, 5, 6), {"in_channels": 4, "out_channels": 6, "kernel_size": 3}),
    (ConvTranspose2d, nn.ConvTranspose2d, (2, 4, 5, 6), {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": (1, 2), "bias": False}),
]  # fmt: skip
modules = pytest.mark.parametrize(("kind", "torchs", "x_size", "options"), MODULES)


@modules
def test_modules_equal_torch(kind, torchs, x_size, options):
    layers = []
    for cls in (kind, torchs):
        torch.manual_seed(3)
        layers.append(cls(**options))
    ours, theirs = layers
    assert isinstance(ours, torchs)
    assert repr(ours) == repr(theirs)
    x = torch.randn(x_size)
    results = []
    for layer in layers:
        given = x.clone().requires_grad_()
        y = layer(given)
        results.append([y, *torch.autograd.grad(y.square().sum(), (given, *layer.parameters()))])
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(ours.state_dict())
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(x), ours(x))
    traced = torch.fx.symbolic_trace(nn.Sequential(ours))
    assert torch.equal(traced(x), ours(x))


@modules
def test_modules_under_compile_and_func(kind, torchs, x_size, options):
    layer, x = kind(**options), torch.randn(x_size)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))

    def loss(parameters, sample):
        return functional_call(layer, parameters, sample.unsqueeze(0)).square().sum()

    parameters = {name: tensor.detach() for name, tensor in layer.named_parameters()}
    found = vmap(grad(loss), (None, 0))(parameters, x)
    for name in parameters:
        wanted = torch.stack([grad(loss)(parameters, sample)[name] for sample in x])
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "torchs"), [(Conv1d, nn.Conv1d), (ConvTranspose2d, nn.ConvTranspose2d)])
def test_signatures_begin_with_torchs(kind, torchs):
    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (kind, torchs))
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert [p.name for p in ours[len(theirs) :]] == (["activation", "negative_slope"] if kind is Conv1d else [])


def test_repr_of_what_conv1d_has_beyond_torch():
    assert repr(Conv1d(1, 2, 3, padding=(1, 2), activation="leaky_relu")) == (
        "Conv1d(1, 2, kernel_size=(3,), stride=(1,), padding=(1, 2), activation=leaky_relu, negative_slope=0.01)"
    )


def test_output_size():
    ours, theirs = ConvTranspose2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(3, 4, 3, 2, 1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5, 6)
    for size in ((9, 11), (10, 12), [2, 4, 10, 11]):
        torch.testing.assert_close(ours(x, size), theirs(x, size))
    with pytest.raises(ValueError, match=r"requested an output size of"):
        ours(x, (8, 11))


# ------------------------------------------------------------------------------------------------------------ errors


def x1(*size):
    return torch.zeros(size or (2, 3, 9))


def w1(*size):
    return torch.zeros(size or (4, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((x1(2, 3, 4, 9), w1()), RuntimeError, r"Expected 2D \(unbatched\) or 3D \(batched\) input to conv1d, but got input of size: \[2, 3, 4, 9\]"),
        ((x1(), w1(4, 3, 3, 3)), RuntimeError, "Expected 4-dimensional input for 4-dimensional weight"),
        ((x1(), w1(4, 3)), RuntimeError, r"weight should have at least three dimensions, but got weight of size \[4, 3\]"),
        ((x1(2, 5, 9), w1()), RuntimeError, r"weight of size \[4, 3, 3\], expected input\[2, 5, 9\] to have 3 channels, but got 5 channels instead"),
        ((x1(5, 9), w1()), RuntimeError, r"weight of size \[4, 3, 3\], expected input\[1, 5, 9\] to have 3 channels, but got 5 channels instead"),
        ((x1(1, 3, 4), w1(4, 3, 10)), RuntimeError, r"Calculated padded input size per channel: \(4\). Kernel size: \(10\). Kernel size can't be greater than actual input size"),
        ((x1(), w1(4, 3, 0)), RuntimeError, r"kernel size should be greater than zero, but got weight of size \[4, 3, 0\]"),
        ((x1(), w1(0, 3, 3)), RuntimeError, r"at least 1 at dimension 0, but got weight of size \[0, 3, 3\] instead"),
        ((x1(), w1(), torch.zeros(5)), RuntimeError, r"expected bias to be 1-dimensional with 4 elements, but got bias of size \[5\]"),
        ((x1(), w1(), 3), TypeError, r"conv1d\(\): argument 'bias' must be Tensor or None, not int"),
        ((x1(), w1().double()), RuntimeError, "should be the same"),
        ((x1(), w1(), None, (1, 2)), RuntimeError, "expected stride to be a single integer value or a list of 1 values"),
        ((x1(), w1(), None, 0), RuntimeError, r"non-positive stride is not supported, but got stride=\[0\]"),
        ((x1(), w1(), None, 0, "same"), RuntimeError, r"non-positive stride is not supported, but got stride=\[0\]"),
        ((x1(), w1(), None, 1, -1), RuntimeError, r"negative padding is not supported, but got padding=\[-1, -1\]"),
        ((x1(), w1(), None, 1, 2**62), RuntimeError, "the padded input size overflows 64 bits"),
        ((x1(), w1(), None, 1, 2**60), RuntimeError, r"output of size \[2, 4, 2305843009213693959\] is too large"),
        ((x1(), w1(), None, 1, (1, 2, 3)), RuntimeError, r"expected padding to be a single integer value, \(before, after\)"),
        ((x1(), w1(), None, 1, "full"), ValueError, "Invalid padding string 'full'"),
        ((x1(), w1(), None, 1, 0, 0), RuntimeError, r"dilation should be greater than zero, but got dilation=\[0\]"),
        ((x1(), w1(), None, 1, 0, 1, 0), RuntimeError, "non-positive groups is not supported, but got groups=0"),
        ((x1(), w1(), None, 1, 0, 1, 3), RuntimeError, r"divisible by 3 at dimension 0, but got weight of size \[4, 3, 3\] instead"),
        ((None, w1()), TypeError, r"conv1d\(\): argument 'input' must be Tensor, not NoneType"),
        ((x1(), 3), TypeError, r"conv1d\(\): argument 'weight' must be Tensor, not int"),
        ((x1(), w1(), None, 1.5), TypeError, r"conv1d\(\): argument 'stride' must be int or ints, but got 1.5"),
        ((x1(), w1(), None, 1, 1.5), TypeError, r"conv1d\(\): argument 'padding' must be int or ints, but got 1.5"),
    ],
)  # fmt: skip
def test_errors_of_conv1d_speak_of_one_dimension(arguments, error, message):
    with pytest.raises(error, match=message):
        conv1d(*arguments)
    if all(tensor is None or isinstance(tensor, torch.Tensor) for tensor in arguments[:3]) and arguments[0] is not None:
        with torch.overrides.BaseTorchFunctionMode(), pytest.raises(error, match=message):  # through the dispatcher
            conv1d(*arguments)


def x2(*size):
    return torch.zeros(size or (2, 4, 5, 5))


def w2(*size):
    return torch.zeros(size or (4, 3, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((x2(5, 5), w2()), RuntimeError, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv_transpose2d, but got input of size: \[5, 5\]"),
        ((x2(), w2(4, 3, 3)), RuntimeError, "Expected 3-dimensional input for 3-dimensional weight"),
        ((x2(), w2(4, 3)), RuntimeError, r"weight should have at least three dimensions, but got weight of size \[4, 3\]"),
        ((x2(), w2().double()), RuntimeError, r"Input type \(torch.float32\) and weight type \(torch.float64\) should be the same"),
        ((x2(), w2(), torch.zeros(3).double()), RuntimeError, r"Input type \(torch.float32\) and bias type \(torch.float64\) should be the same"),
        ((x2(), w2(5, 3, 3, 3)), RuntimeError, r"Given transposed=1, weight of size \[5, 3, 3, 3\], expected input\[2, 4, 5, 5\] to have 5 channels, but got 4 channels instead"),
        ((x2(), w2(), torch.zeros(4)), RuntimeError, r"expected bias to be 1-dimensional with 3 elements, but got bias of size \[4\] instead"),
        ((x2(), w2(), None, 2, 0, 2), RuntimeError, r"output padding must be smaller than either stride or dilation, but got output_padding=\[2, 2\], stride=\[2, 2\], dilation=\[1, 1\]"),
        ((x2(), w2(), None, 2, 0, -1), RuntimeError, "negative output_padding is not supported"),
        ((x2(), w2(), None, 1, -1), RuntimeError, "negative padding is not supported"),
        ((x2(), w2(), None, 1, 4), RuntimeError, r"Given input size per channel: \(5 x 5\). Calculated output size per channel: \(-1 x -1\). Output size is too small"),
        ((x2(), w2(), None, 0), RuntimeError, "non-positive stride is not supported"),
        ((x2(), w2(), None, (1, 2, 3)), RuntimeError, "expected stride to be a single integer value or a list of 2 values"),
        ((x2(), w2(), None, 1, "same"), TypeError, r"conv_transpose2d\(\): argument 'padding' must be int or ints, but got 'same'"),
        ((x2(), w2(), None, 1, 0, 0, 3), RuntimeError, "Given groups=3, expected weight to be divisible by 3 at dimension 0"),
        ((x2(), w2(), None, 1, 0, 0, 0), RuntimeError, "non-positive groups is not supported"),
        ((x2(), w2(), None, 1, 0, 0, 1, 0), RuntimeError, "dilation should be greater than zero"),
        ((x2(), w2(), None, 2**62), RuntimeError, r"'stride': \(4611686018427387904, 4611686018427387904\).* make sizes of more than 64 bits for input of size \[2, 4, 5, 5\]"),
        ((x2(), w2(), None, 1, 0, 0, 1, 2**62), RuntimeError, "make sizes of more than 64 bits"),
        ((x2(), w2(), None, 2**100), RuntimeError, "make sizes of more than 64 bits"),
        ((x2(), w2(), None, 1, 2**62), RuntimeError, "Output size is too small"),
        ((x2(2, 4, 0, 5), w2()), RuntimeError, r"Only zero batch or zero channel inputs are supported, but got input shape: \[2, 4, 0, 5\]"),
        ((None, w2()), TypeError, r"conv_transpose2d\(\): argument 'input' must be Tensor, not NoneType"),
        ((x2(), w2(), 3), TypeError, r"conv_transpose2d\(\): argument 'bias' must be Tensor or None, not int"),
    ],
)  # fmt: skip
def test_errors_of_conv_transpose2d(arguments, error, message):
    with pytest.raises(error, match=message):
        conv_transpose2d(*arguments)
