"""Arguments as users write them: any sequence, NumPy's integers, padding in capitals, and tensors of integers."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchconv
import torchconv.tf
from torchconv import functional


class ListConfig(Sequence):
    """A sequence that is neither a list nor a tuple, such as those of configuration files."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, index):
        return self.values[index]

    def __len__(self):
        return len(self.values)


ONE_TWO = {
    "list": [1, 2],
    "size": torch.Size([1, 2]),
    "range": range(1, 3),
    "sequence": ListConfig([1, 2]),
    "array": np.array([1, 2]),
    "tensor": torch.tensor([1, 2]),
    "tuple_of_numpy": (np.int64(1), np.uint8(2)),
    "tuple_of_tensors": (torch.tensor(1), torch.tensor(2)),
    "tuple_of_arrays": (np.array(1), np.array(2)),
}
TWO = {"numpy": np.int64(2), "array": np.array(2), "tensor": torch.tensor(2)}
FORMS = [((1, 2), value) for value in ONE_TWO.values()] + [((2, 2), value) for value in TWO.values()]
forms = pytest.mark.parametrize(("plain", "value"), FORMS, ids=[*ONE_TWO, *(f"one_{name}" for name in TWO)])
X, W = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3)


@forms
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_functions_take_any_sequence(plain, value, name):
    assert torch.equal(functional.conv2d(X, W, **{name: value}), functional.conv2d(X, W, **{name: plain}))
    found, wanted = (
        functional.conv_transpose2d(X, W.transpose(0, 1), **{"stride": 3, name: form}) for form in (value, plain)
    )
    assert torch.equal(found, wanted)


#: torch's own constructor of ConvTranspose2d takes no array without dimensions; AvgPool2d has no dilation.
LAYER_ARGUMENTS = [
    pytest.param(kind, name, plain, value, id=f"{kind}-{name}-{form}")
    for kind in ("Conv2d", "ConvTranspose2d", "LazyConv2d", "MaxPool2d", "AvgPool2d")
    for name in ("kernel_size", "stride", "padding", "dilation")
    for form, (plain, value) in zip([*ONE_TWO, *(f"one_{name}" for name in TWO)], FORMS, strict=True)
    if not (kind == "ConvTranspose2d" and np.ndim(value) == 0) and (kind, name) != ("AvgPool2d", "dilation")
]


@pytest.mark.parametrize(("kind", "name", "plain", "value"), LAYER_ARGUMENTS)
def test_layers_take_any_sequence(kind, name, plain, value):
    channels = {"in_channels": 4, "out_channels": 6} if "Pool" not in kind else {}
    if kind == "LazyConv2d":
        del channels["in_channels"]

    def output(value):
        torch.manual_seed(0)
        layer = getattr(torchconv, kind)(**{**channels, "kernel_size": 4, name: value})
        return layer, layer(X)

    (layer, found), (_, wanted) = output(value), output(plain)
    assert torch.equal(found, wanted)
    if kind == "Conv2d":
        assert repr(layer) == repr(nn.Conv2d(**{**channels, "kernel_size": 4, name: plain}))


def test_four_sided_padding_takes_any_sequence():
    wanted = functional.conv2d(X, W, padding=(1, 2, 0, 3))
    for padding in (
        np.array([1, 2, 0, 3]),
        torch.tensor([[1, 2], [0, 3]]),
        ListConfig([range(1, 3), np.array([0, 3])]),
    ):
        assert torch.equal(functional.conv2d(X, W, padding=padding), wanted)
        torch.manual_seed(0)
        layer = torchconv.Conv2d(4, 6, 3, padding=padding)
        assert layer.padding == (1, 2, 0, 3)
        assert torch.equal(layer(X), functional.conv2d(X, layer.weight, layer.bias, padding=(1, 2, 0, 3)))


def test_conv1d_takes_any_sequence():
    x, w = X[..., 0], W[..., 0]
    wanted = functional.conv1d(x, w, None, 2, (1, 2), 1)
    for one in (np.int64, np.array, torch.tensor):
        for padding in (np.array([1, 2]), range(1, 3), ListConfig([1, 2])):
            assert torch.equal(functional.conv1d(x, w, None, one([2]), padding, one(1), one(1)), wanted)
            layer = torchconv.Conv1d(4, 6, one(3), one([2]), padding)
            assert (layer.kernel_size, layer.stride, layer.padding) == ((3,), (2,), (1, 2))
            assert layer(x).shape == wanted.shape


@pytest.mark.parametrize("one", [np.int64, np.array, torch.tensor])
def test_groups_and_channels_may_be_numpys(one):
    x, w = torch.randn(1, 4, 5, 5), torch.randn(6, 2, 3, 3)
    assert torch.equal(functional.conv2d(x, w, groups=one(2)), functional.conv2d(x, w, groups=2))
    layer = torchconv.Conv2d(one(4), one(6), one(3), groups=one(2))
    assert torch.equal(layer(x), functional.conv2d(x, layer.weight, layer.bias, groups=2))


def test_a_layer_of_numpys_integers_compiles():
    layer = torchconv.Conv2d(4, 6, np.int64(3), np.array([1, 2]), np.array([1, 0]), groups=np.int64(2))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), layer(X))


@pytest.mark.parametrize("value", [np.array([1.5, 2.0]), np.float32(1.5), torch.tensor([1.5, 2.0]), {"a": 1}.items()])
def test_sequences_of_something_else_are_refused_by_name(value):
    for name in ("stride", "padding", "dilation"):
        with pytest.raises((TypeError, RuntimeError), match=name):
            functional.conv2d(X, W, **{name: value})


def test_tf_takes_arrays():
    images, filters = torch.randn(2, 9, 8, 4), torch.randn(3, 3, 4, 6)
    wanted = torchconv.tf.conv2d(images, filters, 2, ((1, 1), (2, 1)))
    for strides in (np.array([1, 2, 2, 1]), np.int64(2), np.array(2), ListConfig([2, 2]), torch.tensor([1, 2, 2, 1])):
        for padding in (np.array([[0, 0], [1, 1], [2, 1], [0, 0]]), np.array([[1, 1], [2, 1]])):
            assert torch.equal(torchconv.tf.conv2d(images, filters, strides, padding, np.array(1)), wanted)


# ------------------------------------------------------------------------------------------------ padding in capitals


@pytest.mark.parametrize("padding", ["SAME", "Same", "VALID", "Valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_padding_in_capitals(padding, mode):
    for kind, x in ((torchconv.Conv2d, X), (torchconv.Conv1d, X[..., 0])):
        layers = []
        for text in (padding, padding.lower()):
            torch.manual_seed(0)
            layers.append(kind(4, 6, 3, 2, text, padding_mode=mode))
        assert layers[0].padding == layers[1].padding == padding.lower()
        assert torch.equal(layers[0](x), layers[1](x))
    assert torch.equal(functional.conv2d(X, W, padding=padding), functional.conv2d(X, W, padding=padding.lower()))
    x, w = X[..., 0], W[..., 0]
    assert torch.equal(functional.conv1d(x, w, padding=padding), functional.conv1d(x, w, padding=padding.lower()))
    for kind in (torchconv.MaxPool2d, torchconv.AvgPool2d):
        assert torch.equal(kind(3, 2, padding)(X), kind(3, 2, padding.lower())(X))


# ----------------------------------------------------------------------------------------------- tensors of integers

INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def whole(*size, dtype):
    return torch.randint(0, 4, size).to(dtype)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("options", [{}, {"stride": (2, 1), "padding": 1}, {"groups": 2}], ids=str)
def test_integers_are_convolved_by_torch(dtype, options):
    x, w = whole(2, 4, 9, 8, dtype=dtype), whole(6, 4 // options.get("groups", 1), 3, 3, dtype=dtype)
    for bias in (None, whole(6, dtype=dtype)):
        for of in (x, x[0]):
            found, wanted = functional.conv2d(of, w, bias, **options), F.conv2d(of, w, bias, **options)
            assert (found.dtype, found.stride()) == (dtype, wanted.stride())
            assert torch.equal(found, wanted)
            assert torch.equal(functional.conv2d(of, w, bias, **options, activation="relu"), wanted.relu())
    if options.get("stride"):
        options = {"stride": 2, "padding": 1}
    found = functional.conv1d(x[..., 0], w[..., 0], bias, **options)
    assert torch.equal(found, F.conv1d(x[..., 0], w[..., 0], bias, **options))


def test_integers_beyond_the_mantissa_of_a_float_are_exact():
    x, w = torch.full((1, 1, 3, 3), 2**40 + 1), torch.full((1, 1, 3, 3), 3)
    assert functional.conv2d(x, w).item() == 27 * (2**40 + 1)
    assert functional.conv1d(x[0], w[0]).item() == 27 * (2**40 + 1)
    assert functional.conv_transpose2d(x, w)[0, 0, 2, 2].item() == 27 * (2**40 + 1)


def test_integers_with_what_torch_does_not_have():
    x, w = whole(1, 2, 7, 8, dtype=torch.int64), whole(3, 2, 3, 3, dtype=torch.int64)
    for options in (
        {"padding": (0, 1, 2, 3)},
        {"padding": "same", "stride": 2},
        {"padding": ((3, 0), (1, 1)), "dilation": 2},
    ):
        found = functional.conv2d(x, w, **options)
        assert torch.equal(found, functional.conv2d(x.double(), w.double(), **options).long())
    with pytest.raises(RuntimeError, match="negative padding is not supported"):
        functional.conv2d(x, w, padding=(0, 1, -1, 3))


@pytest.mark.parametrize("size", [(2, 4, 9), (2, 4, 9, 8)], ids=["1d", "2d"])
def test_integers_do_not_mix_with_floats(size):
    w = torch.randn(4, 4, *(3,) * (len(size) - 2))
    functions = [functional.conv1d] if len(size) == 3 else [functional.conv2d, functional.conv_transpose2d]
    for function in functions:
        for x, w_, bias, match in (
            (whole(*size, dtype=torch.int64), w, None, r"Input type \(torch.int64\) and weight type \(torch.float32\)"),
            (torch.randn(size), w.int(), None, r"Input type \(torch.float32\) and weight type \(torch.int32\)"),
            (torch.randn(size).int(), w.int(), torch.ones(4), r"Input type \(torch.int32\) and bias type \(torch.float32\)"),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match=f"{match} should be the same"):
                function(x, w_, bias)
    with pytest.raises(RuntimeError, match="should be the same"):
        torchconv.Conv2d(4, 4, 3)(whole(2, 4, 9, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="argument 'bias' must be Tensor or None, not int"):
        functional.conv2d(X.int(), W.int(), 3)
